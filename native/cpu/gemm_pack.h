#pragma once
#include <cstring>

#include "cpu/gemm_operand.h"
#include "cpu/gemm_tile.h"

// Copies blocks of the operands into panels, so that the tile reads memory in order:
//   B        [k][kCols]           columns side by side
//   A by k   [kTileRows][stride]  rows, for a source by rows: no transposition
//   A by row [k][kRowWidth]       for a source by columns
// Lengths in k count packs, padded with zeros to whole steps of the tile; missing columns are zeros, missing rows are
// undefined.
namespace st_moe::cpu::ST_MOE_ISA {

// S: an element of the operand's type, or its 16 bits.
template <class S>
struct PanelSource {  // element(w, k) = data[w_rows(w)·w_stride + k_rows(k)·k_stride]; w is a row of A or a column of B
  const S* data;
  int64_t w_stride, k_stride;
  const int32_t *w_rows, *k_rows;
  int64_t K;

  const S* at(int64_t w, int64_t k) const {
    return data + (w_rows ? w_rows[w] : w) * w_stride + (k_rows ? k_rows[k] : k) * k_stride;
  }
  bool along_k() const { return k_stride == 1 && !k_rows; }
  bool along_w() const { return w_stride == 1 && !w_rows; }
};

// Operands whose elements are sums have a part for each summand: in a panel of B one after the other, in one of A by k
// side by side.
template <class Operand>
constexpr int64_t kParts = requires { typename Operand::Rest; } ? 2 : 1;

// Calls f with an operand type for each part, and its index.
template <class Operand, class F>
static inline void for_parts(F&& f) {
  if constexpr (kParts<Operand> == 2)
    f(typename Operand::Leading(), 0), f(typename Operand::Rest(), 1);
  else
    f(Operand(), 0);
}

// Of elements that are stored as S.
template <class S, class T>
static inline PanelSource<S> source_of(const PanelSource<T>& source) {
  return {reinterpret_cast<const S*>(source.data),
          source.w_stride,
          source.k_stride,
          source.w_rows,
          source.k_rows,
          source.K};
}

// Calls f with the source, as one of 16-bit elements if it is.
template <class Operand, class T, class F>
static inline void with_elements(const PanelSource<T>& source, bool low, F&& f) {
  if constexpr (!Operand::exact)
    if (low) return f(source_of<uint16_t>(source));
  f(source);
}

// Elements of another type than the operand's, which are widened to float32 first: widen(p, to, count), elements from p
// on that follow each other.
template <DType dtype>
struct WidenedSource : PanelSource<uint16_t> {
  static void widen(const uint16_t* p, float* to, int64_t count) { Rounded<dtype>::widen(p, to, count); }
};
// Blocks of int8 whose rows are along k or along w, without gaps.
struct BlockedSource : PanelSource<int8_t> {
  const uint16_t* scales;

  void widen(const int8_t* p, float* __restrict to, int64_t count) const {
    constexpr int lanes = Simd<float>::lanes;
    const int64_t row = max_of(w_stride, k_stride), at = p - data;
    const uint16_t* scale = scales + at / row * blocks_of(row) + at % row / kBlockElements;
    // Rows of one element are along k and w, so they may follow each other.
    for (int64_t column = at % row, i = 0; i < count; column = column < row ? column : 0) {
      const float factor = f16_to_float(*scale++);
      const int64_t end = min_of(row, (column / kBlockElements + 1) * kBlockElements);
      const int64_t last = i + min_of(end - column, count - i);
      column += last - i;
      for (; i + lanes <= last; i += lanes) Simd<float>::store(to + i, from_int8(p + i) * factor);
      for (; i < last; ++i) to[i] = static_cast<float>(p[i]) * factor;
    }
  }
};
template <class Source>
constexpr bool is_widened = requires(const Source& source, float* to) { source.widen(source.data, to, int64_t{}); };

template <class Operand>
constexpr DType low_type = DType::f32;  // none
template <class Operand>
  requires(kParts<Operand> == 1 && requires { Operand::dtype; })
constexpr DType low_type<Operand> = Operand::dtype;

// The same for elements of B, which are of any type.
template <class Operand, class T, class F>
static inline void with_weights(const MatrixView<T>& b, int64_t K, F&& f) {
  const PanelSource<T> source{b.data, b.col_stride, b.row_stride, nullptr, b.rows, K};
  if constexpr (sizeof(T) == sizeof(float)) {
    if (b.low()) {
      if constexpr (dtype_size(low_type<Operand>) == 2)
        if (b.type == low_type<Operand>) return f(source_of<uint16_t>(source));
      if (b.type == DType::bf16) return f(WidenedSource<DType::bf16>{source_of<uint16_t>(source)});
      return f(WidenedSource<DType::f16>{source_of<uint16_t>(source)});
    }
    if (is_blocked(b.type)) return f(BlockedSource{source_of<int8_t>(source), b.scales});
  }
  f(source);
}

// Elements k0 … k0 + count of one w: in place, or gathered in the buffer.
template <class S>
static inline const S* run_along_k(const PanelSource<S>& source, int64_t w, int64_t k0, int64_t count, S* buffer) {
  if (source.along_k()) return source.at(w, k0);
  for (int64_t k = 0; k < count; ++k) buffer[k] = *source.at(w, k0 + k);
  return buffer;
}

// Packs of `elements` of k.
template <class Operand>
static inline int64_t packs_of(int64_t elements) {
  constexpr int64_t padded = TileShape<typename Operand::Element>::padded_packs;
  return ceil_div(ceil_div(elements, Operand::k_pack), padded) * padded;
}

// The first n of N elements, and zeros. In whole vectors, because a load waits for stores that are shorter than it.
template <int64_t N, class S>
static inline void copy_first(const S* p, int64_t n, S* out) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 2) {
    for (int64_t i = 0; i < N; i += 16) {
      const auto mask = static_cast<__mmask16>((1u << max_of<int64_t>(0, min_of<int64_t>(n - i, 16))) - 1);
      _mm256_storeu_epi16(out + i, _mm256_maskz_loadu_epi16(mask, p + i));
    }
  } else {
    constexpr int64_t L = Simd<S>::lanes;
    for (int64_t i = 0; i < N; i += L)
      Simd<S>::store(out + i, Simd<S>::load_first(p + i, max_of<int64_t>(0, min_of(n - i, L))));
  }
#else
  for (int64_t i = 0; i < N; ++i) out[i] = 0;
  for (int64_t i = 0; i < n; ++i) out[i] = p[i];
#endif
}

// ---- A --------------------------------------------------------------------------------------------------------

// One row: out [packs] from p [elements].
template <class Operand, class S, class T>
static inline void pack_row(const S* p, int64_t elements, T* out) {
  constexpr int64_t L = Simd<T>::lanes, step = L * Operand::k_pack;
  int64_t k = 0;
  for (; k + step <= elements; k += step, out += L) Simd<T>::store(out, Operand::along_k(p + k));
  if (k == elements) return;
  S rest[step];
  copy_first<step>(p + k, elements - k, rest);
  Simd<T>::store(out, Operand::along_k(rest));
}

template <class Operand, class S, class T>
static void pack_a_by_k(const PanelSource<S>& source, int64_t row0, int64_t rows, int64_t k0, int64_t elements,
                        T* out) {
  using Shape = TileShape<T>;
  S buffer[Shape::block_k * Operand::k_pack];
  for (int64_t row = 0; row < rows; ++row) {
    const S* p = run_along_k(source, row0 + row, k0, elements, buffer);
    pack_row<Operand>(p, elements, out + row * Shape::k_stride);
  }
}

// The rows of elements for one pack of k; the second one is zeros past the end.
template <class S>
struct RowPair {
  const S *p, *next;
};

template <class Operand, class S>
static inline RowPair<S> row_pair(const PanelSource<S>& source, int64_t w, int64_t k, const S* zeros) {
  return {source.at(w, k), Operand::k_pack == 2 ? k + 1 < source.K ? source.at(w, k + 1) : zeros : nullptr};
}

// `width` lanes of one pack of k; the rest of the vector is zeros.
template <class Operand, class S, class T>
static inline void pack_edge(RowPair<S> row, int64_t width, T* out) {
  constexpr int64_t L = Simd<T>::lanes;
  S first[L], second[L];
  copy_first<L>(row.p, width, first);
  if (Operand::k_pack == 2) copy_first<L>(row.next, width, second);
  Simd<T>::store(out, Operand::across(first, second));
}

// A few rows of the source for all panels at a time: in long runs, and no more side by side than processors prefetch.
constexpr int64_t kPackRows = 8;
template <class S>
constexpr int64_t kPackAhead = 2 * kLineBytes / static_cast<int64_t>(sizeof(S));  // elements

template <class Operand, class S, class T>
static void pack_a_by_row(const PanelSource<S>& source, int64_t row0, int64_t rows, int64_t k0, int64_t packs, T* out) {
  using Shape = TileShape<T>;
  constexpr int64_t L = Simd<T>::lanes;
  static const S zeros[L] = {};
  const int64_t panel_size = Shape::a_panel(false, packs);
  constexpr int64_t depth = kPackRows / Operand::k_pack;
  for (int64_t begin = 0; begin < packs; begin += depth) {
    const int64_t end = min_of(packs, begin + depth);
    T* panel = out;
    for (int64_t row = 0; row < rows; row += Shape::rows, panel += panel_size)
      for (int64_t k = begin; k < end; ++k)
        for (int64_t g = 0; g < Shape::row_width && row + g < rows; g += L) {
          const RowPair<S> from = row_pair<Operand>(source, row0 + row + g, k0 + k * Operand::k_pack, zeros);
          T* to = panel + k * Shape::row_width + g;
          __builtin_prefetch(from.p + kPackAhead<S>);
          if (Operand::k_pack == 2) __builtin_prefetch(from.next + kPackAhead<S>);
          if (rows - row - g >= L)
            Simd<T>::store(to, Operand::across(from.p, from.next));
          else
            pack_edge<Operand>(from, rows - row - g, to);
        }
  }
}

#if defined(ST_MOE_AMX)
// A by k from a source by columns: 16 rows × 16 packs at a time, transposed.
template <class Operand, class S>
static void pack_a_transposed(const PanelSource<S>& source, int64_t row0, int64_t rows, int64_t k0, int64_t elements,
                              float* out) {
  using Shape = TileShape<float>;
  using V = Simd<float>::V;
  constexpr int64_t L = Simd<float>::lanes;
  static const S zeros[L] = {};
  for (int64_t k = 0; k < packs_of<Operand>(elements); k += L)
    for (int64_t row = 0; row < rows; row += L) {
      V block[L] = {};
      for (int64_t i = 0; i < L && (k + i) * Operand::k_pack < elements; ++i) {
        const RowPair<S> from = row_pair<Operand>(source, row0 + row, k0 + (k + i) * Operand::k_pack, zeros);
        __builtin_prefetch(from.p + kPackAhead<S>);
        __builtin_prefetch(from.next + kPackAhead<S>);
        if (rows - row >= L) {
          block[i] = Operand::across(from.p, from.next);
        } else {
          float edge[L];
          pack_edge<Operand>(from, rows - row, edge);
          block[i] = Simd<float>::load(edge);
        }
      }
      transpose_packs(block);
      for (int64_t i = 0; i < L; ++i) Simd<float>::store(out + (row + i) * Shape::k_stride + k, block[i]);
    }
}
#endif

// ---- B --------------------------------------------------------------------------------------------------------

// `lanes` columns of one panel from rows of elements: 128 bits of each, transposed.
template <class Operand, class S, class T>
static inline void pack_columns(const S* const* column, int64_t elements, T* out) {
  constexpr int U = Lane128<T>::size, L = Simd<T>::lanes, P = Operand::k_pack;
  constexpr int64_t cols = TileShape<T>::cols;
  const auto block = [&](const S* const* from, int64_t k, T* to) {
    typename Simd<T>::V r[U];
#pragma GCC unroll 4
    for (int i = 0; i < U; ++i) {
      typename Lane128<T>::V lane[L / U];
#pragma GCC unroll 4
      for (int j = 0; j < L / U; ++j) lane[j] = Operand::lane128(from[i + j * U] + k);
      r[i] = join<T>(lane);
    }
    transpose_lanes128<T>(r);
#pragma GCC unroll 4
    for (int i = 0; i < U; ++i) Simd<T>::store(to + i * cols, r[i]);
  };
  int64_t k = 0;
#if defined(__AVX512BF16__)
  for (; k + L * P <= elements; k += L * P, out += L * cols) {  // whole vectors of packs
    typename Simd<T>::V r[L];
    for (int i = 0; i < L; ++i) r[i] = Operand::along_k(column[i] + k);
    transpose_packs(r);
    for (int i = 0; i < L; ++i) Simd<T>::store(out + i * cols, r[i]);
  }
#endif
  for (; k + U * P <= elements; k += U * P, out += U * cols) block(column, k, out);
  if (k == elements) return;
  S rest[L][U * P] = {};
  T padded[U * cols];
  const S* from[L];
  for (int i = 0; i < L; ++i) {
    for (int64_t j = 0; j < elements - k; ++j) rest[i][j] = column[i][k + j];
    from[i] = rest[i];
  }
  block(from, 0, padded);
  for (int64_t i = 0; i < ceil_div(elements - k, P); ++i)
    Simd<T>::store(out + i * cols, Simd<T>::load(padded + i * cols));
}

template <class Operand, class S, class T>
static void pack_b_along_w(const PanelSource<S>& source, int64_t col0, int64_t width, int64_t k0, int64_t elements,
                           T* out) {
  constexpr int64_t L = Simd<T>::lanes, cols = TileShape<T>::cols;
  static const S zeros[cols] = {};
  const auto whole = [&](RowPair<S> row) {  // of the panel's width
#pragma GCC unroll 2
    for (int64_t g = 0; g < cols; g += L) Simd<T>::store(out + g, Operand::across(row.p + g, row.next + g));
    out += cols;
  };
  int64_t k = 0;
  if (width == cols && !source.k_rows)
    for (const S* p = source.at(col0, k0); k + Operand::k_pack <= elements; k += Operand::k_pack) {
      whole({p, p + source.k_stride});
      p += Operand::k_pack * source.k_stride;
    }
  for (; k < elements; k += Operand::k_pack) {
    const RowPair<S> row = row_pair<Operand>(source, col0, k0 + k, zeros);
    if (width == cols) {
      whole(row);
    } else {
      for (int64_t g = 0; g < cols; g += L)
        pack_edge<Operand>(RowPair<S>{row.p + g, row.next + g}, max_of<int64_t>(0, min_of(L, width - g)), out + g);
      out += cols;
    }
  }
}

template <class Operand, class S, class T>
static void pack_b_along_k(const PanelSource<S>& source, int64_t col0, int64_t width, int64_t k0, int64_t elements,
                           T* out) {
  constexpr int64_t L = Simd<T>::lanes, cols = TileShape<T>::cols;
  constexpr int64_t longest = TileShape<T>::block_k * Operand::k_pack;
  static const S zeros[longest] = {};
  const bool gathers = !source.along_k();
  Scratch<S> buffer(gathers ? L * longest : 0);
  for (int64_t g = 0; g < cols; g += L) {
    const S* column[L];
    for (int64_t i = 0; i < L; ++i)
      column[i] = g + i < width
                      ? run_along_k(source, col0 + g + i, k0, elements, buffer.get() + (gathers ? i * longest : 0))
                      : zeros;
    pack_columns<Operand>(column, elements, out + g);
  }
}

template <class Operand, class S, class T>
static void pack_b(const PanelSource<S>& source, int64_t col0, int64_t width, int64_t k0, int64_t elements, T* out) {
  constexpr int64_t L = Simd<T>::lanes, cols = TileShape<T>::cols;
  for (int64_t k = ceil_div(elements, Operand::k_pack); k < packs_of<Operand>(elements); ++k)
    for (int64_t g = 0; g < cols; g += L) Simd<T>::store(out + k * cols + g, typename Simd<T>::V{});
  if (source.along_w()) return pack_b_along_w<Operand>(source, col0, width, k0, elements, out);
  pack_b_along_k<Operand>(source, col0, width, k0, elements, out);
}

// A few rows or columns at a time in float32.
template <class Operand, class Source>
  requires is_widened<Source>
static void pack_b(const Source& source, int64_t col0, int64_t width, int64_t k0, int64_t elements, float* out) {
  constexpr int64_t cols = TileShape<float>::cols, longest = TileShape<float>::block_k * Operand::k_pack;
  constexpr int64_t depth = 16 * Operand::k_pack;
  if (!source.along_w()) {
    const Scratch<float> wide(cols * longest);
    for (int64_t w = 0; w < width; ++w) {
      float* const to = wide.get() + w * longest;
      if (source.along_k())
        source.widen(source.at(col0 + w, k0), to, elements);
      else
        for (int64_t k = 0; k < elements; ++k) source.widen(source.at(col0 + w, k0 + k), to + k, 1);
    }
    return pack_b<Operand>(PanelSource<float>{wide.get(), longest, 1, nullptr, nullptr, elements}, 0, width, 0,
                           elements, out);
  }
  float wide[depth * cols];
  for (int64_t k = 0; k < elements; k += depth) {
    const int64_t count = min_of(depth, elements - k);
    for (int64_t i = 0; i < count; ++i) source.widen(source.at(col0, k0 + k + i), wide + i * cols, width);
    pack_b<Operand>(PanelSource<float>{wide, 1, cols, nullptr, nullptr, count}, 0, width, 0, count,
                    out + k / Operand::k_pack * cols);
  }
}

template <class Operand, class Source, class T>
static void pack_b_parts(const Source& source, int64_t col0, int64_t width, int64_t k0, int64_t elements, T* out) {
  for_parts<Operand>([&](auto part, int64_t index) {
    pack_b<decltype(part)>(source, col0, width, k0, elements,
                           out + index * packs_of<Operand>(elements) * TileShape<T>::cols);
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

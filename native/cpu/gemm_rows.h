#pragma once
#include "cpu/gemm.h"
#include "cpu/gemm_pack.h"

// Skinny GEMM, as in decoding: reads B once, in place, at memory bandwidth. Columns of B that are contiguous in k (a
// weight [N, K]) use dot products; rows of a B in float32 (the same weight in a backward) are summed, a few at a time.
namespace st_moe::cpu::ST_MOE_ISA {

constexpr int kDotRows = 4;  // at a time
#if defined(__AVX512F__)
constexpr int kManyColumns = 4;  // 16 sums and 5 operands in 32 registers
#else
constexpr int kManyColumns = 2;
#endif
constexpr int64_t kSkinnyBlockBytes = 64 << 10;  // of B, in the L2 cache for the next rows
constexpr int64_t kSumBytes = 4 << 10;           // of one row of sums in the L1 cache
constexpr int64_t kAheadBytes = 32 << 10;        // of B, prefetched
constexpr int64_t kSkinnyLeastBytes = 1 << 20;   // a smaller B is in a cache, and tiles are faster
constexpr int kSumDepth = 4;                     // rows of B summed at a time

// Sums of the lanes of U vectors, in a fixed order.
template <class T>
static inline typename Lane128<T>::V sum_lanes(typename Simd<T>::V* r) {
  constexpr int U = Lane128<T>::size, parts = Simd<T>::lanes / U;
  transpose_lanes128<T>(r);
  typename Simd<T>::V total = r[0];
#pragma GCC unroll 4
  for (int i = 1; i < U; ++i) total += r[i];
  typename Lane128<T>::V part[parts];
  memcpy(part, &total, sizeof total);
#pragma GCC unroll 4
  for (int i = 1; i < parts; ++i) part[0] += part[i];
  return part[0];
}

// Multiplies packs of the operand.
template <class Operand>
struct MathOf {
  using Math = Multiply<typename Operand::Element>;
};
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
template <>
struct MathOf<Bf16Pairs> {
  using Math = MultiplyPairs;
};
#endif

// A column of B that is contiguous in k, as vectors of packs: at(k), of the elements from k on, and first(k, n), of the
// first n of those, and zeros. Weights: the operand type whose along_k makes packs of what B stores, S.
template <class Weights, class S>
struct Column {
  using Stored = S;
  using T = typename Weights::Element;
  using V = typename Simd<T>::V;
  static constexpr int64_t step = Simd<T>::lanes * Weights::k_pack;

  Column() = default;
  Column(const MatrixView<T>& b, int64_t col) : p(reinterpret_cast<const S*>(b.data) + col * b.col_stride) {}

  V at(int64_t k) const { return Weights::along_k(p + k); }
  V first(int64_t k, int64_t n) const {
    S some[max_of<int64_t>(step, 16)];
    copy_first<step>(p + k, n, some);
    return Weights::along_k(some);
  }

  const S* p;
};

// The same of blocks, from float32.
template <class Operand>
struct BlockedColumn {
  using Stored = int8_t;
  using V = Simd<float>::V;
  static constexpr int64_t lanes = Simd<float>::lanes, step = lanes * Operand::k_pack;
  static_assert(kBlockElements % step == 0, "a vector of packs has one scale");

  BlockedColumn() = default;
  BlockedColumn(const MatrixView<float>& b, int64_t col)
      : p(reinterpret_cast<const int8_t*>(b.data) + col * b.col_stride),
        scales(b.scales + col * blocks_of(b.col_stride)) {}

  V at(int64_t k) const { return scaled(p + k, k); }
  V first(int64_t k, int64_t n) const {
    int8_t some[step] = {};
    for (int64_t i = 0; i < n; ++i) some[i] = p[k + i];
    return scaled(some, k);
  }

  const int8_t* p;
  const uint16_t* scales;

 private:
  V scaled(const int8_t* from, int64_t k) const {
    const uint16_t* scale = scales + static_cast<uint64_t>(k) / kBlockElements;
#if defined(__AVX512F__)
    const V factor = reinterpret_cast<V>(_mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(*scale))));
#else
    const V factor = Simd<float>::set(f16_to_float(*scale));
#endif
    float wide[step];
#pragma GCC unroll 2
    for (int64_t i = 0; i < step; i += lanes) {
      Simd<float>::store(wide + i, from_int8(from + i) * factor);
    }
    return Operand::along_k(wide);
  }
};

template <class Operand, class BColumn>
class SkinnyGemm {
  using T = typename Operand::Element;
  using S = Simd<T>;
  using Stored = typename BColumn::Stored;
  using Math = typename MathOf<Operand>::Math;
  static constexpr int64_t step = S::lanes * Operand::k_pack;  // elements of k in a vector
  static constexpr bool in_place = std::is_same_v<Stored, T>;

 public:
  static bool fits(const GemmProblem<T>& p) {
    if (p.M > kSkinnyRows || p.K == 0) return false;
    if (by_dots(p)) return Operand::exact || p.a.col_stride == 1;
    return in_place && p.b.col_stride == 1 && p.K * p.N * static_cast<int64_t>(sizeof(T)) >= kSkinnyLeastBytes;
  }
  // Elements of scratch memory.
  static int64_t packed(const GemmProblem<T>& p) { return p.M * (row_packs(p.K) + (by_dots(p) ? 0 : kSumColumns)); }

  // Columns [begin, end) of C.
  static void run(const GemmProblem<T>& p, int64_t begin, int64_t end, T* packed) {
    const PanelSource<T> a{p.a.data, p.a.row_stride, p.a.col_stride, p.a.rows, nullptr, p.K};
    const int64_t stride = row_packs(p.K);
    with_elements<Operand>(a, p.a.low(), [&](const auto& from) {
      for (int64_t row = 0; row < p.M; ++row) pack(from, row, packed + row * stride);
    });
    if (in_place && !by_dots(p)) {
      for (int64_t col = begin; col < end; col += kSumColumns)
        sum_rows(p, col, min_of(kSumColumns, end - col), packed, packed + p.M * stride);
      return;
    }
    const int64_t fitting = kSkinnyBlockBytes / (p.K * static_cast<int64_t>(sizeof(Stored)));
    const int64_t width = max_of<int64_t>(1, fitting / kManyColumns) * kManyColumns;
    for (int64_t col = begin; col < end; col += width)
      for (int64_t row = 0; row < p.M; row += kDotRows)
        rows(p, row, min_of<int64_t>(kDotRows, p.M - row), col, min_of(end, col + width), packed + row * stride);
  }

 private:
  static constexpr int64_t kSumColumns = kSumBytes / static_cast<int64_t>(sizeof(T));

  // Of blocks, columns are whole rows of the weight, and not a row of B that has one column.
  static bool by_dots(const GemmProblem<T>& p) {
    return p.b.row_stride == 1 && !p.b.rows && (!is_blocked(p.b.type) || p.b.col_stride == p.K);
  }
  static int64_t row_packs(int64_t K) { return ceil_div(K, step) * S::lanes; }

  template <class E>
  static void pack(const PanelSource<E>& a, int64_t row, T* out) {
    const E* p = a.at(row, 0);
    if constexpr (Operand::exact) {
      for (int64_t k = 0; k < a.K; ++k) out[k] = p[k * a.k_stride];
      for (int64_t k = a.K; k < row_packs(a.K); ++k) out[k] = 0;
    } else {
      pack_row<Operand>(p, a.K, out);
    }
  }

  static void write(const GemmProblem<T>& p, int64_t row, int64_t col, T value) {
    if (p.bias) value += p.bias[col];
    if constexpr (!Operand::exact)
      if (p.low_c) return Operand::round(&value, reinterpret_cast<uint16_t*>(p.c) + row * p.c_stride + col, 1);
    T& c = p.c[row * p.c_stride + col];
    c = p.accumulate ? c + value : value;
  }

  // ---- rows of B ------------------------------------------------------------------------------------------------

  // Columns [col, col + width) of C. sums [M, kSumColumns].
  static void sum_rows(const GemmProblem<T>& p, int64_t col, int64_t width, const T* a, T* sums) {
    const int64_t stride = row_packs(p.K), block_k = kSkinnyBlockBytes / kSumBytes;
    for (int64_t i = 0; i < p.M * kSumColumns; ++i) sums[i] = 0;
    for (int64_t k0 = 0; k0 < p.K; k0 += block_k)
      for (int64_t row = 0; row < p.M; row += kDotRows)
        add_rows<kDotRows>(p, min_of<int64_t>(kDotRows, p.M - row), k0, min_of(p.K, k0 + block_k), col, width,
                           a + row * stride, sums + row * kSumColumns);
    for (int64_t row = 0; row < p.M; ++row)
      for (int64_t j = 0; j < width; ++j) write(p, row, col + j, sums[row * kSumColumns + j]);
  }

  template <int R>
  static void add_rows(const GemmProblem<T>& p, int64_t rows, int64_t k, int64_t end, int64_t col, int64_t width,
                       const T* a, T* sums) {
    if constexpr (R > 1) {
      if (rows < R) return add_rows<R - 1>(p, rows, k, end, col, width, a, sums);
    }
    for (; k + kSumDepth <= end; k += kSumDepth) add_k<R, kSumDepth>(p, k, col, width, a, sums);
    for (; k < end; ++k) add_k<R, 1>(p, k, col, width, a, sums);
  }

  // sums [R, width] += a [R, k … k + Z) · B [k … k + Z, width], one k after the other.
  template <int R, int Z>
  static void add_k(const GemmProblem<T>& p, int64_t k, int64_t col, int64_t width, const T* a, T* sums) {
    using V = typename S::V;
    const int64_t stride = row_packs(p.K);
    const T *b[Z], *next[Z];
    V av[Z][R];
#pragma GCC unroll 4
    for (int z = 0; z < Z; ++z) {
      const int64_t ahead = min_of(p.K - 1, k + z + kAheadBytes / (width * static_cast<int64_t>(sizeof(T))));
      b[z] = p.b.data + (p.b.rows ? p.b.rows[k + z] : k + z) * p.b.row_stride + col;
      next[z] = p.b.data + (p.b.rows ? p.b.rows[ahead] : ahead) * p.b.row_stride + col;
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) av[z][i] = Math::broadcast(a + i * stride + k + z);
    }
    const auto add = [&](int64_t j, const V* bv) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        V sum = S::load(sums + i * kSumColumns + j);
#pragma GCC unroll 4
        for (int z = 0; z < Z; ++z) sum = Math::add(sum, av[z][i], bv[z]);
        S::store(sums + i * kSumColumns + j, sum);
      }
    };
    int64_t j = 0;
    V bv[Z];
    for (; j + S::lanes <= width; j += S::lanes) {
#pragma GCC unroll 4
      for (int z = 0; z < Z; ++z) {
        __builtin_prefetch(next[z] + j, 0, 2);
        bv[z] = S::load(b[z] + j);
      }
      add(j, bv);
    }
    if (j == width) return;
    for (int z = 0; z < Z; ++z) bv[z] = S::load_first(b[z] + j, width - j);
    add(j, bv);
  }

  // ---- columns of B ---------------------------------------------------------------------------------------------

  // Rows [row, row + count) and columns [col, end) of C. One row is memory-bound, and fastest with one stream; several
  // rows need more columns per load of A.
  static void rows(const GemmProblem<T>& p, int64_t row, int64_t count, int64_t col, int64_t end, const T* a) {
    if (p.M <= 2) return columns<2, 1>(p, row, count, col, end, a);
    if (p.M <= kDotRows) return columns<kDotRows, 2>(p, row, count, col, end, a);
    columns<kDotRows, kManyColumns>(p, row, count, col, end, a);
  }

  template <int R, int C>
  static void columns(const GemmProblem<T>& p, int64_t row, int64_t count, int64_t col, int64_t end, const T* a) {
    if constexpr (R > 1) {
      if (count < R) return columns<R - 1, C>(p, row, count, col, end, a);
    }
    for (; col < end; col += C) {
      const int64_t width = min_of<int64_t>(C, end - col);
      T sums[C][kDotRows];
      dots<R, C>(p, col, width, a, sums);
      for (int64_t j = 0; j < width; ++j)
        for (int i = 0; i < R; ++i) write(p, row + i, col + j, sums[j][i]);
    }
  }

  template <int R, int C>
  [[gnu::noinline]] static void dots(const GemmProblem<T>& p, int64_t col, int64_t width, const T* a,
                                     T (*sums)[kDotRows]) {
    using V = typename S::V;
    constexpr int U = Lane128<T>::size, chains = C > 1 ? 1 : 4;  // enough sums to hide the latency
    // Prefetch distance of B, into the L2 cache. Both figures are measured.
    constexpr int64_t size = sizeof(Stored), ahead = (C > 1 ? kAheadBytes : 4 << 10) / size;
    const int64_t stride = row_packs(p.K);
    BColumn b[C];
#pragma GCC unroll 4
    for (int64_t j = 0; j < C; ++j) b[j] = BColumn(p.b, col + min_of(j, width - 1));
    V acc[chains][C][kDotRows] = {};
    const auto multiply = [&](int chain, const T* x, auto&& column) __attribute__((always_inline)) {
      V bv[C];
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) bv[j] = column(b[j]);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const V av = S::load(x + i * stride);
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) acc[chain][j][i] = Math::add(acc[chain][j][i], av, bv[j]);
      }
    };
    int64_t k = 0;
    for (; k + chains * step <= p.K; k += chains * step, a += chains * S::lanes) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < C * chains * step; i += kVectorBytes / size)
        __builtin_prefetch(b[0].p + C * k + i + ahead, 0, 2);
#pragma GCC unroll 8
      for (int c = 0; c < chains; ++c)
        multiply(c, a + c * S::lanes, [&](const BColumn& from) { return from.at(k + c * step); });
    }
    for (; k + step <= p.K; k += step, a += S::lanes) multiply(0, a, [&](const BColumn& from) { return from.at(k); });
    if (k < p.K) multiply(0, a, [&](const BColumn& from) { return from.first(k, p.K - k); });
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
        for (int c = 1; c < chains; ++c) acc[0][j][i] += acc[c][j][i];
#pragma GCC unroll 4
      for (int i = 0; i < R; i += U) {
        const typename Lane128<T>::V some = sum_lanes<T>(&acc[0][j][i]);
        memcpy(&sums[j][i], &some, sizeof some);
      }
    }
  }
};

}  // namespace st_moe::cpu::ST_MOE_ISA

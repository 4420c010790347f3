#pragma once
#include "cpu/gemm_rows.h"
#include "cpu/processor.h"
#if defined(ST_MOE_AMX)
#include "cpu/gemm_amx.h"
#endif

// A task computes rows × columns of one problem, one block of k after the other. It packs as many rows of A as stay in
// the L2 cache and sweeps them with one packed panel of B after the other, adding into C. Only the partition into tasks
// depends on the number of threads; the sums do not, since the blocks of k depend on K alone.
namespace st_moe::cpu::ST_MOE_ISA {

constexpr int64_t kInPlacePacks = 64;  // A by row, in place, has a memory page for each k: as a TLB holds,
constexpr int64_t kInPlacePanels = 2;  // or for that few panels of B, by k as well
constexpr int64_t kShortPacks = kStepPacks * (kTileRows > 6 ? 5 : 3);  // C comes too late if its own tile prefetches it
constexpr int64_t kSetBytes = 2048;  // rows or columns of A this far apart share too few sets of the L1 cache

// Elements of k in a block: a constant of the instruction set, because it orders the sums. Multiples of 16 packs fill
// whole vectors for every operand type.
template <class Operand>
static inline int64_t block_k(int64_t K) {
  constexpr int64_t longest = TileShape<typename Operand::Element>::block_k * Operand::k_pack / kParts<Operand>;
  const int64_t blocks = ceil_div(K, longest);
  return blocks == 0 ? 0 : ceil_div(ceil_div(K, blocks), 16 * Operand::k_pack) * 16 * Operand::k_pack;
}

template <class Operand>
static inline int64_t block_packs(int64_t K) {
  return packs_of<Operand>(min_of(K, block_k<Operand>(K)));
}

// Offset of column `col` and row `k0` in packed B: whole panels, one block of k after the other.
template <class Operand>
static inline int64_t packed_offset(int64_t N, int64_t k0, int64_t col, int64_t packs) {
  constexpr int64_t cols = TileShape<typename Operand::Element>::cols;
  return (k0 / Operand::k_pack * ceil_div(N, cols) * cols + col * packs) * kParts<Operand>;
}

struct Block {
  int64_t row, rows, col, cols;
};

// Whether `rows` runs of `length` bytes, `stride` apart, crowd into some sets of the L2 cache: one of them has to hold
// half as many again as if they were spread evenly, or more. What is less than a way of the cache has room anyhow.
static inline bool crowd_sets(int64_t rows, int64_t stride, int64_t length) {
  const int64_t way = l2_way_bytes();
  if (rows * length < way) return false;
  int64_t before = 0, behind = 0;  // those in the sets of the first one: begin before it, or as it does or behind
  for (int64_t i = 0, at = 0, step = stride % way; i < rows; ++i) {
    behind += at < length;
    before += at == 0 || at > way - length;
    at += step;
    if (at >= way) at -= way;
  }
  return max_of(before, behind) > 2 + rows * length * 3 / 2 / way;
}

// The partition of one problem.
struct Split {
  int64_t first_task;
  int64_t rows, row_tasks, cols, col_tasks;  // of a task, and how many
  int64_t row_block, col_block;              // packed at a time within a task
};

template <class Operand, class T>
static void fill_block(const GemmProblem<T>& p, const Block& block) {
  if (p.accumulate && !p.bias) return;
  for (int64_t i = block.row; i < block.row + block.rows; ++i)
    for (int64_t j = block.col; j < block.col + block.cols; ++j) {
      const T value = p.bias ? p.bias[j] : T(0);
      if constexpr (!Operand::exact)
        if (p.low_c) {
          Operand::round(&value, reinterpret_cast<uint16_t*>(p.c) + i * p.c_stride + j, 1);
          continue;
        }
      T& c = p.c[i * p.c_stride + j];
      c = p.accumulate ? c + value : value;
    }
}

template <class T>
struct RowPanels {
  const T* data;
  int64_t stride, panel;  // between rows by k, or packs of k by row; and between tiles
  const T* rest;          // the last tile if it is partial, packed
  bool by_k;
};

// `width` columns of B over one block of k.
template <class S>
static inline Prefetch columns_of(const PanelSource<S>& b, int64_t col, int64_t width, int64_t k0, int64_t elements) {
  if (b.along_k()) return Prefetch::of(b.at(col, k0), width, elements, b.w_stride);
  return Prefetch::of(b.data + col * b.w_stride + (b.k_rows ? 0 : k0 * b.k_stride), elements, width, b.k_stride,
                      b.k_rows ? b.k_rows + k0 : nullptr);
}

template <class Operand, class Math>
class Task {
  using T = typename Operand::Element;
  using Shape = TileShape<T>;
  static constexpr int64_t panel_b(int64_t packs) { return Shape::cols * packs * kParts<Operand>; }

  // Calls f with the skinny GEMM that computes the problem, if there is one; whether there is. It is not worth the code
  // for operands that are rounded.
  template <class F>
  static bool as_skinny(const GemmProblem<T>& p, F&& f) {
    const auto try_one = [&](auto gemm) { return gemm.fits(p) && (f(gemm), true); };
    if constexpr (std::is_same_v<T, float> && kParts<Operand> == 1)
      if (is_blocked(p.b.type)) return try_one(SkinnyGemm<Operand, BlockedColumn<Operand>>());
    if constexpr (std::is_same_v<Operand, Exact<float>>) {
      if (p.b.type == DType::bf16) return try_one(SkinnyGemm<Operand, Column<Rounded<DType::bf16>, uint16_t>>());
      if (p.b.type == DType::f16) return try_one(SkinnyGemm<Operand, Column<Rounded<DType::f16>, uint16_t>>());
      return try_one(SkinnyGemm<Operand, Column<Operand, float>>());
    } else if constexpr (dtype_size(low_type<Operand>) == 2) {
      return p.b.type == low_type<Operand> && try_one(SkinnyGemm<Operand, Column<Operand, uint16_t>>());
    }
    return false;
  }

 public:
  struct Size {  // elements that tasks need: packed ones of A and B, and sums of a C that is rounded
    int64_t a = 0, b = 0, c = 0;

    void fit(const GemmProblem<T>& p, const Split& split) {
      if (as_skinny(p, [&](auto gemm) { a = max_of(a, gemm.packed(p)); })) return;
      const int64_t packs = block_packs<Operand>(p.K), row_tiles = ceil_div(split.row_block, Shape::rows);
      a = max_of(a, row_tiles * max_of(Shape::a_panel(true, packs), Shape::a_panel(false, packs)));
      b = max_of(b, (keeps_b(split) ? ceil_div(split.col_block, Shape::cols) : 1) * panel_b(packs));
      if (p.low_c) c = max_of(c, one_block(p) ? split.row_block * Shape::cols : split.rows * split.col_block);
    }
  };

  explicit Task(const Size& size)
      : memory_(size.c + size.b + size.a), c_(memory_.get()), b_(c_ + size.c), a_(b_ + size.b) {}

  void run(const GemmProblem<T>& p, const Split& split, int64_t index) const {
    const int64_t row = index / split.col_tasks * split.rows, col = index % split.col_tasks * split.cols;
    const Block task{row, min_of(split.rows, p.M - row), col, min_of(split.cols, p.N - col)};
    if (p.K == 0) return fill_block<Operand>(p, task);
    if (as_skinny(p, [&](auto gemm) { gemm.run(p, col, col + task.cols, a_); })) return;
    const int64_t step = block_k<Operand>(p.K);
    for (int64_t col0 = 0; col0 < task.cols; col0 += split.col_block)
      for (int64_t k0 = 0; k0 < p.K; k0 += step) {
        const Block block{task.row, task.rows, col + col0, min_of(split.col_block, task.cols - col0)};
        run_block(p, split, block, k0, min_of(step, p.K - k0));
      }
    if (p.stream) stream_fence();
  }

 private:
  static bool keeps_b(const Split& split) { return split.row_block < split.rows; }

  static bool one_block(const GemmProblem<T>& p) { return p.K <= block_k<Operand>(p.K); }

  void run_block(const GemmProblem<T>& p, const Split& split, const Block& block, int64_t k0, int64_t elements) const {
    const PanelSource<T> a{p.a.data, p.a.row_stride, p.a.col_stride, p.a.rows, nullptr, p.K};
    const PanelSource<T> b{p.b.data, p.b.col_stride, p.b.row_stride, nullptr, p.b.rows, p.K};
    const auto pack = [&](int64_t col, int64_t width, T* out) {
      with_weights<Operand>(p.b, p.K,
                            [&](const auto& from) { pack_b_parts<Operand>(from, col, width, k0, elements, out); });
    };
    const int64_t packs = packs_of<Operand>(elements), col_end = block.col + block.cols;
    const bool keeps = keeps_b(split) && !p.packed_b;
    // Reads a panel of B in place if it is used once or twice and has full rows.
    const bool in_place = Operand::exact && p.b.plain() && b.along_w() && !b.k_rows && block.rows <= 2 * Shape::rows;
    if (keeps)
      for (int64_t col = block.col; col < col_end; col += Shape::cols)
        pack(col, min_of<int64_t>(Shape::cols, col_end - col), b_ + (col - block.col) / Shape::cols * panel_b(packs));
    for (int64_t row = block.row; row < block.row + block.rows; row += split.row_block) {
      const Block part{row, min_of(split.row_block, block.row + block.rows - row), block.col, block.cols};
      Tile<T> tile{};
      tile.packs = packs;
      const RowPanels<T> rows = load_rows(a, p.a.low(), part, k0, elements, packs);
      for (int64_t col = part.col; col < col_end; col += Shape::cols) {
        tile.cols = min_of<int64_t>(Shape::cols, col_end - col);
        tile.b_stride = Shape::cols;
        const int64_t next = min_of<int64_t>(Shape::cols, col_end - col - Shape::cols);
        Prefetch prefetch;  // of the next panel
        if (p.packed_b) {
          tile.b = p.packed_b + packed_offset<Operand>(p.N, k0, col, packs);
        } else if (keeps) {
          tile.b = b_ + (col - block.col) / Shape::cols * panel_b(packs);
        } else if (in_place && tile.cols == Shape::cols) {
          tile.b = b.at(col, k0);
          tile.b_stride = b.k_stride;
        } else {
          pack(col, tile.cols, b_);
          tile.b = b_;
          // The next panel, or the first one of the next block of k.
          const int64_t next_col = next > 0 ? col + Shape::cols : block.col, next_k = next > 0 ? k0 : k0 + elements;
          const int64_t width = min_of<int64_t>(Shape::cols, col_end - next_col),
                        count = min_of(elements, p.K - next_k);
          if (!in_place && count > 0)
            with_weights<Operand>(
                p.b, p.K, [&](const auto& from) { prefetch = columns_of(from, next_col, width, next_k, count); });
        }
        if ((p.packed_b || keeps) && next > 0) prefetch = Prefetch::of(tile.b + panel_b(packs), 1, panel_b(packs), 0);
        const bool last = k0 + elements == p.K;
        const Result c = result_of(p, split, block, row, col, last);
        sweep(p, part, k0, rows, tile, c, col, prefetch);
        if (c.low && !stores_rounded(tile)) round_sums(p, c, part.rows, tile.cols);
      }
    }
  }

  // Rows of A in tiles: packed, or in place. The kernel of a partial tile may read a row past its end, so the last tile
  // is always packed.
  RowPanels<T> load_rows(const PanelSource<T>& a, bool low, const Block& part, int64_t k0, int64_t elements,
                         int64_t packs) const {
    const bool transposed = a.along_w() && !a.along_k(), by_k = Shape::only_by_k || !transposed;
    const int64_t whole = part.rows / Shape::rows, stride = by_k ? a.w_stride : a.k_stride;
    const bool few_panels = part.cols <= kInPlacePanels * Shape::cols, few_pages = packs <= kInPlacePacks || few_panels;
    const bool as_packs = Operand::exact ? a.along_k() || (a.along_w() && few_pages)
                                         : Operand::low_in_place && low && a.along_k() && stride % 2 == 0;
    const int64_t in_pack = low ? 2 : 1, pack_bytes = sizeof(T), bytes = stride / in_pack * pack_bytes;
    const bool in_place = as_packs && !a.w_rows && bytes % kSetBytes != 0 &&
                          (!by_k || few_panels || !crowd_sets(part.rows, bytes, packs * pack_bytes));
    const int64_t row = part.row + (in_place ? whole * Shape::rows : 0), count = part.row + part.rows - row;
    with_elements<Operand>(a, low, [&](const auto& from) {
      for_parts<Operand>([&](auto part, int64_t index) {
        using Part = decltype(part);
        T* const to = a_ + index * packs;
#if defined(ST_MOE_AMX)
        if (transposed) return pack_a_transposed<Part>(from, row, count, k0, elements, to);
#endif
        if (by_k) return pack_a_by_k<Part>(from, row, count, k0, elements, to);
        pack_a_by_row<Part>(from, row, count, k0, packs, to);
      });
    });
    if (in_place)
      return {a.data + (part.row * a.w_stride + k0 * a.k_stride) / in_pack, stride / in_pack,
              Shape::rows * a.w_stride / in_pack, a_, by_k};
    const int64_t panel = Shape::a_panel(by_k, packs);
    return {a_, by_k ? Shape::k_stride : Shape::row_width, panel, a_ + whole * panel, by_k};
  }

  static bool stores_rounded(const Tile<T>& tile) { return StoresRounded<Math> && tile.cols == Shape::cols; }

  // Where the sums of some rows of a panel go.
  struct Result {
    T* sums;
    int64_t stride;
    uint16_t* low;  // where they are rounded to after that, or null
  };

  Result result_of(const GemmProblem<T>& p, const Split& split, const Block& block, int64_t row, int64_t col,
                   bool last) const {
    const int64_t at = row * p.c_stride + col;
    if (!p.low_c) return {p.c + at, p.c_stride, nullptr};
    uint16_t* low = last ? reinterpret_cast<uint16_t*>(p.c) + at : nullptr;
    if (one_block(p)) return {c_, Shape::cols, low};
    return {c_ + (row - block.row) * split.col_block + col - block.col, split.col_block, low};
  }

  // One panel of B against the rows.
  static void sweep(const GemmProblem<T>& p, const Block& part, int64_t k0, const RowPanels<T>& rows, Tile<T> tile,
                    const Result& c, int64_t col, Prefetch prefetch) {
    const int64_t tiles = ceil_div(part.rows, Shape::rows);
    prefetch.spread_over(tiles * ceil_div(tile.packs, kStepPacks));
    tile.prefetch = &prefetch;
    tile.a_by_k = rows.by_k;
    tile.bias = k0 == 0 && p.bias ? p.bias + col : nullptr;
    tile.accumulate = k0 > 0 || p.accumulate;
    tile.c_stride = c.stride;
    tile.stream = p.stream && !tile.accumulate && c.stride % Shape::lanes == 0 &&
                  reinterpret_cast<uintptr_t>(c.sums) % kVectorBytes == 0;
    tile.low_stride = p.c_stride;
    const int64_t element = c.low ? sizeof(uint16_t) : sizeof(T);
    tile.next_c_stride = (c.low ? p.c_stride : c.stride) * element;
    tile.next_c_bytes = tile.cols * element;
    for (int64_t i = 0; i < tiles; ++i) {
      tile.rows = min_of<int64_t>(Shape::rows, part.rows - i * Shape::rows);
      const bool whole = tile.rows == Shape::rows;
      tile.a = whole ? rows.data + i * rows.panel : rows.rest;
      tile.a_stride = whole ? rows.stride : rows.by_k ? Shape::k_stride : Shape::row_width;
      tile.c = c.sums + i * Shape::rows * c.stride;
      if (c.low && stores_rounded(tile)) tile.low = c.low + i * Shape::rows * p.c_stride;
      tile.next_c = c.low                      ? as_bytes(c.low + i * Shape::rows * p.c_stride)
                    : tile.packs > kShortPacks ? as_bytes(tile.c)
                    : i + 1 < tiles            ? as_bytes(tile.c + Shape::rows * c.stride)
                                               : as_bytes(c.sums + Shape::cols);
      run_tile<Math>(tile);
    }
  }

  template <class S>
  static const char* as_bytes(const S* p) {
    return reinterpret_cast<const char*>(p);
  }

  static void round_sums(const GemmProblem<T>& p, const Result& c, int64_t rows, int64_t cols) {
    if constexpr (!Operand::exact)
      for (int64_t i = 0; i < rows; ++i) Operand::round(c.sums + i * c.stride, c.low + i * p.c_stride, cols);
  }

  Scratch<T> memory_;  // one block, which is on a huge page if it is large
  T *const c_, *const b_, *const a_;
  [[maybe_unused]] typename Math::Configuration configuration_;
};

}  // namespace st_moe::cpu::ST_MOE_ISA

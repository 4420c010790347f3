#include "cpu/gemm.h"

#if defined(ST_MOE_AMX)
#include "cpu/gemm_amx.h"
#endif
#include "cpu/gemm_rows.h"
#include "cpu/processor.h"

// A task computes rows × columns of one problem, one block of k after the other. It packs as many rows of A as stay in
// the L2 cache and sweeps them with one packed panel of B after the other, adding into C. Only the partition into tasks
// depends on the number of threads; the sums do not, since the blocks of k depend on K alone.
namespace st_moe::cpu::ST_MOE_ISA {
namespace {

constexpr double kSerialFlops = 5e5;  // below, waking threads costs more than it saves
constexpr double kChunkFlops = 2e5;   // the least work per index of the pool
constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kLeastTiles = 4;              // rows and columns of a task, in tiles: with less, packing dominates
constexpr int64_t kColumnBlockBytes = 4 << 20;  // packed columns of B that several blocks of rows read, slowly
constexpr int64_t kMaxRowTiles = 96;
constexpr int64_t kInPlacePacks = 64;  // A by row, in place, has a memory page for each k: as a TLB holds,
constexpr int64_t kInPlacePanels = 4;  // or for that few panels of B
constexpr int64_t kShortPacks = kStepPacks * (kTileRows > 6 ? 5 : 3);  // C comes too late if its own tile prefetches it
constexpr int64_t kSetBytes = 2048;  // rows or columns of A this far apart share too few sets of the L1 cache

// Packed rows of A that stay in the L2 cache. A guest may be told a size that the machine does not have.
int64_t row_block_bytes() {
  return max_of<int64_t>(512 << 10, min_of<int64_t>(2 << 20, l2_bytes())) * 2 / 3;
}

// Elements of k in a block: the same on every processor, because it orders the sums. Multiples of 16 packs fill whole
// vectors for every operand type.
template <class Operand>
int64_t block_k(int64_t K) {
  constexpr int64_t longest = TileShape<typename Operand::Element>::block_k * Operand::k_pack;
  const int64_t blocks = ceil_div(K, longest);
  return blocks == 0 ? 0 : ceil_div(ceil_div(K, blocks), 16 * Operand::k_pack) * 16 * Operand::k_pack;
}

template <class Operand>
int64_t block_packs(int64_t K) {
  return packs_of<Operand>(min_of(K, block_k<Operand>(K)));
}

// Offset of column `col` and row `k0` in packed B: whole panels, one block of k after the other.
template <class Operand>
int64_t packed_offset(int64_t N, int64_t k0, int64_t col, int64_t packs) {
  constexpr int64_t cols = TileShape<typename Operand::Element>::cols;
  return k0 / Operand::k_pack * ceil_div(N, cols) * cols + col * packs;
}

struct Block {
  int64_t row, rows, col, cols;
};

// The partition of one problem.
struct Split {
  int64_t first_task;
  int64_t rows, row_tasks, cols, col_tasks;  // of a task, and how many
  int64_t row_block, col_block;              // packed at a time within a task
};

template <class T>
void fill_block(const GemmProblem<T>& p, const Block& block) {
  if (p.accumulate && !p.bias) return;
  for (int64_t i = block.row; i < block.row + block.rows; ++i)
    for (int64_t j = block.col; j < block.col + block.cols; ++j) {
      const T value = p.bias ? p.bias[j] : T(0);
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
template <class T>
Prefetch<T> columns_of(const PanelSource<T>& b, int64_t col, int64_t width, int64_t k0, int64_t elements) {
  if (b.along_k()) return {b.at(col, k0), width, elements, b.w_stride};
  return {b.data + col * b.w_stride + (b.k_rows ? 0 : k0 * b.k_stride), elements, width, b.k_stride,
          b.k_rows ? b.k_rows + k0 : nullptr};
}

template <class Operand, class Math>
class Task {
  using T = typename Operand::Element;
  using Shape = TileShape<T>;
  using Skinny = SkinnyGemm<T>;
  static constexpr bool exact = std::is_same_v<Operand, Exact<T>>;
  static constexpr bool skinny = std::is_same_v<Operand, Exact<float>>;  // for other operands it is not worth the code

 public:
  struct Size {  // packed elements of A and B that tasks need
    int64_t a = 0, b = 0;

    void fit(const GemmProblem<T>& p, const Split& split) {
      if constexpr (skinny)
        if (Skinny::fits(p)) return void(a = max_of(a, Skinny::packed(p)));
      const int64_t packs = block_packs<Operand>(p.K), row_tiles = ceil_div(split.row_block, Shape::rows);
      a = max_of(a, row_tiles * max_of(Shape::a_panel(true, packs), Shape::a_panel(false, packs)));
      b = max_of(b, (keeps_b(split) ? ceil_div(split.col_block, Shape::cols) : 1) * Shape::cols * packs);
    }
  };

  explicit Task(const Size& size) : memory_(size.b + size.a), a_(memory_.get() + size.b), b_(memory_.get()) {}

  void run(const GemmProblem<T>& p, const Split& split, int64_t index) const {
    const int64_t row = index / split.col_tasks * split.rows, col = index % split.col_tasks * split.cols;
    const Block task{row, min_of(split.rows, p.M - row), col, min_of(split.cols, p.N - col)};
    if (p.K == 0) return fill_block(p, task);
    if constexpr (skinny)
      if (Skinny::fits(p)) return Skinny::run(p, col, col + task.cols, a_);
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

  void run_block(const GemmProblem<T>& p, const Split& split, const Block& block, int64_t k0, int64_t elements) const {
    const PanelSource<T> a{p.a.data, p.a.row_stride, p.a.col_stride, p.a.rows, nullptr, p.K};
    const PanelSource<T> b{p.b.data, p.b.col_stride, p.b.row_stride, nullptr, p.b.rows, p.K};
    const int64_t packs = packs_of<Operand>(elements), col_end = block.col + block.cols;
    const bool keeps = keeps_b(split) && !p.packed_b;
    // Reads a panel of B in place if it is used once or twice and has full rows.
    const bool in_place = exact && b.along_w() && !b.k_rows && block.rows <= 2 * Shape::rows;
    if (keeps)
      for (int64_t col = block.col; col < col_end; col += Shape::cols)
        pack_b<Operand>(b, col, min_of<int64_t>(Shape::cols, col_end - col), k0, elements,
                        b_ + (col - block.col) * packs);
    for (int64_t row = block.row; row < block.row + block.rows; row += split.row_block) {
      const Block part{row, min_of(split.row_block, block.row + block.rows - row), block.col, block.cols};
      Tile<T> tile{};
      tile.packs = packs;
      const RowPanels<T> rows = load_rows(a, part, k0, elements, packs);
      for (int64_t col = part.col; col < col_end; col += Shape::cols) {
        tile.cols = min_of<int64_t>(Shape::cols, col_end - col);
        tile.b_stride = Shape::cols;
        const int64_t next = min_of<int64_t>(Shape::cols, col_end - col - Shape::cols);
        Prefetch<T> prefetch;  // of the next panel
        if (p.packed_b) {
          tile.b = p.packed_b + packed_offset<Operand>(p.N, k0, col, packs);
        } else if (keeps) {
          tile.b = b_ + (col - block.col) * packs;
        } else if (in_place && tile.cols == Shape::cols) {
          tile.b = b.at(col, k0);
          tile.b_stride = b.k_stride;
        } else {
          pack_b<Operand>(b, col, tile.cols, k0, elements, b_);
          tile.b = b_;
          if (!in_place && next > 0) prefetch = columns_of(b, col + Shape::cols, next, k0, elements);
        }
        if ((p.packed_b || keeps) && next > 0) prefetch = {tile.b + Shape::cols * packs, 1, Shape::cols * packs};
        sweep(p, part, k0, rows, tile, col, prefetch);
      }
    }
  }

  // Rows of A in tiles: packed, or in place. The kernel of a partial tile may read a row past its end, so the last tile
  // is always packed.
  RowPanels<T> load_rows(const PanelSource<T>& a, const Block& part, int64_t k0, int64_t elements,
                         int64_t packs) const {
    const bool transposed = a.along_w() && !a.along_k(), by_k = Shape::only_by_k || !transposed;
    const int64_t whole = part.rows / Shape::rows, stride = by_k ? a.w_stride : a.k_stride;
    const bool few_pages = packs <= kInPlacePacks || part.cols <= kInPlacePanels * Shape::cols;
    const bool in_place = exact && (a.along_k() || (a.along_w() && few_pages)) && !a.w_rows &&
                          stride * static_cast<int64_t>(sizeof(T)) % kSetBytes != 0;
    const int64_t row = part.row + (in_place ? whole * Shape::rows : 0), count = part.row + part.rows - row;
#if defined(ST_MOE_AMX)
    if (transposed)
      pack_a_transposed<Operand>(a, row, count, k0, elements, a_);
    else
#endif
        if (by_k)
      pack_a_by_k<Operand>(a, row, count, k0, elements, a_);
    else
      pack_a_by_row<Operand>(a, row, count, k0, packs, a_);
    if (in_place) return {a.at(part.row, k0), stride, Shape::rows * a.w_stride, a_, by_k};
    const int64_t panel = Shape::a_panel(by_k, packs);
    return {a_, by_k ? Shape::k_stride : Shape::row_width, panel, a_ + whole * panel, by_k};
  }

  // One panel of B against the rows.
  static void sweep(const GemmProblem<T>& p, const Block& part, int64_t k0, const RowPanels<T>& rows, Tile<T> tile,
                    int64_t col, Prefetch<T> prefetch) {
    const int64_t tiles = ceil_div(part.rows, Shape::rows);
    prefetch.spread_over(tiles * ceil_div(tile.packs, kStepPacks));
    tile.prefetch = &prefetch;
    tile.a_by_k = rows.by_k;
    tile.bias = k0 == 0 && p.bias ? p.bias + col : nullptr;
    tile.accumulate = k0 > 0 || p.accumulate;
    tile.c_stride = p.c_stride;
    tile.stream = p.stream && !tile.accumulate && p.c_stride % Shape::lanes == 0 &&
                  reinterpret_cast<uintptr_t>(p.c + col) % kVectorBytes == 0;
    T* const c = p.c + part.row * p.c_stride + col;
    for (int64_t i = 0; i < tiles; ++i) {
      tile.rows = min_of<int64_t>(Shape::rows, part.rows - i * Shape::rows);
      const bool whole = tile.rows == Shape::rows;
      tile.a = whole ? rows.data + i * rows.panel : rows.rest;
      tile.a_stride = whole ? rows.stride : rows.by_k ? Shape::k_stride : Shape::row_width;
      tile.c = c + i * Shape::rows * p.c_stride;
      tile.next_c = tile.packs > kShortPacks ? tile.c
                    : i + 1 < tiles          ? tile.c + Shape::rows * p.c_stride
                                             : c + Shape::cols;
      run_tile<Math>(tile);
    }
  }

  Scratch<T> memory_;  // one block, which is on a huge page if it is large
  T *const a_, *const b_;
  [[maybe_unused]] typename Math::Configuration configuration_;
};

// The partition into `wanted` tasks that packs least: rows of A once per column of tasks, columns of B once per row.
template <class Operand>
Split split_problem(const GemmProblem<typename Operand::Element>& p, int64_t first_task, int64_t wanted) {
  using T = typename Operand::Element;
  using Shape = TileShape<T>;
  if (p.M <= 0 || p.N <= 0) return {first_task, 0, 0, 0, 0, 0, 0};
  const int64_t row_tiles = ceil_div(p.M, Shape::rows), col_tiles = ceil_div(p.N, Shape::cols);
  // Fewer than two tasks per thread: smaller ones pack more, but no thread waits long for another.
  const int64_t tasks = ceil_div(row_tiles, kLeastTiles) * ceil_div(col_tiles, kLeastTiles);
  const int64_t least = tasks * kTasksPerThread < 2 * wanted ? kLeastTiles / 2 : kLeastTiles;
  const int64_t most_cols = ceil_div(col_tiles, least);
  const int64_t most_rows = p.M > kSkinnyRows ? ceil_div(row_tiles, least) : 1;  // SkinnyGemm takes all rows
  int64_t best_rows = 1, best_cols = 1, best = INT64_MAX;
  for (int64_t rows = 1; rows <= min_of(wanted, most_rows); ++rows) {
    const int64_t cols = min_of(ceil_div(wanted, rows), most_cols);
    const int64_t missing = wanted - min_of(wanted, rows * cols), packed = cols * p.M + rows * p.N;
    const int64_t cost = packed + missing * (p.M + p.N);
    if (cost < best) best = cost, best_rows = rows, best_cols = cols;
  }
  Split split{first_task, 0, 0, 0, 0, 0, 0};
  split.rows = ceil_div(row_tiles, best_rows) * Shape::rows;
  split.cols = ceil_div(col_tiles, best_cols) * Shape::cols;
  split.row_tasks = ceil_div(p.M, split.rows);
  split.col_tasks = ceil_div(p.N, split.cols);
  const int64_t pack_bytes = max_of<int64_t>(1, block_packs<Operand>(p.K)) * static_cast<int64_t>(sizeof(T));
  const bool a_by_k = Shape::only_by_k || p.a.col_stride == 1;
  const int64_t fitting = row_block_bytes() / (a_by_k ? Shape::a_panel(true, 0) * static_cast<int64_t>(sizeof(T))
                                                      : Shape::row_width * pack_bytes);
  const int64_t limit = max_of<int64_t>(1, min_of(kMaxRowTiles, fitting)) * Shape::rows;
  split.row_block = ceil_div(ceil_div(split.rows, ceil_div(split.rows, limit)), Shape::rows) * Shape::rows;
  const int64_t columns = max_of<int64_t>(1, kColumnBlockBytes / (Shape::cols * pack_bytes)) * Shape::cols;
  split.col_block = split.row_block < split.rows ? min_of(split.cols, columns) : split.cols;
  return split;
}

// Index of the problem that contains the task.
int64_t find_problem(const Split* splits, int64_t count, int64_t task) {
  int64_t low = 0, high = count;  // splits[low].first_task <= task < splits[high].first_task
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (splits[middle].first_task <= task ? low : high) = middle;
  }
  return low;
}

template <class Operand, class Math>
void run_problems(const Context& ctx, const GemmProblem<typename Operand::Element>* problems, int64_t count) {
  using T = typename Operand::Element;
  const auto flops_of = [](const GemmProblem<T>& p) {
    return 2.0 * static_cast<double>(p.M) * static_cast<double>(p.N) * static_cast<double>(max_of<int64_t>(p.K, 1));
  };
  double flops = 0;
  for (int64_t i = 0; i < count; ++i) flops += flops_of(problems[i]);
  const Context used{flops < kSerialFlops ? 1 : ctx.threads, ctx.stream};

  Scratch<Split> splits(count);
  typename Task<Operand, Math>::Size size;
  int64_t tasks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double share = flops > 0 ? flops_of(problems[i]) / flops : 0;
    const double wanted = share * static_cast<double>(kTasksPerThread * used.threads);
    splits[i] =
        split_problem<Operand>(problems[i], tasks, used.threads > 1 ? static_cast<int64_t>(wanted - 1e-6) + 1 : 1);
    tasks += splits[i].row_tasks * splits[i].col_tasks;
    size.fit(problems[i], splits[i]);
  }
  if (tasks == 0) return;
  const int64_t chunk =
      used.threads > 1 ? static_cast<int64_t>(static_cast<double>(tasks) * (kChunkFlops / flops)) + 1 : tasks;
  parallel_blocks(used, tasks, chunk, [&](int64_t begin, int64_t end) {
    const Task<Operand, Math> task(size);
    int64_t i = find_problem(splits.get(), count, begin);
    for (int64_t t = begin; t < end; ++t) {
      while (i + 1 < count && splits[i + 1].first_task <= t) ++i;
      task.run(problems[i], splits[i], t - splits[i].first_task);
    }
  });
}

template <class Operand, class T>
void pack_matrices(const Context& ctx, const PanelSource<T>& first, int64_t batch, int64_t batch_stride, int64_t N,
                   T* out) {
  constexpr int64_t cols = TileShape<T>::cols;
  const int64_t panels = ceil_div(N, cols), step = block_k<Operand>(first.K);
  const int64_t size = packed_offset<Operand>(N, packs_of<Operand>(first.K) * Operand::k_pack, 0, 0);
  parallel_for(ctx, batch * panels, [&](int64_t i) {
    const int64_t col = i % panels * cols;
    PanelSource<T> source = first;
    source.data += i / panels * batch_stride;
    for (int64_t k0 = 0; k0 < source.K; k0 += step) {
      const int64_t elements = min_of(step, source.K - k0);
      T* to = out + i / panels * size + packed_offset<Operand>(N, k0, col, packs_of<Operand>(elements));
      pack_b<Operand>(source, col, min_of(cols, N - col), k0, elements, to);
    }
  });
}

}  // namespace

#if defined(ST_MOE_BF16_GEMM)

const Bf16Gemm& bf16_gemm() {
  using Operand = Bf16Pairs;
#if defined(ST_MOE_AMX)
  using Math = AmxPairs;
#else
  using Math = MultiplyPairs;
#endif
  static constexpr Bf16Gemm gemm{
      [](int64_t K, int64_t N) { return packed_offset<Operand>(N, packs_of<Operand>(K) * Operand::k_pack, 0, 0); },
      [](const Context& ctx, const MatrixView<float>& b, int64_t batch, int64_t batch_stride, int64_t K, int64_t N,
         float* out) {
        pack_matrices<Operand>(ctx, PanelSource<float>{b.data, b.col_stride, b.row_stride, nullptr, b.rows, K}, batch,
                               batch_stride, N, out);
      },
      run_problems<Operand, Math>};
  return gemm;
}

#else

static const Bf16Gemm* bf16_gemm_of(const Context& ctx, DType compute) {
  return compute == DType::bf16 ? static_cast<const Bf16Gemm*>(ctx.stream) : nullptr;
}

template <class T>
int64_t packed_size(const Context& ctx, int64_t K, int64_t N, DType compute) {
  const Bf16Gemm* bf16 = bf16_gemm_of(ctx, compute);
  return bf16 ? bf16->packed_size(K, N) : 0;  // float32 copies would double the memory for a few percent
}

template <class T>
void pack_weights(const Context& ctx, const MatrixView<T>& b, int64_t batch, int64_t batch_stride, int64_t K, int64_t N,
                  DType compute, T* out) {
  if constexpr (std::is_same_v<T, float>)
    bf16_gemm_of(ctx, compute)->pack_weights(ctx, b, batch, batch_stride, K, N, out);
}

template <class T>
void gemm(const Context& ctx, const GemmProblem<T>* problems, int64_t count, DType compute) {
  if (count <= 0) return;
  if constexpr (std::is_same_v<T, float>) {
    if (compute == DType::f16) return run_problems<Rounded<DType::f16>, Multiply<float>>(ctx, problems, count);
    if (const Bf16Gemm* bf16 = bf16_gemm_of(ctx, compute)) return bf16->run(ctx, problems, count);
    if (compute == DType::bf16) return run_problems<Rounded<DType::bf16>, Multiply<float>>(ctx, problems, count);
  }
  run_problems<Exact<T>, Multiply<T>>(ctx, problems, count);
}

template <class T>
void gemm_serial(const GemmProblem<T>& p) {
  if (p.M <= 0 || p.N <= 0) return;
  const Split split = split_problem<Exact<T>>(p, 0, 1);
  typename Task<Exact<T>, Multiply<T>>::Size size;
  size.fit(p, split);
  const Task<Exact<T>, Multiply<T>> task(size);
  for (int64_t t = 0; t < split.row_tasks * split.col_tasks; ++t) task.run(p, split, t);
}

template void gemm<float>(const Context&, const GemmProblem<float>*, int64_t, DType);
template void gemm<double>(const Context&, const GemmProblem<double>*, int64_t, DType);
template void gemm_serial<float>(const GemmProblem<float>&);
template void gemm_serial<double>(const GemmProblem<double>&);
template int64_t packed_size<float>(const Context&, int64_t, int64_t, DType);
template int64_t packed_size<double>(const Context&, int64_t, int64_t, DType);
template void pack_weights<float>(const Context&, const MatrixView<float>&, int64_t, int64_t, int64_t, int64_t, DType,
                                  float*);
template void pack_weights<double>(const Context&, const MatrixView<double>&, int64_t, int64_t, int64_t, int64_t, DType,
                                   double*);

#endif

}  // namespace st_moe::cpu::ST_MOE_ISA

#include "cpu/gemm.h"

#include "cpu/gemm_kernel.h"

// A task computes a block of rows × columns of one problem: for each block of k it packs its rows of A, then sweeps
// all of them with one packed panel of B after the other, adding into C. Only the partition into tasks depends on
// the number of threads; the sums do not, since the blocks of k depend on K alone.
namespace st_moe::cpu::ST_MOE_ISA {
namespace {

constexpr double kSerialFlops = 5e5;  // below, waking threads costs more than they bring
constexpr double kChunkFlops = 2e5;   // the least work worth an index of its own in the pool
constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kLeastTiles = 4;  // rows and columns of a task, in tiles: less and packing dominates

// Rows of a task at most: with block_k they take about 3/4 of an L2 cache of 1 MiB.
constexpr int64_t kBlockRows = 336 / kTileRows * kTileRows;

template <class T>
int64_t block_k(int64_t K) {
  const int64_t blocks = ceil_div(K, TileShape<T>::block_k);
  return ceil_div(ceil_div(K, blocks), 16) * 16;
}

template <class T>
struct Workspace {  // packed operands of one task
  explicit Workspace(int64_t rows, int64_t kc)
      : a(ceil_div(rows, kTileRows) * TileShape<T>::row_width * kc), b(TileShape<T>::cols * kc) {}
  Scratch<T> a, b;
};

template <class T>
struct Block {
  int64_t row, rows, col, cols;
};

template <class T>
void fill_block(const GemmProblem<T>& p, const Block<T>& block) {
  if (p.accumulate && !p.bias) return;
  for (int64_t i = block.row; i < block.row + block.rows; ++i)
    for (int64_t j = block.col; j < block.col + block.cols; ++j) {
      const T value = p.bias ? p.bias[j] : T(0);
      T& c = p.c[i * p.c_stride + j];
      c = p.accumulate ? c + value : value;
    }
}

// Asks for parts of the panel of B that is packed next while the present one is swept: packing would wait for memory.
template <class T>
struct Prefetch {
  const PanelSource<T>* source;
  int64_t w0, width, k0, kc;

  // Part `index` of `parts`.
  void operator()(int64_t index, int64_t parts) const {
    if (width <= 0) return;
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    const bool along_k = source->k_stride == 1;
    const int64_t runs = along_k ? width : kc, length = along_k ? kc : width;
    for (int64_t run = runs * index / parts; run < runs * (index + 1) / parts; ++run) {
      const T* p = along_k ? source->at(w0 + run, k0) : source->at(w0, k0 + run);
      for (int64_t i = 0; i < length; i += line) __builtin_prefetch(p + i, 0, 2);
      __builtin_prefetch(p + length - 1, 0, 2);
    }
  }
};

// One panel of B against all packed rows.
template <class T>
void sweep_rows(const GemmProblem<T>& p, const Block<T>& block, int64_t k0, Tile<T> tile, int64_t col,
                const Prefetch<T>& prefetch) {
  using Shape = TileShape<T>;
  const T* a = tile.a;
  tile.bias = k0 == 0 && p.bias ? p.bias + col : nullptr;
  tile.accumulate = k0 > 0 || p.accumulate;
  tile.c_stride = p.c_stride;
  const int64_t tiles = ceil_div(block.rows, Shape::rows);
  for (int64_t i = 0; i < tiles; ++i) {
    prefetch(i, tiles);
    tile.a = a + i * Shape::row_width * tile.kc;
    tile.rows = min_of<int64_t>(Shape::rows, block.rows - i * Shape::rows);
    tile.c = p.c + (block.row + i * Shape::rows) * p.c_stride + col;
    run_tile(tile);
  }
}

template <class T>
void compute_block(const GemmProblem<T>& p, const Block<T>& block, const Workspace<T>& work, DType compute) {
  using Shape = TileShape<T>;
  if (p.K == 0) return fill_block(p, block);
  const PanelSource<T> a{p.a.data, p.a.row_stride, p.a.col_stride, p.a.rows, nullptr};
  const PanelSource<T> b{p.b.data, p.b.col_stride, p.b.row_stride, nullptr, p.b.rows};
  // A panel of B that is used once or twice and has whole rows is read where it is.
  const bool in_place = b.w_stride == 1 && !b.k_rows && block.rows <= 2 * Shape::rows && compute == dtype_of<T>;
  const int64_t step = block_k<T>(p.K);
  for (int64_t k0 = 0; k0 < p.K; k0 += step) {
    const int64_t kc = min_of(step, p.K - k0);
    for (int64_t i = 0; i < block.rows; i += Shape::rows) {
      const int64_t width = min_of<int64_t>(Shape::row_width, p.M - block.row - i);
      pack_panel<T, Shape::row_width>(a, block.row + i, width, k0, kc,
                                      work.a.get() + i / Shape::rows * Shape::row_width * kc);
      round_panel(work.a.get() + i / Shape::rows * Shape::row_width * kc, Shape::row_width * kc, compute);
    }
    for (int64_t col = block.col; col < block.col + block.cols; col += Shape::cols) {
      const int64_t width = min_of<int64_t>(Shape::cols, block.col + block.cols - col);
      Tile<T> tile{};
      tile.kc = kc;
      tile.a = work.a.get();
      tile.cols = width;
      if (in_place && width == Shape::cols) {
        tile.b = b.at(col, k0);
        tile.b_stride = b.k_stride;
      } else {
        pack_panel<T, Shape::cols>(b, col, width, k0, kc, work.b.get());
        round_panel(work.b.get(), Shape::cols * kc, compute);
        tile.b = work.b.get();
        tile.b_stride = Shape::cols;
      }
      const int64_t next = col + Shape::cols, ahead = min_of<int64_t>(Shape::cols, block.col + block.cols - next);
      sweep_rows(p, block, k0, tile, col, {&b, next, in_place ? 0 : ahead, k0, kc});
    }
  }
}

template <class T>
struct Split {  // of one problem into tasks
  int64_t first_task;
  int64_t row_block, row_blocks, col_block, col_blocks;
};

template <class T>
Split<T> split_problem(const GemmProblem<T>& p, int64_t first_task, int64_t wanted) {
  using Shape = TileShape<T>;
  if (p.M <= 0 || p.N <= 0) return {first_task, 0, 0, 0, 0};
  const int64_t row_tiles = ceil_div(p.M, Shape::rows), col_tiles = ceil_div(p.N, Shape::cols);
  int64_t row_blocks = ceil_div(p.M, kBlockRows), col_blocks = 1;
  if (row_blocks < wanted) col_blocks = min_of(ceil_div(wanted, row_blocks), ceil_div(col_tiles, kLeastTiles));
  if (row_blocks * col_blocks < wanted)
    row_blocks = max_of(row_blocks, min_of(ceil_div(wanted, col_blocks), ceil_div(row_tiles, kLeastTiles)));
  const int64_t row_block = ceil_div(row_tiles, row_blocks) * Shape::rows;
  const int64_t col_block = ceil_div(col_tiles, col_blocks) * Shape::cols;
  return {first_task, row_block, ceil_div(p.M, row_block), col_block, ceil_div(p.N, col_block)};
}

template <class T>
void run_task(const GemmProblem<T>& p, const Split<T>& split, int64_t task, const Workspace<T>& work, DType compute) {
  const int64_t row = (task - split.first_task) / split.col_blocks * split.row_block;
  const int64_t col = (task - split.first_task) % split.col_blocks * split.col_block;
  compute_block(p, {row, min_of(split.row_block, p.M - row), col, min_of(split.col_block, p.N - col)}, work, compute);
}

// Index of the problem that holds the task.
template <class T>
int64_t find_problem(const Split<T>* splits, int64_t count, int64_t task) {
  int64_t low = 0, high = count;  // splits[low].first_task <= task < splits[high].first_task
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (splits[middle].first_task <= task ? low : high) = middle;
  }
  return low;
}

}  // namespace

template <class T>
void gemm(const Context& ctx, const GemmProblem<T>* problems, int64_t count, DType compute) {
  if (count <= 0) return;
  double flops = 0;
  const auto flops_of = [](const GemmProblem<T>& p) {
    return 2.0 * static_cast<double>(p.M) * static_cast<double>(p.N) * static_cast<double>(max_of<int64_t>(p.K, 1));
  };
  for (int64_t i = 0; i < count; ++i) flops += flops_of(problems[i]);
  const Context used{flops < kSerialFlops ? 1 : ctx.threads, ctx.stream};

  Scratch<Split<T>> splits(count);
  int64_t tasks = 0, rows = 0, kc = 0;
  for (int64_t i = 0; i < count; ++i) {
    const GemmProblem<T>& p = problems[i];
    const double share = flops > 0 ? flops_of(p) / flops : 0;
    const double wanted = share * static_cast<double>(kTasksPerThread * used.threads);
    splits[i] = split_problem(p, tasks, used.threads > 1 ? static_cast<int64_t>(wanted - 1e-6) + 1 : 1);
    tasks += splits[i].row_blocks * splits[i].col_blocks;
    rows = max_of(rows, min_of(splits[i].row_block, p.M));
    if (p.K > 0) kc = max_of(kc, block_k<T>(p.K));
  }
  if (tasks == 0) return;
  const int64_t chunk =
      used.threads > 1 ? static_cast<int64_t>(static_cast<double>(tasks) * (kChunkFlops / flops)) + 1 : tasks;
  parallel_blocks(used, tasks, chunk, [&](int64_t begin, int64_t end) {
    const Workspace<T> work(rows, kc);
    int64_t i = find_problem(splits.get(), count, begin);
    for (int64_t task = begin; task < end; ++task) {
      while (i + 1 < count && splits[i + 1].first_task <= task) ++i;
      run_task(problems[i], splits[i], task, work, compute);
    }
  });
}

template <class T>
void gemm_serial(const GemmProblem<T>& p) {
  if (p.M <= 0 || p.N <= 0) return;
  const Split<T> split = split_problem(p, 0, 1);
  const Workspace<T> work(min_of(split.row_block, p.M), p.K > 0 ? block_k<T>(p.K) : 0);
  for (int64_t task = 0; task < split.row_blocks * split.col_blocks; ++task)
    run_task(p, split, task, work, dtype_of<T>);
}

template void gemm<float>(const Context&, const GemmProblem<float>*, int64_t, DType);
template void gemm<double>(const Context&, const GemmProblem<double>*, int64_t, DType);
template void gemm_serial<float>(const GemmProblem<float>&);
template void gemm_serial<double>(const GemmProblem<double>&);

}  // namespace st_moe::cpu::ST_MOE_ISA

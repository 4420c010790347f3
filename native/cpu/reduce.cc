#include "core/ops/reductions.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

// x [outer, axis] → y [outer]. Splits long rows into blocks, whose sums are added in double.
template <class T>
static void reduce_rows(const Context& ctx, const ReduceArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const int64_t block = 2 * kElementBlock, blocks = ceil_div(args.axis, block);
  if (blocks <= 1) {
    const int64_t rows = max_of<int64_t>(1, kElementBlock / max_of<int64_t>(1, args.axis));
    return parallel_blocks(ctx, args.outer, rows, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) y[o] = static_cast<T>(args.factor * wide_sum(x + o * args.axis, args.axis));
    });
  }
  Scratch<double> partial(args.outer * blocks);
  parallel_for(ctx, args.outer * blocks, [&](int64_t task) {
    const int64_t o = task / blocks, first = task % blocks * block;
    partial[task] = wide_sum(x + o * args.axis + first, min_of(block, args.axis - first));
  });
  for (int64_t o = 0; o < args.outer; ++o)
    y[o] = static_cast<T>(args.factor * wide_sum(partial.get() + o * blocks, blocks));
}

constexpr int64_t kColumns = 512;  // that one task of reduce_columns sums

// sum [n] = Σ over `rows` rows of x, which are `stride` apart; n ≤ kColumns
template <class T>
static void sum_columns(const T* __restrict x, int64_t rows, int64_t stride, int64_t n, double* __restrict sum) {
  for (int64_t j = 0; j < n; ++j) sum[j] = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < n; ++j) sum[j] += static_cast<double>(x[r * stride + j]);
}

// x [outer, axis, inner] → y [outer, inner]. Splits rows into blocks if columns alone give too few tasks.
template <class T>
static void reduce_columns(const Context& ctx, const ReduceArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const int64_t inner = args.inner, axis = args.axis, chunks = ceil_div(inner, kColumns);
  const int64_t rows = args.outer * chunks >= kRowBlocks ? axis : max_of<int64_t>(64, ceil_div(axis, kRowBlocks));
  const int64_t blocks = rows == 0 ? 1 : max_of<int64_t>(1, ceil_div(axis, rows));
  Scratch<double> partial(blocks > 1 ? args.outer * blocks * inner : 0);
  const auto task_of = [&](int64_t task) {
    const int64_t first = task % chunks * kColumns, b = task / chunks % blocks, o = task / chunks / blocks;
    const int64_t n = min_of(kColumns, inner - first);
    const T* from = x + (o * axis + b * rows) * inner + first;
    const int64_t count = min_of(rows, axis - b * rows);
    if (blocks > 1) return sum_columns(from, count, inner, n, partial.get() + (o * blocks + b) * inner + first);
    double sum[kColumns];
    sum_columns(from, count, inner, n, sum);
    for (int64_t j = 0; j < n; ++j) y[o * inner + first + j] = static_cast<T>(args.factor * sum[j]);
  };
  // Small sums stay on the calling thread: tasks are grouped until they are worth handing over.
  const int64_t tasks = args.outer * blocks * chunks;
  const int64_t work = max_of<int64_t>(1, rows * min_of(kColumns, inner));
  parallel_blocks(ctx, tasks, max_of<int64_t>(1, kElementBlock / work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) task_of(task);
  });
  if (blocks <= 1) return;
  for (int64_t i = 0; i < args.outer * inner; ++i) {
    const double* column = partial.get() + i / inner * blocks * inner + i % inner;
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += column[b * inner];
    y[i] = static_cast<T>(args.factor * sum);
  }
}

void reduce(const Context& ctx, const ReduceArgs& args) {
  if (args.outer == 0 || args.inner == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.inner == 1) return reduce_rows<T>(ctx, args);
    reduce_columns<T>(ctx, args);
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

#include "cpu/gemm.h"

#include "cpu/gemm_task.h"
#include "cpu/processor.h"
#include "cpu/subnormals.h"

namespace st_moe::cpu::ST_MOE_ISA {
namespace {

constexpr double kSerialFlops = 5e5;  // below, waking threads costs more than it saves
constexpr double kChunkFlops = 2e5;   // the least work per index of the pool
// Smaller tasks pack more, larger ones leave a thread waiting for a slower one. Packing costs few threads little.
constexpr int64_t kTasksPerThread = 8, kTasksPerFewThreads = 16;
constexpr int kFewThreads = 4;
constexpr int64_t kLeastTiles = 4;              // rows and columns of a task, in tiles: with less, packing dominates
constexpr int64_t kColumnBlockBytes = 4 << 20;  // packed columns of B that several blocks of rows read, slowly
constexpr int64_t kMaxRowTiles = 96;

// Packed rows of A that stay in the L2 cache: two thirds of it, or half of a larger one, since the other hyperthread of
// the core may use it, too.
int64_t row_block_bytes() {
  constexpr int64_t kLeast = 512 << 10, kLarge = 1 << 20;
  return max_of(max_of(kLeast, min_of(kLarge, l2_bytes())) * 2 / 3, l2_bytes() / 2);
}

// The partition into `wanted` tasks that packs least: rows of A once per column of tasks, columns of B once per row.
template <class Operand>
Split split_problem(const GemmProblem<typename Operand::Element>& p, int64_t first_task, int64_t wanted,
                    int64_t per_thread) {
  using T = typename Operand::Element;
  using Shape = TileShape<T>;
  if (p.M <= 0 || p.N <= 0) return {first_task, 0, 0, 0, 0, 0, 0};
  const int64_t row_tiles = ceil_div(p.M, Shape::rows), col_tiles = ceil_div(p.N, Shape::cols);
  // Fewer than two tasks per thread: smaller ones pack more, but no thread waits long for another.
  const int64_t tasks = ceil_div(row_tiles, kLeastTiles) * ceil_div(col_tiles, kLeastTiles);
  const int64_t least = tasks * per_thread < 2 * wanted ? kLeastTiles / 2 : kLeastTiles;
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
  const int64_t pack_bytes =
      max_of<int64_t>(1, block_packs<Operand>(p.K)) * kParts<Operand> * static_cast<int64_t>(sizeof(T));
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

  const int64_t per_thread = used.threads > kFewThreads ? kTasksPerThread : kTasksPerFewThreads;
  Scratch<Split> splits(count);
  typename Task<Operand, Math>::Size size;
  int64_t tasks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double share = flops > 0 ? flops_of(problems[i]) / flops : 0;
    const double wanted = share * static_cast<double>(per_thread * used.threads);
    splits[i] = split_problem<Operand>(problems[i], tasks,
                                       used.threads > 1 ? static_cast<int64_t>(wanted - 1e-6) + 1 : 1, per_thread);
    tasks += splits[i].row_tasks * splits[i].col_tasks;
    size.fit(problems[i], splits[i]);
  }
  if (tasks == 0) return;
  const int64_t chunk =
      used.threads > 1 ? static_cast<int64_t>(static_cast<double>(tasks) * (kChunkFlops / flops)) + 1 : tasks;
  parallel_blocks(used, tasks, chunk, [&](int64_t begin, int64_t end) {
    const WithoutSubnormals without_subnormals;
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
      pack_b_parts<Operand>(source, col, min_of(cols, N - col), k0, elements, to);
    }
  });
}

}  // namespace

#if defined(ST_MOE_BF16_GEMM)

template <class Operand, class Math>
static constexpr Bf16Gemm gemm_of(const LowPrecision* rows, const Bf16Gemm* sums) {
  return {[](int64_t K, int64_t N) { return packed_offset<Operand>(N, packs_of<Operand>(K) * Operand::k_pack, 0, 0); },
          [](const Context& ctx, const MatrixView<float>& b, int64_t batch, int64_t batch_stride, int64_t K, int64_t N,
             float* out) {
            pack_matrices<Operand>(ctx, PanelSource<float>{b.data, b.col_stride, b.row_stride, nullptr, b.rows, K},
                                   batch, batch_stride, N, out);
          },
          run_problems<Operand, Math>, rows, sums};
}

const Bf16Gemm& bf16_gemm() {
  static constexpr LowPrecision rows{Bf16Pairs::widen, Bf16Pairs::round};
#if defined(ST_MOE_AMX)
  static constexpr Bf16Gemm sums = gemm_of<Bf16Sums, AmxSums>(nullptr, nullptr);
  static constexpr Bf16Gemm gemm = gemm_of<Bf16Pairs, AmxPairs>(&rows, &sums);
#else
  static constexpr Bf16Gemm gemm = gemm_of<Bf16Pairs, MultiplyPairs>(&rows, nullptr);
#endif
  return gemm;
}

#else

static const Bf16Gemm* bf16_gemm_of(const Context& ctx, DType compute) {
  const auto* gemm = static_cast<const Bf16Gemm*>(ctx.stream);
  return !gemm || compute == DType::bf16 ? gemm : compute == kBf16x3 ? gemm->sums : nullptr;
}

const LowPrecision* low_precision(const Context& ctx, DType compute) {
  static constexpr LowPrecision bf16{Rounded<DType::bf16>::widen, Rounded<DType::bf16>::round},
      f16{Rounded<DType::f16>::widen, Rounded<DType::f16>::round};
  if (const Bf16Gemm* own = bf16_gemm_of(ctx, compute)) return own->rows;
  return compute == DType::bf16 ? &bf16 : compute == DType::f16 ? &f16 : nullptr;
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
    if (compute == DType::f16) return run_problems<Rounded<DType::f16>, Multiply<float> >(ctx, problems, count);
    if (const Bf16Gemm* bf16 = bf16_gemm_of(ctx, compute)) return bf16->run(ctx, problems, count);
    if (compute == DType::bf16) return run_problems<Rounded<DType::bf16>, Multiply<float> >(ctx, problems, count);
  }
  run_problems<Exact<T>, Multiply<T> >(ctx, problems, count);
}

template <class T>
void gemm_serial(const GemmProblem<T>& p) {
  if (p.M <= 0 || p.N <= 0) return;
  const WithoutSubnormals without_subnormals;
  const Split split = split_problem<Exact<T> >(p, 0, 1, kTasksPerFewThreads);
  typename Task<Exact<T>, Multiply<T> >::Size size;
  size.fit(p, split);
  const Task<Exact<T>, Multiply<T> > task(size);
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

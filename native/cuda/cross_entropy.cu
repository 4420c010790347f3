#include <cmath>
#include <limits>

#include "core/ops/layers.h"
#include "core/formulas.h"
#include "cuda/row_lanes.cuh"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

constexpr int64_t kLossBlocks = 1024;  // maximum number of blocks, each with partial sums
constexpr int64_t kCountBlocks = 64;

// A row whose target is neither in the vocabulary nor ignored sets the error flag, and does not count in the mean.
struct Targets {
  const int32_t* target;  // [T]
  int64_t V;
  int32_t ignore_index;

  __device__ bool ignored(int64_t t) const { return target[t] == ignore_index; }
  __device__ bool inside(int64_t t) const { return target[t] >= 0 && target[t] < V; }
  __device__ bool counts(int64_t t) const { return !ignored(t) && inside(t); }
};

struct LossPartial {
  double loss;
  int64_t counted;
};

template <class T>
constexpr T kLowest = std::numeric_limits<T>::lowest();

// log Σ e^x over a row, in one pass. NaN if the row contains NaN or +inf, or only −inf. A lane adds up e^(x − shift),
// where no value was more than kSlack above the shift: it moves rarely, so that what a lane has is rounded again a few
// times at most.
template <int N, class T, class Lanes>
__device__ static inline double logsumexp(const T* x, int64_t V, Lanes lanes) {
  constexpr T kSlack = 8;
  T shift = kLowest<T>;
  LaneSum<T> sum;
  for (int64_t j = lanes.lane() * N; j < V; j += Lanes::size * N) {
    const Vector<T, N> values = load<N>(x + j);
    T largest = shift;
    for (int c = 0; c < N; ++c) largest = values[c] > largest ? values[c] : largest;
    if (largest > shift + kSlack) {
      sum.scale(exp_of(shift - largest));
      shift = largest;
    }
    T part = 0;
    for (int c = 0; c < N; ++c) part += exp_of(values[c] - shift);
    sum.add(part);
  }
  const double common = static_cast<double>(lanes.max(shift));
  const double total = lanes.sum(sum.total() * std::exp(static_cast<double>(shift) - common));
  return total == 0 ? static_cast<double>(NAN) : common + std::log(total);
}

// lse [T], and the sum over the rows of each group of threads. The loss of a row with an invalid target is NaN.
template <class T, int kThreads, int N>
__global__ void __launch_bounds__(kBlock) row_losses_kernel(int64_t rows, const T* logits, Targets targets, T* lse,
                                                            LossPartial* partial, Stream::ErrorFlag* error_flag) {
  const RowLanes<kThreads> lanes;
  const int64_t per_block = blockDim.x / kThreads, index = blockIdx.x * per_block + threadIdx.x / kThreads;
  LossPartial mine{0.0, 0};
  for (int64_t t = index; t < rows; t += gridDim.x * per_block) {
    const T* row = logits + t * targets.V;
    const double value = logsumexp<N>(row, targets.V, lanes);
    if (lanes.lane() == 0) lse[t] = static_cast<T>(value);
    if (targets.ignored(t)) continue;
    if (targets.inside(t)) {
      mine.loss += value - static_cast<double>(row[targets.target[t]]);
      ++mine.counted;
    } else {
      if (lanes.lane() == 0) report_error(error_flag, kTargetError, targets.target[t]);
      mine = {static_cast<double>(NAN), mine.counted + 1};
    }
  }
  if (lanes.lane() == 0) partial[index] = mine;
}

template <class T>
__global__ void __launch_bounds__(kBlock) mean_loss_kernel(int64_t partials, const LossPartial* partial, T* loss) {
  LossPartial mine{0.0, 0};
  for (int64_t i = threadIdx.x; i < partials; i += blockDim.x) {
    mine.loss += partial[i].loss;
    mine.counted += partial[i].counted;
  }
  const double total = block_reduce(mine.loss, Sum{}, 0.0);
  const int64_t counted = block_reduce(mine.counted, Sum{}, int64_t{0});
  if (threadIdx.x == 0) *loss = counted ? static_cast<T>(total / static_cast<double>(counted)) : T(0);
}

template <class T, int kThreads>
static void mean_loss(const Context& ctx, const CrossEntropyArgs& args) {
  const int64_t wanted = args.T < kBlock / kThreads ? args.T : kBlock / kThreads, per_block = wanted < 1 ? 1 : wanted;
  const int64_t needed = ceil_div(args.T, per_block), blocks = needed < kLossBlocks ? needed : kLossBlocks;
  const int64_t partials = blocks * per_block;
  const Scratch<LossPartial> partial(ctx, partials);
  if (blocks > 0) {
    const T* logits = static_cast<const T*>(args.logits);
    dispatch_width<vector_width<T>>(args.V, aligned(logits), [&](auto n) {
      launch(ctx, row_losses_kernel<T, kThreads, n>, static_cast<unsigned>(blocks),
             static_cast<unsigned>(per_block * kThreads), 0, args.T, logits,
             Targets{args.target, args.V, args.ignore_index}, static_cast<T*>(args.lse), partial.get(),
             stream_of(ctx).error_flag());
    });
  }
  launch(ctx, mean_loss_kernel<T>, 1, kBlock, 0, partials, partial.get(), static_cast<T*>(args.loss));
}

void cross_entropy(const Context& ctx, const CrossEntropyArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.V <= kWarpWidth) {
      mean_loss<T, kWarp>(ctx, args);
    } else {
      mean_loss<T, kBlock>(ctx, args);
    }
  });
}

// counts [blocks]: rows that count, for each block
__global__ void __launch_bounds__(kBlock)
    count_targets_kernel(int64_t rows, Targets targets, int64_t* counts, Stream::ErrorFlag* error_flag) {
  int64_t mine = 0;
  for (int64_t t = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; t < rows; t += int64_t{gridDim.x} * blockDim.x) {
    mine += targets.counts(t);
    if (!targets.ignored(t) && !targets.inside(t)) report_error(error_flag, kTargetError, targets.target[t]);
  }
  const int64_t total = block_reduce(mine, Sum{}, int64_t{0});
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// dlogits = dloss / counted rows · (softmax − onehot); zeros for rows that do not count.
template <class T, int N>
struct CrossEntropyBackwardRow {
  const T *dloss, *logits, *lse;
  Targets targets;
  const int64_t* counts;  // [blocks], at least one of them positive if a row counts
  int64_t blocks;
  T* dlogits;

  template <class Lanes>
  __device__ void operator()(int64_t t, Lanes lanes) const {
    const int64_t V = targets.V;
    const T* row = logits + t * V;
    T* out = dlogits + t * V;
    if (!targets.counts(t)) return write_row<N>(out, V, lanes, [](int64_t) { return Vector<T, N>{}; });
    int64_t counted = 0;
    for (int64_t i = 0; i < blocks; ++i) counted += counts[i];
    const T factor = static_cast<T>(static_cast<double>(*dloss) / static_cast<double>(counted)), shift = lse[t];
    const int64_t target = targets.target[t];
    write_row<N>(out, V, lanes, [&](int64_t j) {
      Vector<T, N> values = load<N>(row + j);
      for (int c = 0; c < N; ++c) {
        const T e = exp_of(values[c] - shift);
        values[c] = factor * (j + c == target ? e - T(1) : e);
      }
      return values;
    });
  }
};

void cross_entropy_backward(const Context& ctx, const CrossEntropyBackwardArgs& args) {
  if (args.T == 0) return;
  const int64_t needed = ceil_div(args.T, kBlock), blocks = needed < kCountBlocks ? needed : kCountBlocks;
  const Targets targets{args.target, args.V, args.ignore_index};
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Scratch<int64_t> counts(ctx, blocks);
    launch(ctx, count_targets_kernel, static_cast<unsigned>(blocks), kBlock, 0, args.T, targets, counts.get(),
           stream_of(ctx).error_flag());
    if (args.V == 0) return;
    const T *dloss = static_cast<const T*>(args.dloss), *logits = static_cast<const T*>(args.logits);
    const T* lse = static_cast<const T*>(args.lse);
    T* dlogits = static_cast<T*>(args.dlogits);
    dispatch_width<vector_width<T>>(args.V, aligned(logits, dlogits), [&](auto n) {
      for_rows(ctx, args.T, args.V,
               CrossEntropyBackwardRow<T, n>{dloss, logits, lse, targets, counts.get(), blocks, dlogits});
    });
  });
}

}  // namespace st_moe::cuda

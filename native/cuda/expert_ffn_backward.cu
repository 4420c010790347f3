#include "cuda/ops.h"

#include "core/formulas.h"
#include "cuda/expert_rows.cuh"

// Sums are split by shapes alone: over rows into blocks of kSumRows, over hidden columns into strips of kStrip.
namespace st_moe::cuda {

constexpr int64_t kSumRows = 64;
constexpr int kLaneColumns = 4;
constexpr int kStrip = kLaneColumns * kWarp;
constexpr int kStripWarps = kWarpBlock / kWarp;

template <class T>
struct ExpertGradient {
  const int32_t* holder;  // [rows]: assignment (token · K + choice) in the slot, −1: empty; null: row t is token t
  const T *dy, *x, *b1, *mult_bias, *b2, *a, *weight;
  T *g, *x_rows;  // [rows, D] dy and x of the rows, each or null where it is not gathered
  T* q;           // [rows, H] dy · W2, then w · h
  T* da;          // [rows, 2H] gradient of A
  T* dots;        // [rows, strips + 1] parts of dweight: <h, q> and <A − b1, dA> of each strip, and <b2, dy>; or null
  T* sums;        // [E, row blocks, 3H + D] parts of db1, dmult_bias and db2; or null
  int64_t D, H, K, each, row_blocks, strips;  // each: rows of one expert; row_blocks: of one expert
  bool straight_through;

  __device__ int64_t assignment(int64_t row) const { return holder ? holder[row] : row; }
  __device__ T weight_of(int64_t assignment) const { return weight ? weight[assignment] : T(1); }
};

// A row by a warp.
template <class T>
struct LoadRow {
  ExpertGradient<T> p;

  __device__ void operator()(int64_t row, int lane) const {
    const int64_t assignment = p.assignment(row), D = p.D;
    const bool full = assignment >= 0;
    const int64_t token = full ? place_of(assignment, p.K).row : 0;
    const T *dy = p.dy + token * D, *x = p.x + token * D, *b2 = p.b2 + place_of(row, p.each).row * D;
    T dot = 0;
    for (int64_t j = lane; j < D; j += kWarp) {
      const T g = full ? dy[j] : T(0);
      if (p.g) p.g[row * D + j] = g;
      if (p.x_rows) p.x_rows[row * D + j] = full ? x[j] : T(0);
      if (full) dot += b2[j] * g;
    }
    if (!p.dots) return;
    dot = warp_reduce(dot, Sum{});
    if (lane == 0) p.dots[row * (p.strips + 1) + p.strips] = dot;
  }
};

template <class T>
struct StripSums {
  T value[kLaneColumns], gate[kLaneColumns], mult_bias[kLaneColumns];
};

// A row of a strip that starts at column `first`, by a warp. Returns the lane's part of dweight.
template <class T>
__device__ static T hidden_row(const ExpertGradient<T>& p, int64_t row, int64_t expert, int64_t first, int lane,
                               StripSums<T>& sums) {
  const int64_t assignment = p.assignment(row), H = p.H;
  const T w = assignment < 0 ? T(0) : p.weight_of(assignment);
  T dot = 0;
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    const int64_t j = first + c * kWarp + lane;
    if (j >= H) continue;
    T *q = p.q + row * H + j, *dvalue = p.da + row * 2 * H + j, *dgate = dvalue + H;
    if (assignment < 0) {
      *q = *dvalue = *dgate = 0;
      continue;
    }
    const T value = p.a[row * 2 * H + j], gate = p.a[row * 2 * H + H + j], mu = p.mult_bias[expert * H + j];
    const GeluPair<T> gelu = gelu_with_grad(gate);
    const T plain = gelu.value * value, h = plain * mu, dh = w * *q, scaled = dh * mu;
    const T dv = scaled * gelu.value, dg = scaled * value * gelu.grad;
    T product = h * *q;
    if (p.straight_through) {
      const T* bias = p.b1 + expert * 2 * H + j;
      product += (value - bias[0]) * dv + (gate - bias[H]) * dg;
    }
    dot += product;
    *q = w * h;
    *dvalue = dv;
    *dgate = dg;
    sums.value[c] += dv;
    sums.gate[c] += dg;
    sums.mult_bias[c] += dh * plain;
  }
  return dot;
}

// A strip of hidden columns by a block of rows. Warps take the rows in turn; their column sums are added in order.
template <class T>
__global__ void __launch_bounds__(kWarpBlock) hidden_kernel(ExpertGradient<T> p, int64_t blocks) {
  __shared__ T partial[kStripWarps][3 * kStrip];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t work = blockIdx.x; work < blocks; work += gridDim.x) {
    const int64_t block = work / p.strips, strip = work % p.strips, expert = block / p.row_blocks;
    const int64_t begin = expert * p.each + block % p.row_blocks * kSumRows;
    const int64_t end = min_of(begin + kSumRows, (expert + 1) * p.each);
    StripSums<T> sums{};
    for (int64_t row = begin + warp; row < end; row += kStripWarps) {
      T dot = hidden_row(p, row, expert, strip * kStrip, lane, sums);
      if (!p.dots) continue;
      dot = warp_reduce(dot, Sum{});
      if (lane == 0) p.dots[row * (p.strips + 1) + strip] = dot;
    }
    if (!p.sums) continue;
    for (int c = 0; c < kLaneColumns; ++c) {
      partial[warp][c * kWarp + lane] = sums.value[c];
      partial[warp][kStrip + c * kWarp + lane] = sums.gate[c];
      partial[warp][2 * kStrip + c * kWarp + lane] = sums.mult_bias[c];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 3 * kStrip; i += kWarpBlock) {
      const int64_t j = strip * kStrip + i % kStrip;
      T total = 0;
      for (int w = 0; w < kStripWarps; ++w) total += partial[w][i];
      if (j < p.H) p.sums[block * (3 * p.H + p.D) + i / kStrip * p.H + j] = total;
    }
    __syncthreads();
  }
}

// Part of db2 = Σ w · dy of one column over a block of rows. Element of [E · row blocks, D].
template <class T>
struct OutputBiasPart {
  ExpertGradient<T> p;

  __device__ void operator()(int64_t i) const {
    const Place place = place_of(i, p.D);
    const int64_t expert = place_of(place.row, p.row_blocks).row;
    const int64_t begin = expert * p.each + (place.row - expert * p.row_blocks) * kSumRows;
    const int64_t end = min_of(begin + kSumRows, (expert + 1) * p.each);
    const T* g = p.g ? p.g : p.dy;
    T total = 0;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t assignment = p.assignment(row);
      if (assignment >= 0) total += p.weight_of(assignment) * g[row * p.D + place.column];
    }
    p.sums[place.row * (3 * p.H + p.D) + 3 * p.H + place.column] = total;
  }
};

// Element of [E, 3H + D]: the parts in the order of the row blocks.
template <class T>
struct FinishSums {
  ExpertGradient<T> p;
  T *db1, *dmult_bias, *db2;

  __device__ void operator()(int64_t i) const {
    const int64_t H = p.H, width = 3 * H + p.D;
    const Place place = place_of(i, width);
    const int64_t j = place.column;
    T total = 0;
    for (int64_t b = 0; b < p.row_blocks; ++b) total += p.sums[(place.row * p.row_blocks + b) * width + j];
    T* to = j < 2 * H   ? db1 + place.row * 2 * H + j
            : j < 3 * H ? dmult_bias + place.row * H + j - 2 * H
                        : db2 + place.row * p.D + j - 3 * H;
    *to = total;
  }
};

// Element of dweight [T, K]
template <class T>
struct FinishDots {
  Assignments assignments;
  const T* dots;
  T* dweight;
  int64_t parts;

  __device__ void operator()(int64_t i) const {
    const Place place = place_of(i, assignments.K);
    const int64_t slot = assignments.slot(place.row, place.column);
    T total = 0;
    for (int64_t part = 0; slot >= 0 && part < parts; ++part) total += dots[slot * parts + part];
    dweight[i] = total;
  }
};

template <class T>
static ExpertGradient<T> gradient_of(const ExpertFfnBackwardArgs& args, const ExpertRows& rows) {
  const auto values = [](const void* p) { return static_cast<const T*>(p); };
  ExpertGradient<T> p{};
  p.dy = values(args.dy), p.x = values(args.x), p.b1 = values(args.b1), p.mult_bias = values(args.mult_bias);
  p.b2 = values(args.b2), p.a = values(args.a), p.weight = values(args.weight);
  p.D = args.D, p.H = args.H, p.K = args.K, p.each = rows.each, p.row_blocks = ceil_div(rows.each, kSumRows);
  p.strips = ceil_div(args.H, kStrip), p.straight_through = args.straight_through;
  return p;
}

template <class T>
static void backward(const Context& ctx, const ExpertFfnBackwardArgs& args, const ExpertRows& rows) {
  const int64_t D = args.D, H = args.H, E = args.E, count = rows.count();
  ExpertGradient<T> p = gradient_of<T>(args, rows);
  const bool parameters = args.dw1;
  Scratch<int32_t> holder(ctx, rows.slots ? count : 0);
  Scratch<T> g(ctx, rows.slots ? count * D : 0), x_rows(ctx, rows.slots && parameters ? count * D : 0);
  Scratch<T> q(ctx, count * H), da(ctx, count * 2 * H), dots(ctx, args.dweight ? count * (p.strips + 1) : 0);
  Scratch<T> sums(ctx, parameters ? E * p.row_blocks * (3 * H + D) : 0);
  p.holder = holder.get(), p.g = g.get(), p.x_rows = x_rows.get(), p.q = q.get(), p.da = da.get();
  p.dots = dots.get(), p.sums = sums.get();
  const T* dy_rows = rows.slots ? g.get() : p.dy;

  if (rows.slots) fill_holders(ctx, rows.assignments, holder.get());
  if (rows.slots || args.dweight) by_warp(ctx, count, LoadRow<T>{p});
  if (count > 0) multiply(ctx, args.dtype, rows.of_rows(dy_rows, args.w2, q.get(), H, D, false));
  const int64_t blocks = E * p.row_blocks * p.strips;
  if (blocks > 0) launch(ctx, hidden_kernel<T>, grid_for(blocks, 1), kWarpBlock, 0, p, blocks);
  if (parameters) {
    elementwise(ctx, E * p.row_blocks * D, OutputBiasPart<T>{p});
    elementwise(
        ctx, E * (3 * H + D),
        FinishSums<T>{p, static_cast<T*>(args.db1), static_cast<T*>(args.dmult_bias), static_cast<T*>(args.db2)});
    multiply(ctx, args.dtype, rows.over_rows(dy_rows, q.get(), args.dw2, D, H));
    multiply(ctx, args.dtype, rows.over_rows(da.get(), rows.slots ? x_rows.get() : p.x, args.dw1, 2 * H, D));
  }
  if (args.dweight)
    elementwise(ctx, args.T * args.K,
                FinishDots<T>{rows.assignments, dots.get(), static_cast<T*>(args.dweight), p.strips + 1});
  if (!args.dx) return;
  T* dx = static_cast<T*>(args.dx);
  T* dx_rows = rows.slots ? g.get() : dx;  // g is not needed any more
  if (count > 0) multiply(ctx, args.dtype, rows.of_rows(da.get(), args.w1, dx_rows, D, 2 * H, false));
  if (rows.slots) elementwise(ctx, args.T * D, CombineRows<T>{rows.assignments, dx_rows, nullptr, nullptr, dx, D});
}

void expert_ffn_backward(const Context& ctx, const ExpertFfnBackwardArgs& args) {
  const ExpertRows rows = expert_rows_of(ctx, args);
  if (args.compute != args.dtype) fail(ErrorCode::unsupported, "compute dtype %s", dtype_name(args.compute));
  dispatch_float(args.dtype, [&](auto zero) { backward<decltype(zero)>(ctx, args, rows); });
}

}  // namespace st_moe::cuda

#include "core/ops/moe.h"
#include "core/activation.h"
#include "cuda/expert_rows.cuh"
#include "cuda/hidden.cuh"

// Sums are split by shapes alone: over rows into blocks of kSumRows, over columns into strips of kStrip.
namespace st_moe::cuda {

constexpr int64_t kSumRows = 64;
constexpr int kLaneColumns = 4;
constexpr int kStrip = kLaneColumns * kWarp;

// N values of a bias from column j on; zeros where there is none.
template <int N, class T>
__device__ static inline Vector<T, N> load_bias(const T* bias, int64_t j) {
  return bias ? load<N>(bias + j) : Vector<T, N>{};
}

template <class T, class O>
struct ExpertGradient {
  Plan plan;
  const T *dy, *x, *weight;
  ExpertBias<T> b1, mult_bias, b2;
  ActivationNumbers<T> numbers;
  HiddenDropout<T> dropout;
  const Stored<O>* a;  // [rows, a_width] A without b1
  Stored<O>*g,
      *x_rows;    // dy [rows, padded out] and x [rows, padded D], each null if it is neither gathered nor rounded
  T* q;           // [rows, hidden width] dy · W2
  Stored<O>* wh;  // [rows, hidden width] w · h; q itself if it is not rounded
  Stored<O>* da;  // [rows, a_width] gradient of A
  T* dots;        // [rows, strips + 1] parts of dweight: <h, q> and <A − b1, dA> of each strip, and <b2, dy>; or null
  T* sums;        // [row blocks, sum_width] parts of db1, dmult_bias and db2; or null
  RowBlocks<kSumRows> row_blocks;
  HiddenColumns hidden;
  int64_t D, out;                // out: columns of dy
  int strips;                    // of hidden columns; after them come those of dy
  int64_t width, out_width;      // columns of x_rows, of g
  int64_t P, biases, sum_width;  // entries of b1 of one expert; and of mult_bias; and of b2
  bool straight_through;

  __device__ T weight_of(int64_t assignment) const { return weight ? weight[assignment] : T(1); }
};

template <class T, class O, int N>
struct LoadRow {
  ExpertGradient<T, O> p;

  template <class Lanes>
  __device__ void operator()(int64_t row, Lanes lanes) const {
    const int64_t assignment = p.plan.assignment_of(row);
    const bool full = assignment >= 0;
    const int64_t token = full ? p.plan.token_of(assignment) : 0;
    const T *dy = p.dy + token * p.out, *x = p.x + token * p.D;
    const T* b2 = p.b2.values ? p.b2.of(p.row_blocks.groups.group_of(row)) : nullptr;
    T dot = 0;
    const auto gradient = [&](int64_t j) {
      Vector<T, N> g{}, bias{};
      if (full && j < p.out) g = load<N>(dy + j), bias = load_bias<N>(b2, j);
      for (int c = 0; c < N; ++c) dot += bias[c] * g[c];
      return rounded<O>(g);
    };
    if (p.g)
      write_row<N>(p.g + row * p.out_width, p.out_width, lanes, gradient);
    else
      for (int64_t j = lanes.lane() * N; j < p.out_width; j += Lanes::size * N) gradient(j);
    if (p.x_rows)
      write_row<N>(p.x_rows + row * p.width, p.width, lanes, [&](int64_t j) {
        Vector<T, N> in{};
        if (full && j < p.D) in = load<N>(x + j);
        return rounded<O>(in);
      });
    if (!p.dots) return;
    dot = lanes.sum(dot);
    if (lanes.lane() == 0) p.dots[row * (p.strips + 1) + p.strips] = dot;
  }
};

template <class T>
struct StripSums {
  T value[kLaneColumns], gate[kLaneColumns], mult_bias[kLaneColumns];
};

// A row of a strip that starts at column `first`, by a warp. Returns the lane's part of dweight.
template <Activation activation, int N, class T, class O>
__device__ static T hidden_row(const ExpertGradient<T, O>& p, uint32_t row,
                               const StripBiases<T, N, kLaneColumns>& biases, int first, int lane, StripSums<T>& sums) {
  const HiddenColumns& at = p.hidden;
  const int64_t assignment = p.plan.assignment_of(row);
  const T w = assignment < 0 ? T(0) : p.weight_of(assignment);
  T dot = 0;
  const int64_t first_gate = row * at.a_width + at.gate + first;
  const int left = static_cast<int>(at.filled) - first;
  Stored<O> gates[kLaneColumns]{};
  if constexpr (is_gated(activation))
    if (assignment >= 0) StripGates<N, kLaneColumns>::load(p.a + first_gate, left, lane, gates);
#pragma unroll
  for (int k = 0; k < kLaneColumns; k += N) {
    const int j = first + Strip<N, kLaneColumns>::column(lane, k);
    if (j >= at.filled) continue;
    const int64_t in_h = row * at.width + j, in_a = row * at.a_width + j;
    Vector<Stored<O>, N> out{}, out_value{};
    if (assignment >= 0) {
      const uint32_t kept = p.dropout.template kept<N>(assignment, j);
      Vector<T, N> q = load<N>(p.q + in_h);
      for (int c = 0; c < N; ++c) q[c] = p.dropout(q[c], kept, c);
      const Vector<T, N> value_bias = biases.value(lane, k);
      const Vector<Stored<O>, N> a = load<N>(p.a + in_a);
      const auto stored = [&](int c, T value) { return O::store(j + c < at.H ? value : T(0)); };
      if constexpr (is_gated(activation)) {
        const Vector<T, N> gate_bias = biases.gate(lane, k), mu = biases.mult_bias(lane, k);
        for (int c = 0; c < N; ++c) {
          const T av = O::load(a[c]), ag = O::load(gates[k + c]);
          const ValueAndSlope<T> v = gated_value<activation>(av + value_bias[c], p.numbers);
          const ValueAndSlope<T> f = activate<activation>(ag + gate_bias[c], p.numbers);
          const T plain = f.value * v.value, h = plain * mu[c], dh = w * q[c], scaled = dh * mu[c];
          const T dv = scaled * f.value * v.slope, dg = scaled * v.value * f.slope;
          T product = h * q[c];
          if (p.straight_through) product += av * dv + ag * dg;
          dot += product;
          out[c] = stored(c, p.dropout(w * h, kept, c)), out_value[c] = stored(c, dv), gates[k + c] = stored(c, dg);
          sums.value[k + c] += dv;
          sums.gate[k + c] += dg;
          sums.mult_bias[k + c] += dh * plain;
        }
      } else {
        for (int c = 0; c < N; ++c) {
          const T av = O::load(a[c]);
          const ValueAndSlope<T> f = activate<activation>(av + value_bias[c], p.numbers);
          const T dv = w * q[c] * f.slope;
          T product = f.value * q[c];
          if (p.straight_through) product += av * dv;
          dot += product;
          out[c] = stored(c, p.dropout(w * f.value, kept, c)), out_value[c] = stored(c, dv);
          sums.value[k + c] += dv;
        }
      }
    }
    store(p.wh + in_h, out), store(p.da + in_a, out_value);
  }
  if constexpr (is_gated(activation)) StripGates<N, kLaneColumns>::store(p.da + first_gate, left, lane, gates);
  return dot;
}

// The same of columns of dy: parts of db2 = Σ w · dy.
template <class T, class O>
__device__ static void output_row(const ExpertGradient<T, O>& p, uint32_t row, int first, int lane, T* sums) {
  const int64_t assignment = p.plan.assignment_of(row);
  if (assignment < 0) return;
  const T w = p.weight_of(assignment), *dy = p.dy + p.plan.token_of(assignment) * p.out;
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c)
    if (const int64_t j = first + Strip<1, kLaneColumns>::column(lane, c); j < p.out) sums[c] += w * dy[j];
}

// Σ of what the warps of a block have in a strip from column `first` on, N columns at a time per lane: `parts` vectors
// of `columns` values.
template <int N, int parts, class T>
__device__ static void write_sums(T (&partial)[kStripWarps][parts * kStrip], const StripSums<T>& sums, int64_t first,
                                  int64_t columns, T* to) {
  static_assert(kStrip == kWarpBlock);  // a column per thread
  const int lane = threadIdx.x % kWarp;
  for (int c = 0; c < kLaneColumns; ++c) {
    T* of_warp = partial[threadIdx.x / kWarp] + Strip<N, kLaneColumns>::column(lane, c);
    of_warp[0] = sums.value[c];
    if constexpr (parts == 3) of_warp[kStrip] = sums.gate[c], of_warp[2 * kStrip] = sums.mult_bias[c];
  }
  __syncthreads();
  const int64_t j = first + threadIdx.x;
  if (j >= columns) return;
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    T total = 0;
    for (int w = 0; w < kStripWarps; ++w) total += partial[w][part * kStrip + threadIdx.x];
    to[part * columns + j] = total;
  }
}

// A strip of hidden columns, or of columns of dy, by a block of rows. Warps take the rows in turn; their column sums
// are added in order.
template <class T, class O, Activation activation, int N>
__global__ void __launch_bounds__(kWarpBlock, sizeof(T) == 4 ? half_resident(kWarpBlock) : 1)
    hidden_kernel(ExpertGradient<T, O> p) {
  constexpr int parts = is_gated(activation) ? 3 : 1;
  const auto rows = p.row_blocks.rows();
  if (rows.empty()) return;
  const int strip = p.row_blocks.strip();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint32_t begin = static_cast<uint32_t>(rows.begin) + warp, end = static_cast<uint32_t>(rows.end);
  StripSums<T> sums{};
  if (strip < p.strips) {
    __shared__ T partial[kStripWarps][parts * kStrip];
    __shared__ StripBiases<T, N, kLaneColumns> biases;
    const int first = strip * kStrip;
    biases.template fill<is_gated(activation)>(p.b1, p.mult_bias, rows.group, first, p.hidden.H);
    __syncthreads();
#pragma unroll 1
    for (uint32_t row = begin; row < end; row += kStripWarps) {
      T dot = hidden_row<activation, N>(p, row, biases, first, lane, sums);
      if (!p.dots) continue;
      dot = warp_reduce(dot, Sum{});
      if (lane == 0) p.dots[row * (p.strips + int64_t{1}) + strip] = dot;
    }
    if (p.sums) write_sums<N, parts>(partial, sums, first, p.hidden.H, p.sums + p.row_blocks.block() * p.sum_width);
  } else {
    __shared__ T partial[kStripWarps][kStrip];
    const int first = (strip - p.strips) * kStrip;
#pragma unroll 1
    for (uint32_t row = begin; row < end; row += kStripWarps) output_row(p, row, first, lane, sums.value);
    if (p.sums) write_sums<1, 1>(partial, sums, first, p.out, p.sums + p.row_blocks.block() * p.sum_width + p.biases);
  }
}

// Element of [E, sum_width]: the parts in the order of the row blocks. Null for a bias that is not there.
template <class T, class O>
struct FinishSums {
  ExpertGradient<T, O> p;
  T *db1, *dmult_bias, *db2;

  __device__ static void write(T* gradient, int64_t i, T total) {
    if (gradient) gradient[i] = total;
  }
  __device__ void operator()(int64_t i) const {
    const MatrixIndex at = matrix_index(i, p.sum_width);
    const int64_t j = at.column;
    T total = 0;
    const int64_t first = p.row_blocks.first(at.row), blocks = p.row_blocks.blocks_of(at.row);
    for (int64_t b = 0; b < blocks; ++b) total += p.sums[(first + b) * p.sum_width + j];
    if (j < p.P)
      write(db1, at.row * p.P + j, total);
    else if (j < p.biases)
      write(dmult_bias, at.row * p.hidden.H + j - p.P, total);
    else
      write(db2, at.row * p.out + j - p.biases, total);
  }
};

// Element of dweight [T, K]
template <class T>
struct FinishDots {
  Plan plan;
  const T* dots;
  T* dweight;
  int64_t parts;

  __device__ void operator()(int64_t i) const {
    const MatrixIndex at = matrix_index(i, plan.K);
    const int64_t row = plan.row(at.row, at.column);
    T total = 0;
    for (int64_t part = 0; row >= 0 && part < parts; ++part) total += dots[row * parts + part];
    dweight[i] = total;
  }
};

// One after the other.
template <class T, class O>
struct Finish {
  FinishSums<T, O> sums;
  FinishDots<T> dots;
  int64_t all_sums;

  __device__ void operator()(int64_t i) const { i < all_sums ? sums(i) : dots(i - all_sums); }
};

template <class T, class O>
static ExpertGradient<T, O> gradient_of(const Context& ctx, const ExpertFfnBackwardArgs& args, const ExpertRows& rows) {
  const auto values = [](const void* p) { return static_cast<const T*>(p); };
  ExpertGradient<T, O> p{};
  p.dy = values(args.dy), p.x = values(args.x), p.weight = values(args.weight);
  p.a = static_cast<const Stored<O>*>(args.a), p.numbers = ActivationNumbers<T>::of(args);
  p.dropout = HiddenDropout<T>::of(ctx, args);
  p.hidden = HiddenColumns::of(args.activation, args.H, args.compute);
  p.D = args.D, p.out = args.O, p.plan = rows.plan;
  p.row_blocks = RowBlocks<kSumRows>(rows.groups);
  p.P = w1_rows(args.activation, args.H), p.biases = hidden_biases(args.activation, args.H);
  p.b1 = {values(args.b1), p.P}, p.mult_bias = {values(args.mult_bias), args.H}, p.b2 = {values(args.b2), args.O};
  p.sum_width = p.biases + args.O;
  p.width = padded<O>(args.D), p.out_width = padded<O>(args.O);
  p.strips = static_cast<int>(ceil_div(p.hidden.filled, kStrip)), p.straight_through = args.straight_through;
  return p;
}

template <class T, class O>
static void backward(const Context& ctx, const ExpertFfnBackwardArgs& args, const ExpertRows& rows) {
  const int64_t D = args.D, H = args.H, E = args.E, count = rows.count();
  ExpertGradient<T, O> p = gradient_of<T, O>(ctx, args, rows);
  const HiddenColumns& hidden = p.hidden;
  const bool parameters = args.dw1, copies = rows.planned || is_low_precision<O>;
  const bool biases = args.db1 || args.dmult_bias || args.db2;
  // g is no longer needed when there are rows of dx to combine.
  const int64_t shared_width = is_low_precision<O> ? p.out_width : max_of(p.out_width, D);
  Scratch<Stored<O>> g(ctx, copies ? count * shared_width : 0), x_rows(ctx, copies && parameters ? count * p.width : 0);
  Scratch<Stored<O>> wh(ctx, is_low_precision<O> ? count * hidden.width : 0), da(ctx, count * hidden.a_width);
  Scratch<T> q(ctx, count * hidden.width), dots(ctx, args.dweight ? count * (p.strips + 1) : 0);
  Scratch<T> sums(ctx, biases ? p.row_blocks.count() * p.sum_width : 0);
  OperandWeight<T, O> w1(ctx, args.w1, args.w1_stored, args.compute, args.dx ? E : 0, H, D,
                         args.dx ? args.w1_packed : nullptr, w1_rows(args.activation, 1));
  OperandWeight<T, O> w2(ctx, args.w2, args.w2_stored, args.compute, E, p.out, H, args.w2_packed);
  p.g = g.get(), p.x_rows = x_rows.get(), p.q = q.get(), p.da = da.get();
  p.dots = dots.get(), p.sums = sums.get(), p.wh = wh.get();
  if constexpr (!is_low_precision<O>) p.wh = q.get();
  const Matrix dy_rows{copies ? static_cast<const void*>(g.get()) : p.dy, count, p.out_width};
  const Matrix in_rows{copies ? static_cast<const void*>(x_rows.get()) : p.x, count, p.width};
  const Matrix hidden_rows{p.wh, count, hidden.width}, da_rows{p.da, count, hidden.a_width};
  const auto of_rows = [&](const Matrix& a, const Matrix& w, T* c, int64_t ldc, int64_t N) {
    multiply_rows(ctx, args.compute, args.dtype, rows.groups, a, w, false, c, ldc, N);
  };

  const bool in_vectors = aligned(p.dy, p.x, p.b2.values);
  if (copies || args.dweight)
    dispatch_width<vector_width<Stored<O>>>(D | p.out, in_vectors, [&](auto n) {
      for_rows(ctx, count, max_of(p.width, p.out_width), LoadRow<T, O, n>{p});
    });
  fill_operands(ctx, w1.fill(), w2.fill());
  w1.filled(), w2.filled();
  of_rows(dy_rows, w2.get(), q.get(), hidden.width, w2.get().columns);
  const int64_t all_strips = p.strips + (args.db2 ? ceil_div(p.out, kStrip) : 0);
  dispatch_activation(args.activation, [&](auto tag) {
    if (count > 0 && all_strips > 0)
      dispatch_width<vector_width<T>, 2>(hidden.filled, aligned(p.a), [&](auto n) {
        launch(ctx, hidden_kernel<T, O, decltype(tag)::value, n>, p.row_blocks.grid(all_strips), kWarpBlock, 0, p);
      });
  });
  const FinishSums<T, O> finish_sums{p, static_cast<T*>(args.db1), static_cast<T*>(args.dmult_bias),
                                     static_cast<T*>(args.db2)};
  const FinishDots<T> finish_dots{rows.plan, dots.get(), static_cast<T*>(args.dweight), p.strips + 1};
  const int64_t all_sums = biases ? E * p.sum_width : 0, all_dots = args.dweight ? args.T * args.K : 0;
  elementwise(ctx, all_sums + all_dots, Finish<T, O>{finish_sums, finish_dots, all_sums});
  if (parameters) {
    multiply_over_rows(ctx, args.compute, args.dtype, rows.groups, dy_rows, hidden_rows, args.dw2, p.out * H, p.out, H);
    // Padding between values and gates would be in the gradient of W1, too: then it takes two products.
    const int64_t together = hidden.gate == H ? p.P : H;
    for (int64_t part = 0; part * together < p.P; ++part)
      multiply_over_rows(ctx, args.compute, args.dtype, rows.groups, {p.da + part * hidden.gate, count, hidden.a_width},
                         in_rows, static_cast<T*>(args.dw1) + part * together * D, p.P * D, together, D);
  }
  if (!args.dx) return;
  T* dx = static_cast<T*>(args.dx);
  if (!rows.planned) return of_rows(da_rows, w1.get(), dx, D, D);
  T* products = nullptr;
  if constexpr (!is_low_precision<O>) products = g.get();
  combine_products<T, O>(ctx, args.compute, args.dtype, rows, da_rows, w1.get(), false, products, nullptr, nullptr, dx,
                         D);
}

void expert_ffn_backward(const Context& ctx, const ExpertFfnBackwardArgs& args) {
  const ExpertRows rows = expert_rows_of(ctx, args);
  dispatch_operands(args.dtype, args.compute,
                    [&](auto zero, auto operand) { backward<decltype(zero), decltype(operand)>(ctx, args, rows); });
}

}  // namespace st_moe::cuda

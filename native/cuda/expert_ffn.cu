#include "core/ops/moe.h"
#include "core/activation.h"
#include "cuda/expert_rows.cuh"
#include "cuda/hidden.cuh"

namespace st_moe::cuda {

constexpr int64_t kBlockRows = 32;
constexpr int kLaneColumns = 8;

// h [rows, width] = f(γ) ⊙ v ⊙ μ or f(v), where [v ; γ] or v is x W1ᵀ + b1 and `a` [rows, a_width] is x W1ᵀ.
template <class T, class O>
struct Hidden {
  const Stored<O>* a;
  ExpertBias<T> b1, mult_bias;  // [E, P], [E, H]
  ActivationNumbers<T> numbers;
  HiddenDropout<T> dropout;
  Plan plan;
  Stored<O>* h;
  HiddenColumns columns;
  RowBlocks<kBlockRows> row_blocks;

  // Values c to c + N of a lane, in columns from j on.
  template <Activation activation, int N, class Biases>
  __device__ Vector<Stored<O>, N> activated(uint32_t row, int j, const Biases& biases, int lane, int c,
                                            const Stored<O>* gate) const {
    const Vector<Stored<O>, N> v = load<N>(a + row * columns.a_width + j);
    const Vector<T, N> value_bias = biases.value(lane, c);
    Vector<T, N> values;
    if constexpr (is_gated(activation)) {
      const Vector<T, N> gate_bias = biases.gate(lane, c), mu = biases.mult_bias(lane, c);
      for (int i = 0; i < N; ++i)
        values[i] = activate<activation>(O::load(gate[c + i]) + gate_bias[i], numbers).value *
                    gated_value<activation>(O::load(v[i]) + value_bias[i], numbers).value * mu[i];
    } else {
      for (int i = 0; i < N; ++i) values[i] = activate<activation>(O::load(v[i]) + value_bias[i], numbers).value;
    }
    const uint32_t kept = dropout.template kept<N>(dropout.active ? plan.assignment_of(row) : 0, j);
    Vector<Stored<O>, N> out;
    for (int i = 0; i < N; ++i) out[i] = O::store(j + i < columns.H ? dropout(values[i], kept, i) : T(0));
    return out;
  }
};

// A strip of columns of a block of rows by a block, whose warps take the rows in turn.
template <class T, class O, Activation activation, int N>
__global__ void __launch_bounds__(kWarpBlock, sizeof(T) == 4 ? half_resident(kWarpBlock) : 1)
    activate_kernel(Hidden<T, O> p) {
  __shared__ StripBiases<T, N, kLaneColumns> biases;
  using Columns = Strip<N, kLaneColumns>;
  const auto rows = p.row_blocks.rows();
  if (rows.empty()) return;
  const int first = p.row_blocks.strip() * Columns::size;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, left = static_cast<int>(p.columns.filled) - first;
  biases.template fill<is_gated(activation)>(p.b1, p.mult_bias, rows.group, first, p.columns.H);
  __syncthreads();
  const uint32_t end = static_cast<uint32_t>(rows.end);
#pragma unroll 1
  for (uint32_t row = static_cast<uint32_t>(rows.begin) + warp; row < end; row += kStripWarps) {
    Stored<O> gates[kLaneColumns];
    if constexpr (is_gated(activation))
      StripGates<N, kLaneColumns>::load(p.a + row * p.columns.a_width + p.columns.gate + first, left, lane, gates);
    Vector<Stored<O>, N> h[kLaneColumns / N]{};
#pragma unroll
    for (int c = 0; c < kLaneColumns; c += N)
      if (const int j = first + Columns::column(lane, c); j < p.columns.filled)
        h[c / N] = p.template activated<activation, N>(row, j, biases, lane, c, gates);
#pragma unroll
    for (int c = 0; c < kLaneColumns; c += N)
      if (const int j = first + Columns::column(lane, c); j < p.columns.filled)
        store(p.h + row * p.columns.width + j, h[c / N]);
  }
}

template <class T, class O>
static void forward(const Context& ctx, const ExpertFfnArgs& args, const ExpertRows& rows) {
  const int64_t D = args.D, H = args.H, E = args.E, count = rows.count(), outputs = args.O, width = padded<O>(D);
  const HiddenColumns columns = HiddenColumns::of(args.activation, H, args.compute);
  const bool gathers = rows.planned, copies = gathers || is_low_precision<O>;
  const T *x = static_cast<const T*>(args.x), *weight = static_cast<const T*>(args.weight);
  T* y = static_cast<T*>(args.y);
  // x of the rows is no longer needed when there are outputs to combine.
  const int64_t shared_width = is_low_precision<O> ? width : max_of(width, outputs);
  Scratch<Stored<O>> x_rows(ctx, copies ? count * shared_width : 0), h(ctx, count * columns.width);
  Scratch<Stored<O>> unsaved(ctx, args.a ? 0 : count * columns.a_width);
  OperandWeight<T, O> w1(ctx, args.w1, args.w1_stored, args.compute, E, H, D, args.w1_packed,
                         w1_rows(args.activation, 1));
  OperandWeight<T, O> w2(ctx, args.w2, args.w2_stored, args.compute, E, outputs, H, args.w2_packed);
  Stored<O>* a = args.a ? static_cast<Stored<O>*>(args.a) : unsaved.get();

  if (gathers) {
    fill_operands(ctx, FillOperand<T, O, PlannedToken, Values<T>>{{x, D}, x_rows.get(), count, D, {rows.plan}},
                  w1.fill(), w2.fill());
  } else {
    fill_operands(ctx, FillOperand<T, O, SameRow, Values<T>>{{x, D}, x_rows.get(), copies ? count : 0, D, {}},
                  w1.fill(), w2.fill());
  }
  w1.filled(), w2.filled();
  if (count > 0) {
    const Matrix in{copies ? static_cast<const void*>(x_rows.get()) : x, count, width};
    multiply_rows(ctx, args.compute, args.compute, rows.groups, in, w1.get(), true, a, columns.a_width, w1.get().rows);
    const Hidden<T, O> hidden{a,
                              {static_cast<const T*>(args.b1), w1_rows(args.activation, H)},
                              {static_cast<const T*>(args.mult_bias), H},
                              ActivationNumbers<T>::of(args),
                              HiddenDropout<T>::of(ctx, args),
                              rows.plan,
                              h.get(),
                              columns,
                              RowBlocks<kBlockRows>(rows.groups)};
    const int64_t strips = ceil_div(columns.filled, kLaneColumns * kWarp);
    dispatch_activation(args.activation, [&](auto tag) {
      dispatch_width<vector_width<Stored<O>>, 2>(columns.filled, aligned(a), [&](auto n) {
        if (strips > 0)
          launch(ctx, activate_kernel<T, O, decltype(tag)::value, n>, hidden.row_blocks.grid(strips), kWarpBlock, 0,
                 hidden);
      });
    });
  }
  T* products = gathers ? nullptr : y;
  if constexpr (!is_low_precision<O>) products = gathers ? x_rows.get() : y;
  combine_products<T, O>(ctx, args.compute, args.dtype, rows, {h.get(), count, columns.width}, w2.get(), true, products,
                         weight, static_cast<const T*>(args.b2), y, outputs);
}

void expert_ffn(const Context& ctx, const ExpertFfnArgs& args) {
  const ExpertRows rows = expert_rows_of(ctx, args);
  dispatch_operands(args.dtype, args.compute,
                    [&](auto zero, auto operand) { forward<decltype(zero), decltype(operand)>(ctx, args, rows); });
}

int64_t saved_values(Activation activation, int64_t H, DType compute) {
  return HiddenColumns::of(activation, H, compute).a_width;
}

}  // namespace st_moe::cuda

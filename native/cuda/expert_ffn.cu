#include "cuda/ops.h"

#include "core/activation.h"
#include "cuda/expert_rows.cuh"

namespace st_moe::cuda {

constexpr int64_t kActivateRows = 4;  // of one expert, for which its biases are loaded once

// Rows of h [rows, padded H] = f(γ) ⊙ v ⊙ μ or f(v), where [v ; γ] or v is x W1ᵀ + b1 and `a` [rows, saved columns] is
// x W1ᵀ. By blocks of kActivateRows rows.
template <class T, class O, Activation activation, int N>
struct Activate {
  const Stored<O>* a;
  ExpertBias<T> b1, mult_bias;  // [E, P], [E, H]
  ActivationNumbers<T> numbers;
  HiddenDropout<T> dropout;
  Plan plan;
  Stored<O>* h;
  int64_t H, width, saved;
  RowBlocks<kActivateRows> blocks;

  struct Biases {
    Vector<T, N> value, gate, factor;
  };

  __device__ Vector<Stored<O>, N> values(int64_t row, int64_t j, const Biases& bias) const {
    Vector<Stored<O>, N> out;
    const auto* saved_row = a + row * saved;
    const Vector<uint32_t, N> words = dropout.template words<N>(dropout.active ? plan.assignment_of(row) : 0, j);
    const Vector<Stored<O>, N> v = load<N>(saved_row + j);
    if constexpr (is_gated(activation)) {
      const Vector<Stored<O>, N> gate = load<N>(saved_row + H + j);
      for (int c = 0; c < N; ++c) {
        const T value = activate<activation>(O::load(gate[c]) + bias.gate[c], numbers).value *
                        gated_value<activation>(O::load(v[c]) + bias.value[c], numbers).value * bias.factor[c];
        out[c] = O::store(dropout(value, words[c]));
      }
    } else {
      for (int c = 0; c < N; ++c)
        out[c] = O::store(dropout(activate<activation>(O::load(v[c]) + bias.value[c], numbers).value, words[c]));
    }
    return out;
  }

  template <class Group>
  __device__ void operator()(int64_t block, Group group) const {
    const auto [expert, begin, end] = blocks.at(block);
    const T *of_b1 = b1.of(expert), *mu = mult_bias.of(expert);
    for (int64_t j = group.lane() * N; j < width; j += Group::size * N) {
      Biases bias{};
      if (j < H) {
        bias.value = load_bias<N>(of_b1, j, T(0));
        if constexpr (is_gated(activation))
          bias.gate = load_bias<N>(of_b1, H + j, T(0)), bias.factor = load_bias<N>(mu, j, T(1));
      }
#pragma unroll 1
      for (int64_t row = begin; row < end; ++row)
        store(h + row * width + j, j < H ? values(row, j, bias) : Vector<Stored<O>, N>{});
    }
  }
};

template <class T, class O>
static void forward(const Context& ctx, const ExpertFfnArgs& args, const ExpertRows& rows) {
  const int64_t D = args.D, H = args.H, E = args.E, P = w1_rows(args.activation, H), count = rows.count();
  const int64_t outputs = args.O;
  const int64_t width = padded<O>(D), hidden = padded<O>(H), saved = saved_columns(P);
  const bool gathers = rows.planned, copies = gathers || is_low_precision<O>;
  const T *x = static_cast<const T*>(args.x), *weight = static_cast<const T*>(args.weight);
  T* y = static_cast<T*>(args.y);
  // x of the rows is no longer needed when there are outputs to combine.
  const int64_t shared_width = is_low_precision<O> ? width : max_of(width, outputs);
  Scratch<Stored<O>> x_rows(ctx, copies ? count * shared_width : 0), h(ctx, count * hidden);
  Scratch<Stored<O>> unsaved(ctx, args.a ? 0 : count * saved);
  OperandWeight<T, O> w1(ctx, args.w1, args.compute, E, P, D, args.w1_packed);
  OperandWeight<T, O> w2(ctx, args.w2, args.compute, E, outputs, H, args.w2_packed);
  Stored<O>* a = args.a ? static_cast<Stored<O>*>(args.a) : unsaved.get();

  if (gathers) {
    fill_operands(ctx, FillOperand<T, O, PlannedToken>{x, x_rows.get(), count, D, {rows.plan}}, w1.fill(), w2.fill());
  } else if (copies) {
    fill_operands(ctx, FillOperand<T, O, SameRow>{x, x_rows.get(), count, D, {}}, w1.fill(), w2.fill());
  }
  w1.filled(), w2.filled();
  if (count > 0) {
    const Matrix in{copies ? static_cast<const void*>(x_rows.get()) : x, count, width};
    multiply_rows(ctx, args.compute, args.compute, rows.groups, in, w1.get(), true, a, saved,
                  is_low_precision<O> ? w1.get().rows : P);
    dispatch_activation(args.activation, [&](auto tag) {
      const ExpertBias<T> bias{static_cast<const T*>(args.b1), P}, mu{static_cast<const T*>(args.mult_bias), H};
      const auto numbers = ActivationNumbers<T>::of(args);
      const auto dropout = HiddenDropout<T>::of(ctx, args);
      const RowBlocks<kActivateRows> blocks(rows.groups);
      dispatch_width<vector_width<Stored<O>>, 2>(H, aligned(a, bias.values, mu.values, h.get()), [&](auto n) {
        for_rows(ctx, blocks.count(), hidden,
                 Activate<T, O, decltype(tag)::value, n>{a, bias, mu, numbers, dropout, rows.plan, h.get(), H, hidden,
                                                         saved, blocks});
      });
    });
  }
  T* products = gathers ? nullptr : y;
  if constexpr (!is_low_precision<O>) products = gathers ? x_rows.get() : y;
  combine_products<T, O>(ctx, args.compute, args.dtype, rows, {h.get(), count, hidden}, w2.get(), true, products,
                         weight, static_cast<const T*>(args.b2), y, outputs);
}

void expert_ffn(const Context& ctx, const ExpertFfnArgs& args) {
  const ExpertRows rows = expert_rows_of(ctx, args);
  dispatch_operands(args.dtype, args.compute,
                    [&](auto zero, auto operand) { forward<decltype(zero), decltype(operand)>(ctx, args, rows); });
}

}  // namespace st_moe::cuda

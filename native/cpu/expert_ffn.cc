#include "core/ops/moe.h"
#include "core/activation.h"
#include "cpu/dropout.h"
#include "cpu/expert_rows.h"
#include "cpu/packed_weights.h"

namespace st_moe::cpu::ST_MOE_ISA {

// A chunk ends where an expert ends, unless the expert alone is larger than a chunk. Then it leaves more than a few
// of its rows, which a GEMM would add up in another order.
static int64_t chunk_end(const Assignments& assignments, int64_t E, int64_t begin, int64_t limit) {
  const int64_t end = begin + limit;
  if (end >= assignments.rows()) return assignments.rows();
  int64_t expert = 0;
  while (expert < E && assignments.end(expert) <= end) ++expert;
  if (assignments.begin(expert) > begin) return assignments.begin(expert);
  return min_of(end, assignments.end(expert) - kSkinnyRows - 1);
}

// Columns of one row: h = f(γ) ⊙ v ⊙ μ or f(v)
template <Activation activation, class T, class S>
static void hidden_row(ActivationNumbers<T> numbers, const S* __restrict value, const S* __restrict gate,
                       const T* __restrict mu, T* __restrict h, int64_t n) {
  for (int64_t j = 0; j < n; ++j)
    if constexpr (is_gated(activation))
      h[j] = activate<activation, precision_of<S>>(number(gate[j]), numbers).value *
             gated_value<activation>(number(value[j]), numbers).value * mu[j];
    else
      h[j] = activate<activation, precision_of<S>>(number(value[j]), numbers).value;
}

template <class T, class S>
using HiddenRow = void (*)(ActivationNumbers<T>, const S*, const S*, const T*, T*, int64_t);

// Rows of h [rows, H] from those of the pre-activations [rows, P]. offset: of the first row in the sorted order.
template <class S, class T>
static void hidden_rows(HiddenRow<T, S> activate_row, const ActivationNumbers<T>& numbers, const ActivationRows<T>& pre,
                        const T* mult_bias, const HiddenDropout<T>& dropout, const ActivationRows<T>& h, int64_t offset,
                        int64_t begin, int64_t end, bool gated) {
  const int64_t H = dropout.H;
  T values[kColumnBlock], gates[kColumnBlock], hidden[kColumnBlock];
  for (int64_t r = begin; r < end; ++r)
    for (int64_t from = 0; from < H; from += h.block()) {
      const int64_t n = min_of(H - from, h.block());
      pre.prefetch(r + 2, end, from, n);
      if (gated) pre.prefetch(r + 2, end, H + from, n);
      const S* gate = gated ? pre.template read<S>(r, H + from, n, gates) : nullptr;
      T* out = h.place(r, from, hidden);
      activate_row(numbers, pre.template read<S>(r, from, n, values), gate, mult_bias + from, out, n);
      dropout.apply(out, offset + r, from, n);
      h.store(r, from, n, out);
    }
}

// y [rows, O] = the experts' outputs in sorted order.
template <class T>
static void expert_rows(const Context& ctx, const ExpertFfnArgs& args, const Assignments& assignments,
                        const ActivationRows<T>& y) {
  using Rows = ActivationRows<T>;
  const int64_t D = args.D, O = args.O, E = args.E, H = args.H, P = w1_rows(args.activation, H);
  const int64_t rows = assignments.rows();
  const int64_t limit = rows_per_chunk<T>(ctx, P + H, args.compute);
  const bool gated = is_gated(args.activation);
  const ExpertBias<T> mult_bias(args.mult_bias, H, T(1));
  const auto numbers = ActivationNumbers<T>::of(args);
  const auto dropout = HiddenDropout<T>::of(args, assignments.assignment());
  const T* x = static_cast<const T*>(args.x);
  const T *b1 = static_cast<const T*>(args.b1), *b2 = static_cast<const T*>(args.b2);
  const auto w1 = [&](int64_t e) { return weights_of<T>(args.w1, args.w1_stored, 1, D, E * P * D, e * P * D); };
  const auto w2 = [&](int64_t e) { return weights_of<T>(args.w2, args.w2_stored, 1, H, E * O * H, e * O * H); };
  const PackedWeights<T> w1_packed(ctx, args.w1_packed, w1(0), E, P * D, D, P, args.compute);
  const PackedWeights<T> w2_packed(ctx, args.w2_packed, w2(0), E, O * H, H, O, args.compute);

  const auto compute = [&](const Context& ctx, const Span& span) {
    const int64_t begin = span.begin, end = span.end;
    const Scratch<T> unsaved(args.a ? 0 : (end - begin) * Rows::stride_of(P, args.compute));
    const Scratch<T> hidden((end - begin) * Rows::stride_of(H, args.compute));
    const Rows h(ctx, hidden, H, args.compute);
    const Rows pre =
        args.a ? Rows(ctx, args.a, P, args.saved, args.compute).from(begin) : Rows(ctx, unsaved, P, args.compute);
    Scratch<Piece> pieces(span.experts());
    Scratch<GemmProblem<T>> problems(span.experts());
    int64_t count = 0;
    for (int64_t e = span.first_expert; e < span.last_expert; ++e) {
      const Piece piece{e, max_of(begin, assignments.begin(e)), min_of(end, assignments.end(e))};
      if (piece.begin >= piece.end) continue;
      const int32_t* token = assignments.token();
      const MatrixView<T> in{token ? x : x + piece.begin * D, D, 1, token ? token + piece.begin : nullptr};
      problems[count] = {piece.rows(), P, D, in, w1(e), nullptr, P, b1 ? b1 + e * P : nullptr};
      pre.take_result(problems[count], piece.begin - begin);
      problems[count].packed_b = w1_packed.at(e);
      pieces[count++] = piece;
    }
    gemm(ctx, problems.get(), count, args.compute);
    pre.with_read_type([&](auto zero) {
      using S = decltype(zero);
      HiddenRow<T, S> activate_row = nullptr;
      dispatch_activation(args.activation, [&](auto tag) { activate_row = hidden_row<decltype(tag)::value, T, S>; });
      parallel_blocks(ctx, end - begin, rows_per_task((P + H) * sizeof(T)), [&](int64_t from, int64_t to) {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t first = max_of(from, pieces[i].begin - begin), last = min_of(to, pieces[i].end - begin);
          const T* mu = mult_bias.of(pieces[i].expert);
          hidden_rows(activate_row, numbers, pre, mu, dropout, h, begin, first, last, gated);
        }
      });
    });
    for (int64_t i = 0; i < count; ++i) {
      const Piece& piece = pieces[i];
      const T* bias = b2 ? b2 + piece.expert * O : nullptr;
      problems[i] = {piece.rows(), O, H, h.rows(piece.begin - begin), w2(piece.expert), nullptr, O, bias};
      y.take_result(problems[i], piece.begin);
      problems[i].packed_b = w2_packed.at(piece.expert);
    }
    gemm(ctx, problems.get(), count, args.compute);
  };

  if (in_pieces(ctx, {0, E, 0, rows}, (P * D + O * H) * static_cast<int64_t>(sizeof(T)))) {
    const Pieces pieces(assignments, 0, E);
    return parallel_for(ctx, pieces.count(), [&](int64_t i) {
      const Piece& piece = pieces[i];
      compute(Context{1, ctx.stream}, {piece.expert, piece.expert + 1, piece.begin, piece.end});
    });
  }
  for (int64_t begin = 0, end; begin < rows; begin = end) {
    end = chunk_end(assignments, E, begin, limit);
    compute(ctx, {0, E, begin, end});
  }
}

void expert_ffn(const Context& ctx, const ExpertFfnArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Assignments assignments(args);
    const T* weight = static_cast<const T*>(args.weight);
    T* y = static_cast<T*>(args.y);
    const bool in_place = assignments.dense() && !weight;
    if (in_place) return expert_rows(ctx, args, assignments, ActivationRows<T>(ctx, y, args.O, args.O));
    const DType summed = summed_rows(args.dtype, args.compute);
    const Scratch<T> memory(assignments.rows() * ActivationRows<T>::stride_of(args.O, summed));
    const ActivationRows<T> rows(ctx, memory, args.O, summed);
    expert_rows(ctx, args, assignments, rows);
    combine_rows(ctx, assignments.row_of(), rows, weight, y, args.T, args.K, args.O);
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

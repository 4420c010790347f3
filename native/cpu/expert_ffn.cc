#include "cpu/ops.h"

#include "core/activation.h"
#include "cpu/expert_rows.h"
#include "cpu/packed_weights.h"
#include "cpu/saved_rows.h"

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

// h [rows, H] of the pre-activations [rows, P]: f(γ) ⊙ v ⊙ μ or f(v)
template <Activation activation, class T>
static void hidden_rows(const T* pre, const T* mult_bias, T* h, int64_t rows, int64_t H) {
  constexpr bool gated = is_gated(activation);
  const T* __restrict mu = mult_bias;
  for (int64_t r = 0; r < rows; ++r) {
    const T* __restrict value = pre + r * w1_rows(activation, H);
    const T* __restrict gate = gated ? value + H : nullptr;
    T* __restrict out = h + r * H;
    for (int64_t j = 0; j < H; ++j)
      if constexpr (gated)
        out[j] = activate<activation>(gate[j]).value * value[j] * mu[j];
      else
        out[j] = activate<activation>(value[j]).value;
  }
}

// y_rows [rows, D] = the experts' outputs in sorted order.
template <class T>
static void expert_rows(const Context& ctx, const ExpertFfnArgs& args, const Assignments& assignments, T* y_rows) {
  const int64_t D = args.D, E = args.E, H = args.H, P = w1_rows(args.activation, H), rows = assignments.rows();
  const int64_t limit = rows_per_chunk<T>(ctx, P + H);
  const T *x = static_cast<const T*>(args.x), *mult_bias = static_cast<const T*>(args.mult_bias);
  const T *w1 = static_cast<const T*>(args.w1), *b1 = static_cast<const T*>(args.b1);
  const T *w2 = static_cast<const T*>(args.w2), *b2 = static_cast<const T*>(args.b2);
  const SavedRows<T> saved(args.a, args.saved, args.compute);
  const bool in_place = args.a && !saved.low_precision(), converts = args.a && !in_place;
  const int64_t chunk_rows = min_of(rows, limit);
  Scratch<T> h(chunk_rows * H), unsaved(in_place ? 0 : chunk_rows * P);
  Scratch<Piece> pieces(E);
  Scratch<GemmProblem<T>> problems(E);
  const MatrixView<T> w1_view{w1, 1, D}, w2_view{w2, 1, H};
  const PackedWeights<T> w1_packed(ctx, args.w1_packed, w1_view, E, P * D, D, P, args.compute);
  const PackedWeights<T> w2_packed(ctx, args.w2_packed, w2_view, E, D * H, H, D, args.compute);
  void (*activate_rows)(const T*, const T*, T*, int64_t, int64_t) = nullptr;
  dispatch_activation(args.activation, [&](auto tag) { activate_rows = hidden_rows<decltype(tag)::value, T>; });

  for (int64_t begin = 0, end; begin < rows; begin = end) {
    end = chunk_end(assignments, E, begin, limit);
    T* pre = in_place ? saved.row(begin) : unsaved.get();
    int64_t count = 0;
    for (int64_t e = 0; e < E; ++e) {
      const Piece piece{e, max_of(begin, assignments.begin(e)), min_of(end, assignments.end(e))};
      if (piece.begin >= piece.end) continue;
      const int32_t* token = assignments.token();
      const MatrixView<T> in{token ? x : x + piece.begin * D, D, 1, token ? token + piece.begin : nullptr};
      const MatrixView<T> weights{w1 + e * P * D, 1, D};
      T* out = pre + (piece.begin - begin) * P;
      problems[count] = {piece.rows(), P, D, in, weights, out, P, b1 + e * P};
      problems[count].packed_b = w1_packed.at(e);
      pieces[count++] = piece;
    }
    gemm(ctx, problems.get(), count, args.compute);
    parallel_blocks(ctx, end - begin, rows_per_task((P + H) * sizeof(T)), [&](int64_t from, int64_t to) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t first = max_of(from, pieces[i].begin - begin), last = min_of(to, pieces[i].end - begin);
        const T* mu = mult_bias ? mult_bias + pieces[i].expert * H : nullptr;
        if (first >= last) continue;
        activate_rows(pre + first * P, mu, h.get() + first * H, last - first, H);
        for (int64_t r = first; converts && r < last; ++r) saved.store(pre + r * P, begin + r, P);
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      const Piece& piece = pieces[i];
      const MatrixView<T> hidden{h.get() + (piece.begin - begin) * H, H, 1};
      const MatrixView<T> weights{w2 + piece.expert * D * H, 1, H};
      T* out = y_rows + piece.begin * D;
      problems[i] = {piece.rows(), D, H, hidden, weights, out, D, b2 + piece.expert * D};
      problems[i].packed_b = w2_packed.at(piece.expert);
    }
    gemm(ctx, problems.get(), count, args.compute);
  }
}

void expert_ffn(const Context& ctx, const ExpertFfnArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Assignments assignments(args);
    const T* weight = static_cast<const T*>(args.weight);
    T* y = static_cast<T*>(args.y);
    const bool in_place = assignments.dense() && !weight;
    Scratch<T> y_rows(in_place ? 0 : assignments.rows() * args.D);
    expert_rows(ctx, args, assignments, in_place ? y : y_rows.get());
    if (!in_place) combine_rows(ctx, assignments.row_of(), y_rows.get(), weight, y, args.T, args.K, args.D);
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

#include <initializer_list>

#include "both.h"
#include "size.h"

// The layers of a transformer on the device against the CPU.
using namespace st_moe;
using namespace st_moe::test;

namespace {

std::string label(const char* op, DType dtype, std::initializer_list<int64_t> sizes) {
  std::string text = std::string(op) + " " + dtype_name(dtype);
  for (const int64_t size : sizes) text += " " + std::to_string(size);
  return text;
}

struct Rows {
  int64_t T, D;
};
const Rows kRows[] = {{0, 5}, {1, 1}, {3, 2}, {9, 33}, {70, 129}, {150, 64}, {2500, 3}, {3, 1025}, {2, 5000}};

void matmul_case(DType dtype, int64_t batch, int64_t M, int64_t N, int64_t K, int flags) {
  const bool ta = flags & 1, tb = flags & 2, shared_a = flags & 4, shared_b = flags & 8;
  Tensor a(dtype, (shared_a ? 1 : batch) * M * K), b(dtype, (shared_b ? 1 : batch) * K * N), y(dtype, batch * M * N);
  fill_normal(a), fill_normal(b);
  compare<MatmulArgs>(
      label("matmul", dtype, {batch, M, N, K, flags}), &OpTable::matmul,
      [&](bool cpu) {
        return MatmulArgs{
            a.at(cpu), b.at(cpu), y.at(cpu), dtype, batch, M, N, K, shared_a ? 0 : M * K, shared_b ? 0 : K * N, ta, tb};
      },
      {&y}, sum_slack(K));
}

void linear_case(DType dtype, int64_t T, int64_t I, int64_t O) {
  Tensor x(dtype, T * I), w(dtype, O * I), bias(dtype, O), y(dtype, T * O);
  Tensor dy(dtype, T * O), dx(dtype, T * I), dw(dtype, O * I), dbias(dtype, O);
  fill_normal(x), fill_normal(w), fill_normal(bias), fill_normal(dy);
  for (const bool biased : {true, false})
    compare<LinearArgs>(
        label("linear", dtype, {T, I, O, biased}), &OpTable::linear,
        [&](bool cpu) {
          return LinearArgs{x.at(cpu), w.at(cpu), biased ? bias.at(cpu) : nullptr, y.at(cpu), dtype, dtype, T, I, O};
        },
        {&y}, sum_slack(I));
  compare<LinearBackwardArgs>(
      label("linear_backward", dtype, {T, I, O}), &OpTable::linear_backward,
      [&](bool cpu) {
        return LinearBackwardArgs{dy.at(cpu), x.at(cpu), w.at(cpu), dx.at(cpu), dw.at(cpu), dbias.at(cpu),
                                  dtype,      dtype,     T,         I,          O};
      },
      {&dx, &dw, &dbias}, sum_slack(std::max(T, O)));
}

void embedding_case(DType dtype, int64_t T, int64_t D, int64_t V, int64_t used) {
  Tensor w(dtype, V * D), index(DType::i32, T), y(dtype, T * D), dy(dtype, T * D), dw(dtype, V * D);
  fill_normal(w), fill_normal(dy), fill_index(index, used);
  compare<EmbeddingArgs>(
      label("embedding", dtype, {T, D, V}), &OpTable::embedding,
      [&](bool cpu) { return EmbeddingArgs{w.at(cpu), index.index_at(cpu), y.at(cpu), dtype, T, D, V}; }, {&y}, 0);
  const auto backward = [&](bool cpu) {
    return EmbeddingBackwardArgs{dy.at(cpu), index.index_at(cpu), dw.at(cpu), dtype, T, D, V};
  };
  compare<EmbeddingBackwardArgs>(label("embedding_backward", dtype, {T, D, V}), &OpTable::embedding_backward, backward,
                                 {&dw}, 0);
  if (T < 2) return;
  // A fault adds to no row: what the others give is what the CPU gives with a zero row of dy at the fault.
  const int64_t at = T / 2;
  const double kept = index.get(index.host, at);
  for (const double hostile : {-1.0, static_cast<double>(V), 2147483647.0, -2147483648.0}) {
    index.set(at, hostile), index.upload();
    expect_fault<EmbeddingArgs>(
        "embedding", &OpTable::embedding,
        [&](bool cpu) { return EmbeddingArgs{w.at(cpu), index.index_at(cpu), y.at(cpu), dtype, T, D, V}; }, y);
    blank({&dw});
    expect_fault<EmbeddingBackwardArgs>("embedding_backward", &OpTable::embedding_backward, backward, dw);
    std::vector<char> got;
    dw.download(got);
    index.set(at, kept);
    for (int64_t j = 0; j < D; ++j) dy.set(at * D + j, 0);
    cpu_backend().ops.embedding_backward(Context{1, nullptr}, backward(true));
    expect(difference(dw, got) == 0, label("embedding_backward with a fault", dtype, {T, D, V}));
  }
}

// A NaN in one row stays there.
void poison_row(Tensor& x, Rows s) {
  if (s.T < 3) return;
  x.set(s.D + s.D / 2, NAN);
  x.upload();
}

void norm_cases(DType dtype, Rows s, bool poisoned) {
  Tensor x(dtype, s.T * s.D), dy(dtype, s.T * s.D), w(dtype, s.D), b(dtype, s.D), y(dtype, s.T * s.D);
  Tensor dx(dtype, s.T * s.D), dw(dtype, s.D), db(dtype, s.D);
  fill_normal(x, 0.5), fill_normal(dy), fill_normal(w, 1), fill_normal(b);
  for (int64_t j = 0; s.T > 3 && j < s.D; ++j) x.set(j, 0);  // the floor of the norm
  x.upload();
  if (poisoned) poison_row(x, s);
  const double eps = 1e-5;
  const double magnitude =
      s.D > 2 ? 0 : 1000;  // of one value or two the gradient is what rounding leaves of large terms
  compare<RmsnormArgs>(label("rmsnorm", dtype, {s.T, s.D}), &OpTable::rmsnorm,
                       [&](bool cpu) { return RmsnormArgs{x.at(cpu), w.at(cpu), y.at(cpu), dtype, s.T, s.D}; }, {&y});
  compare<LayernormArgs>(
      label("layernorm", dtype, {s.T, s.D}), &OpTable::layernorm,
      [&](bool cpu) { return LayernormArgs{x.at(cpu), w.at(cpu), b.at(cpu), y.at(cpu), dtype, s.T, s.D, eps}; }, {&y});
  for (int wanted = 0; wanted < 8; ++wanted) {
    const auto pick = [&](Tensor& t, int bit, bool cpu) { return wanted & bit ? t.at(cpu) : nullptr; };
    if (wanted < 4)
      compare<RmsnormBackwardArgs>(
          label("rmsnorm_backward", dtype, {s.T, s.D, wanted}), &OpTable::rmsnorm_backward,
          [&](bool cpu) {
            return RmsnormBackwardArgs{dy.at(cpu),       x.at(cpu), w.at(cpu), pick(dx, 1, cpu),
                                       pick(dw, 2, cpu), dtype,     s.T,       s.D};
          },
          {&dx, &dw}, 1, magnitude);
    compare<LayernormBackwardArgs>(
        label("layernorm_backward", dtype, {s.T, s.D, wanted}), &OpTable::layernorm_backward,
        [&](bool cpu) {
          return LayernormBackwardArgs{
              dy.at(cpu), x.at(cpu), w.at(cpu), pick(dx, 1, cpu), pick(dw, 2, cpu), pick(db, 4, cpu), dtype,
              s.T,        s.D,       eps};
        },
        {&dx, &dw, &db}, 1, magnitude);
  }
}

void softmax_case(DType dtype, Rows s, int32_t log, bool poisoned) {
  Tensor x(dtype, s.T * s.D), y(dtype, s.T * s.D), dy(dtype, s.T * s.D), dx(dtype, s.T * s.D);
  fill_normal(x, 3), fill_normal(dy);
  if (poisoned) poison_row(x, s);
  for (int64_t j = 0; poisoned && s.T > 8 && j < s.D; ++j)
    x.set(5 * s.D + j, -INFINITY), x.set(6 * s.D + j, j ? -INFINITY : 1e30);
  if (poisoned && s.T > 8) x.set(8 * s.D - 1, INFINITY);
  x.upload();
  compare<SoftmaxArgs>(label("softmax", dtype, {s.T, s.D, log, poisoned}), &OpTable::softmax,
                       [&](bool cpu) { return SoftmaxArgs{x.at(cpu), y.at(cpu), dtype, s.T, s.D, log}; }, {&y});
  if (poisoned) return;
  y.upload();  // the CPU's
  compare<SoftmaxBackwardArgs>(
      label("softmax_backward", dtype, {s.T, s.D, log}), &OpTable::softmax_backward,
      [&](bool cpu) { return SoftmaxBackwardArgs{dy.at(cpu), y.at(cpu), dx.at(cpu), dtype, s.T, s.D, log}; }, {&dx});
}

void cross_entropy_case(DType dtype, Rows s, int64_t ignored_of_4, bool poisoned) {
  Tensor x(dtype, s.T * s.D), target(DType::i32, s.T), loss(dtype, 1), lse(dtype, s.T), dloss(dtype, 1),
      dx(dtype, s.T * s.D);
  fill_normal(x), fill_normal(dloss, 3), fill_index(target, s.D);
  for (int64_t t = 0; t < s.T; ++t)
    if (source.below(4) < ignored_of_4) target.set(t, -100);
  target.upload();
  if (poisoned) poison_row(x, s);
  const auto forward = [&](bool cpu) {
    return CrossEntropyArgs{x.at(cpu), target.index_at(cpu), loss.at(cpu), lse.at(cpu), dtype, s.T, s.D, -100};
  };
  const auto backward = [&](bool cpu) {
    return CrossEntropyBackwardArgs{dloss.at(cpu), x.at(cpu), lse.at(cpu), target.index_at(cpu), dx.at(cpu), dtype,
                                    s.T,           s.D,       -100};
  };
  const std::string sizes = label("", dtype, {s.T, s.D, ignored_of_4});
  compare<CrossEntropyArgs>("cross_entropy" + sizes, &OpTable::cross_entropy, forward, {&loss, &lse});
  lse.upload();
  compare<CrossEntropyBackwardArgs>("cross_entropy_backward" + sizes, &OpTable::cross_entropy_backward, backward,
                                    {&dx});
  if (s.T == 0) return;
  for (const double hostile : {-1.0, static_cast<double>(s.D), 2147483647.0, -2147483648.0}) {
    target.set(s.T - 1, hostile), target.upload();
    expect_fault<CrossEntropyArgs>("cross_entropy", &OpTable::cross_entropy, forward, loss);
    std::vector<char> got;
    loss.download(got);
    expect(std::isnan(loss.get(got, 0)), "cross_entropy: a faulty target makes the mean NaN");
    expect_fault<CrossEntropyBackwardArgs>("cross_entropy_backward", &OpTable::cross_entropy_backward, backward, dx);
    dx.download(got);
    target.set(s.T - 1, -100);
    cpu_backend().ops.cross_entropy_backward(Context{1, nullptr}, backward(true));
    expect(difference(dx, got) <= 1e-6, "cross_entropy_backward: a faulty row is left out");
  }
}

struct Heads {
  int64_t B, Nq, Nk, heads, d;
};

enum Mode { kAll, kCausal, kCausalNan, kInfinite };

// kCausalNan: the last key and value, which only the last query sees, and the first query, which sees few keys, hold
// NaNs. kInfinite (d = 1): the first 66 scores of each row are −∞.
void attention_case(DType dtype, Heads s, Mode mode) {
  const int32_t causal = mode == kCausal || mode == kCausalNan;
  const int64_t width = s.heads * s.d, rows_q = s.B * s.Nq, rows_k = s.B * s.Nk;
  Tensor q(dtype, rows_q * width), k(dtype, rows_k * width), v(dtype, rows_k * width), y(dtype, rows_q * width);
  Tensor lse(dtype, rows_q * s.heads), dy(dtype, rows_q * width);
  Tensor dq(dtype, rows_q * width), dk(dtype, rows_k * width), dv(dtype, rows_k * width);
  fill_normal(q), fill_normal(k), fill_normal(v), fill_normal(dy);
  for (int64_t i = 0; mode == kInfinite && i < q.size; ++i) q.set(i, 1);
  for (int64_t j = 0; mode == kInfinite && j < 66 && j < k.size; ++j) k.set(j, -INFINITY);
  if (mode == kCausalNan && k.size && q.size)
    k.set(k.size - 1, NAN), v.set(v.size - 1, NAN), q.set(0, NAN), dy.set(width - 1, NAN);
  for (Tensor* x : {&q, &k, &v, &dy}) x->upload();
  const double scale = 1 / std::sqrt(static_cast<double>(s.d < 1 ? 1 : s.d));
  const std::string sizes = label("", dtype, {s.B, s.Nq, s.Nk, s.heads, s.d, mode});
  compare<AttentionArgs>("attention" + sizes, &OpTable::attention,
                         [&](bool cpu) {
                           return AttentionArgs{q.at(cpu), k.at(cpu), v.at(cpu), y.at(cpu), lse.at(cpu), dtype, s.B,
                                                s.Nq,      s.Nk,      s.heads,   s.d,       scale,       causal};
                         },
                         {&y, &lse});
  y.upload(), lse.upload();
  compare<AttentionBackwardArgs>(
      "attention_backward" + sizes, &OpTable::attention_backward,
      [&](bool cpu) {
        return AttentionBackwardArgs{dy.at(cpu), q.at(cpu),  k.at(cpu),  v.at(cpu), y.at(cpu), lse.at(cpu),
                                     dq.at(cpu), dk.at(cpu), dv.at(cpu), dtype,     s.B,       s.Nq,
                                     s.Nk,       s.heads,    s.d,        scale,     causal};
      },
      {&dq, &dk, &dv}, 2);
}

void all_cases(DType dtype) {
  for (int flags = 0; flags < 16; ++flags) matmul_case(dtype, 3, 5, 7, 9, flags);
  for (const auto& s : {std::vector<int64_t>{0, 2, 2, 2}, {2, 0, 3, 2}, {2, 3, 0, 2}, {2, 3, 2, 0}, {1, 1, 1, 1}})
    matmul_case(dtype, s[0], s[1], s[2], s[3], 0), matmul_case(dtype, s[0], s[1], s[2], s[3], 3);
  for (const auto& s :
       {std::vector<int64_t>{0, 3, 4}, {3, 0, 4}, {3, 4, 0}, {1, 1, 1}, {70, 9, 33}, {300, 5, 65}, {2500, 2, 3}})
    linear_case(dtype, s[0], s[1], s[2]);
  for (const auto& s : {std::vector<int64_t>{0, 3, 4, 4},
                        {3, 0, 4, 4},
                        {1, 1, 1, 1},
                        {50, 7, 9, 3},
                        {700, 65, 300, 300},
                        {5000, 3, 70000, 70000},
                        {2100, 2, 40, 1}})
    if (!small() || s[2] < 1000) embedding_case(dtype, s[0], s[1], s[2], s[3]);
  for (const Rows s : kRows)
    for (const bool poisoned : {false, true}) {
      if (small() && s.T * s.D > 8000) continue;
      norm_cases(dtype, s, poisoned);
      for (const int32_t log : {0, 1}) softmax_case(dtype, s, log, poisoned);
      for (const int64_t ignored : {0, 1, 4}) cross_entropy_case(dtype, s, ignored, poisoned);
    }
  const Heads heads[] = {{1, 1, 1, 1, 1},     {2, 5, 5, 3, 4},      {1, 33, 70, 2, 16}, {2, 64, 64, 1, 33},
                         {1, 65, 129, 1, 64}, {1, 40, 131, 1, 130}, {1, 3, 66, 1, 300}, {1, 130, 130, 1, 8},
                         {1, 0, 3, 1, 4},     {0, 3, 3, 1, 4},      {1, 3, 3, 2, 0}};
  for (const Heads& s : heads)
    for (const Mode mode : {kAll, kCausal, kCausalNan})
      if (!small() || s.B * s.Nq * s.Nk * s.d < 200'000) attention_case(dtype, s, mode);
  attention_case(dtype, {1, 3, 0, 2, 4}, kAll);
  attention_case(dtype, {1, 3, 130, 1, 1}, kInfinite);
  attention_case(dtype, {1, 3, 60, 1, 1}, kInfinite);
  if (small()) return;
  cross_entropy_case(dtype, {9000, 2}, 1, false);  // more rows than groups of threads
  embedding_case(dtype, 70000, 1, 300, 300);       // more tiles of the sort than lanes of a warp
}

}  // namespace

int main() {
  all_cases(DType::f32);
  if (!small()) all_cases(DType::f64);
  const Status status = device().backend->ops.attention(
      device().ctx, AttentionArgs{nullptr, nullptr, nullptr, nullptr, nullptr, DType::f32, 1, 4, 3, 1, 2, 1.0, 1});
  expect(status.code == ErrorCode::shape, "attention: fewer keys than queries");
  return report("layers on the device");
}

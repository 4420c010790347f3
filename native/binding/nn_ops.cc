#include "binding/call.h"

// The ops of a transformer.
namespace st_moe {

static Napi::Value matmul(Call& c) {  // (a [batch | 1, M, K], b [batch | 1, K, N], transposeA, transposeB)
  Tensor& a = c.tensor("a");
  Tensor& b = c.tensor("b");
  const bool ta = c.boolean("transposeA"), tb = c.boolean("transposeB");
  c.expect_float("a", a);
  c.expect_rank("a", a, 3);
  c.expect("b", b, a.dtype, {-1, -1, -1});
  const int64_t M = a.shape[ta ? 2 : 1], K = a.shape[ta ? 1 : 2], N = b.shape[tb ? 1 : 2];
  if (b.shape[tb ? 2 : 1] != K)
    fail(ErrorCode::shape, "the inner dimensions differ: %lld and %lld", (long long)K, (long long)b.shape[tb ? 2 : 1]);
  const int64_t batch = a.shape[0] == 1 ? b.shape[0] : a.shape[0];
  if (b.shape[0] != batch && b.shape[0] != 1) fail(ErrorCode::shape, "the batch dimensions differ");
  Tensor y = make_tensor(*a.device, a.dtype, {batch, M, N});
  c.run(*a.device, &OpTable::matmul,
        MatmulArgs{a.data(), b.data(), y.data(), a.dtype, batch, M, N, K, a.shape[0] == 1 ? 0 : M * K,
                   b.shape[0] == 1 ? 0 : K * N, ta, tb});
  return c.give(std::move(y));
}

static Napi::Value linear(Call& c) {  // (x [T, I], w [O, I], bias [O] | null, compute)
  Tensor& x = c.tensor("x");
  Tensor& w = c.tensor("w");
  Tensor* bias = c.optional("bias");
  c.expect_float("x", x);
  const DType compute = c.compute_dtype("compute", x.dtype);
  c.expect_rank("x", x, 2);
  c.expect("w", w, x.dtype, {-1, x.shape[1]});
  const int64_t T = x.shape[0], I = x.shape[1], O = w.shape[0];
  if (bias) c.expect("bias", *bias, x.dtype, {O});
  Tensor y = make_tensor(*x.device, x.dtype, {T, O});
  c.run(*x.device, &OpTable::linear,
        LinearArgs{x.data(), w.data(), data_of(bias), y.data(), x.dtype, compute, T, I, O, w.storage->packed()});
  return c.give(std::move(y));
}

static Napi::Value linear_backward(Call& c) {  // (dy, x, w, needX, needW, needBias, compute) → [dx, dw, dbias]
  Tensor& dy = c.tensor("dy");
  Tensor& x = c.tensor("x");
  Tensor& w = c.tensor("w");
  const bool need_x = c.boolean("needX"), need_w = c.boolean("needW"), need_bias = c.boolean("needBias");
  c.expect_float("x", x);
  const DType compute = c.compute_dtype("compute", x.dtype);
  c.expect_rank("x", x, 2);
  c.expect("w", w, x.dtype, {-1, x.shape[1]});
  const int64_t T = x.shape[0], I = x.shape[1], O = w.shape[0];
  c.expect("dy", dy, x.dtype, {T, O});
  Tensor dx, dw, dbias;
  if (need_x) dx = make_tensor(*x.device, x.dtype, x.shape);
  if (need_w) dw = make_tensor(*x.device, x.dtype, w.shape);
  if (need_bias) dbias = make_tensor(*x.device, x.dtype, {O});
  c.run(*x.device, &OpTable::linear_backward,
        LinearBackwardArgs{dy.data(), x.data(), w.data(), need_x ? dx.data() : nullptr, need_w ? dw.data() : nullptr,
                           need_bias ? dbias.data() : nullptr, x.dtype, compute, T, I, O, w.storage->packed()});
  return c.give({need_x ? &dx : nullptr, need_w ? &dw : nullptr, need_bias ? &dbias : nullptr});
}

static Napi::Value embedding(Call& c) {  // (w [V, D], index [T])
  Tensor& w = c.tensor("w");
  Tensor& index = c.tensor("index");
  c.expect_float("w", w);
  c.expect_rank("w", w, 2);
  c.expect("index", index, DType::i32, {-1});
  Tensor y = make_tensor(*w.device, w.dtype, {index.size, w.shape[1]});
  c.run(*w.device, &OpTable::embedding,
        EmbeddingArgs{w.data(), i32_of(&index), y.data(), w.dtype, index.size, w.shape[1], w.shape[0]});
  return c.give(std::move(y));
}

static Napi::Value embedding_backward(Call& c) {  // (dy [T, D], index [T], V)
  Tensor& dy = c.tensor("dy");
  Tensor& index = c.tensor("index");
  const int64_t V = c.size("V");
  c.expect_float("dy", dy);
  c.expect("index", index, DType::i32, {-1});
  c.expect("dy", dy, dy.dtype, {index.size, -1});
  Tensor dw = make_tensor(*dy.device, dy.dtype, {V, dy.shape[1]});
  c.run(*dy.device, &OpTable::embedding_backward,
        EmbeddingBackwardArgs{dy.data(), i32_of(&index), dw.data(), dy.dtype, index.size, dy.shape[1], V});
  return c.give(std::move(dw));
}

static Napi::Value rmsnorm(Call& c) {  // (x [T, D], gamma [D])
  Tensor& x = c.tensor("x");
  Tensor& gamma = c.tensor("gamma");
  c.expect_float("x", x);
  c.expect_rank("x", x, 2);
  c.expect("gamma", gamma, x.dtype, {x.shape[1]});
  Tensor y = make_tensor(*x.device, x.dtype, x.shape);
  c.run(*x.device, &OpTable::rmsnorm, RmsnormArgs{x.data(), gamma.data(), y.data(), x.dtype, x.shape[0], x.shape[1]});
  return c.give(std::move(y));
}

static Napi::Value rmsnorm_backward(Call& c) {  // (dy, x, gamma) → [dx, dgamma]
  Tensor& dy = c.tensor("dy");
  Tensor& x = c.tensor("x");
  Tensor& gamma = c.tensor("gamma");
  c.expect_float("x", x);
  c.expect_rank("x", x, 2);
  c.expect("dy", dy, x.dtype, x.shape);
  c.expect("gamma", gamma, x.dtype, {x.shape[1]});
  Tensor dx = make_tensor(*x.device, x.dtype, x.shape), dgamma = make_tensor(*x.device, x.dtype, gamma.shape);
  c.run(*x.device, &OpTable::rmsnorm_backward,
        RmsnormBackwardArgs{dy.data(), x.data(), gamma.data(), dx.data(), dgamma.data(), x.dtype, x.shape[0],
                            x.shape[1]});
  return c.give({&dx, &dgamma});
}

static Napi::Value layernorm(Call& c) {  // (x [T, D], weight [D], bias [D], eps)
  Tensor& x = c.tensor("x");
  Tensor& weight = c.tensor("weight");
  Tensor& bias = c.tensor("bias");
  const double eps = c.number("eps");
  c.expect_float("x", x);
  c.expect_rank("x", x, 2);
  c.expect("weight", weight, x.dtype, {x.shape[1]});
  c.expect("bias", bias, x.dtype, {x.shape[1]});
  Tensor y = make_tensor(*x.device, x.dtype, x.shape);
  c.run(*x.device, &OpTable::layernorm,
        LayernormArgs{x.data(), weight.data(), bias.data(), y.data(), x.dtype, x.shape[0], x.shape[1], eps});
  return c.give(std::move(y));
}

static Napi::Value layernorm_backward(Call& c) {  // (dy, x, weight, eps) → [dx, dweight, dbias]
  Tensor& dy = c.tensor("dy");
  Tensor& x = c.tensor("x");
  Tensor& weight = c.tensor("weight");
  const double eps = c.number("eps");
  c.expect_float("x", x);
  c.expect_rank("x", x, 2);
  c.expect("dy", dy, x.dtype, x.shape);
  c.expect("weight", weight, x.dtype, {x.shape[1]});
  Tensor dx = make_tensor(*x.device, x.dtype, x.shape);
  Tensor dweight = make_tensor(*x.device, x.dtype, weight.shape), dbias = make_tensor(*x.device, x.dtype, weight.shape);
  c.run(*x.device, &OpTable::layernorm_backward,
        LayernormBackwardArgs{dy.data(), x.data(), weight.data(), dx.data(), dweight.data(), dbias.data(), x.dtype,
                              x.shape[0], x.shape[1], eps});
  return c.give({&dx, &dweight, &dbias});
}

static Napi::Value softmax(Call& c) {  // (x [T, V], log)
  Tensor& x = c.tensor("x");
  const bool log = c.boolean("log");
  c.expect_float("x", x);
  c.expect_rank("x", x, 2);
  Tensor y = make_tensor(*x.device, x.dtype, x.shape);
  c.run(*x.device, &OpTable::softmax, SoftmaxArgs{x.data(), y.data(), x.dtype, x.shape[0], x.shape[1], log});
  return c.give(std::move(y));
}

static Napi::Value softmax_backward(Call& c) {  // (dy, y, log)
  Tensor& dy = c.tensor("dy");
  Tensor& y = c.tensor("y");
  const bool log = c.boolean("log");
  c.expect_float("y", y);
  c.expect_rank("y", y, 2);
  c.expect("dy", dy, y.dtype, y.shape);
  Tensor dx = make_tensor(*y.device, y.dtype, y.shape);
  c.run(*y.device, &OpTable::softmax_backward,
        SoftmaxBackwardArgs{dy.data(), y.data(), dx.data(), y.dtype, y.shape[0], y.shape[1], log});
  return c.give(std::move(dx));
}

static int32_t ignore_index(Call& c) {
  return static_cast<int32_t>(c.integer("ignoreIndex", INT32_MIN, INT32_MAX));
}

static Napi::Value cross_entropy(Call& c) {  // (logits [T, V], target [T], ignoreIndex) → [loss, lse]
  Tensor& logits = c.tensor("logits");
  Tensor& target = c.tensor("target");
  const int32_t ignore = ignore_index(c);
  c.expect_float("logits", logits);
  c.expect_rank("logits", logits, 2);
  const int64_t T = logits.shape[0], V = logits.shape[1];
  c.expect("target", target, DType::i32, {T});
  Tensor loss = make_tensor(*logits.device, logits.dtype, {}), lse = make_tensor(*logits.device, logits.dtype, {T});
  c.run(*logits.device, &OpTable::cross_entropy,
        CrossEntropyArgs{logits.data(), i32_of(&target), loss.data(), lse.data(), logits.dtype, T, V, ignore});
  return c.give({&loss, &lse});
}

static Napi::Value cross_entropy_backward(Call& c) {  // (dloss, logits, lse, target, ignoreIndex)
  Tensor& dloss = c.tensor("dloss");
  Tensor& logits = c.tensor("logits");
  Tensor& lse = c.tensor("lse");
  Tensor& target = c.tensor("target");
  const int32_t ignore = ignore_index(c);
  c.expect_float("logits", logits);
  c.expect_rank("logits", logits, 2);
  const int64_t T = logits.shape[0], V = logits.shape[1];
  c.expect("dloss", dloss, logits.dtype, {});
  c.expect("lse", lse, logits.dtype, {T});
  c.expect("target", target, DType::i32, {T});
  Tensor dlogits = make_tensor(*logits.device, logits.dtype, logits.shape);
  c.run(*logits.device, &OpTable::cross_entropy_backward,
        CrossEntropyBackwardArgs{dloss.data(), logits.data(), lse.data(), i32_of(&target), dlogits.data(), logits.dtype,
                                 T, V, ignore});
  return c.give(std::move(dlogits));
}

struct AttentionSizes {
  int64_t B, Nq, Nk, heads, d;
};

static AttentionSizes attention_sizes(Call& c, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                                      bool causal) {
  c.expect_float("q", q);
  c.expect_rank("q", q, 3);
  c.expect("k", k, q.dtype, {q.shape[0], -1, q.shape[2]});
  c.expect("v", v, q.dtype, k.shape);
  if (q.shape[2] % heads)
    fail(ErrorCode::shape, "the width %lld is not a multiple of %lld heads", (long long)q.shape[2], (long long)heads);
  if (causal && k.shape[1] < q.shape[1])
    fail(ErrorCode::shape, "causal attention needs at least as many keys as queries");
  return {q.shape[0], q.shape[1], k.shape[1], heads, q.shape[2] / heads};
}

static Napi::Value attention(Call& c) {  // (q, k, v, heads, scale, causal) → [y, lse]
  Tensor& q = c.tensor("q");
  Tensor& k = c.tensor("k");
  Tensor& v = c.tensor("v");
  const int64_t heads = c.integer("heads", 1, 1 << 20);
  const double scale = c.number("scale");
  const bool causal = c.boolean("causal");
  const auto n = attention_sizes(c, q, k, v, heads, causal);
  Tensor y = make_tensor(*q.device, q.dtype, q.shape), lse = make_tensor(*q.device, q.dtype, {n.B, heads, n.Nq});
  c.run(*q.device, &OpTable::attention,
        AttentionArgs{q.data(), k.data(), v.data(), y.data(), lse.data(), q.dtype, n.B, n.Nq, n.Nk, n.heads, n.d, scale,
                      causal});
  return c.give({&y, &lse});
}

static Napi::Value attention_backward(Call& c) {  // (dy, q, k, v, y, lse, heads, scale, causal) → [dq, dk, dv]
  Tensor& dy = c.tensor("dy");
  Tensor& q = c.tensor("q");
  Tensor& k = c.tensor("k");
  Tensor& v = c.tensor("v");
  Tensor& y = c.tensor("y");
  Tensor& lse = c.tensor("lse");
  const int64_t heads = c.integer("heads", 1, 1 << 20);
  const double scale = c.number("scale");
  const bool causal = c.boolean("causal");
  const auto n = attention_sizes(c, q, k, v, heads, causal);
  c.expect("dy", dy, q.dtype, q.shape);
  c.expect("y", y, q.dtype, q.shape);
  c.expect("lse", lse, q.dtype, {n.B, heads, n.Nq});
  Tensor dq = make_tensor(*q.device, q.dtype, q.shape);
  Tensor dk = make_tensor(*q.device, q.dtype, k.shape), dv = make_tensor(*q.device, q.dtype, v.shape);
  c.run(*q.device, &OpTable::attention_backward,
        AttentionBackwardArgs{dy.data(), q.data(), k.data(), v.data(), y.data(), lse.data(), dq.data(), dk.data(),
                              dv.data(), q.dtype, n.B, n.Nq, n.Nk, n.heads, n.d, scale, causal});
  return c.give({&dq, &dk, &dv});
}

static Napi::Value dropout(Call& c) {  // (x, p, seed, step): its own backward
  Tensor& x = c.tensor("x");
  const double p = c.number("p");
  const uint64_t seed = c.seed("seed"), step = c.seed("step");
  c.expect_float("x", x);
  if (!(p >= 0 && p < 1)) fail(ErrorCode::option, "p must be in [0, 1), got %g", p);
  Tensor y = make_tensor(*x.device, x.dtype, x.shape);
  c.run(*x.device, &OpTable::dropout, DropoutArgs{x.data(), y.data(), x.dtype, x.size, p, seed, step});
  return c.give(std::move(y));
}

const std::vector<Entry> kNnEntries = {
    {"matmul", matmul},
    {"linear", linear},
    {"linearBackward", linear_backward},
    {"embedding", embedding},
    {"embeddingBackward", embedding_backward},
    {"rmsnorm", rmsnorm},
    {"rmsnormBackward", rmsnorm_backward},
    {"layernorm", layernorm},
    {"layernormBackward", layernorm_backward},
    {"softmax", softmax},
    {"softmaxBackward", softmax_backward},
    {"crossEntropy", cross_entropy},
    {"crossEntropyBackward", cross_entropy_backward},
    {"attention", attention},
    {"attentionBackward", attention_backward},
    {"dropout", dropout},
};

}  // namespace st_moe

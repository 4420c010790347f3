#include <algorithm>

#include "binding/call.h"

// The ops of a mixture-of-experts layer.
namespace st_moe {

static Tensor empty(const Tensor& like, const Shape& shape) {
  return make_tensor(*like.device, like.dtype, shape);
}
static Tensor empty_i32(const Tensor& like, const Shape& shape) {
  return make_tensor(*like.device, DType::i32, shape);
}

static Napi::Value token_mask(Call& c) {  // (x) → i32 of the same shape
  Tensor& x = c.tensor("x");
  Tensor mask = empty_i32(x, x.shape);
  c.run(*x.device, &OpTable::token_mask, TokenMaskArgs{x.data(), i32_of(&mask), x.dtype, x.size});
  return c.give(std::move(mask));
}

// → [expertIndex, kept, position, gate, weight, balanceLoss, zLoss, totalLoss, probs, logits, lse, density]
static Napi::Value route(Call& c) {
  Tensor& x = c.tensor("x");
  Tensor& w = c.tensor("w");
  Tensor& threshold = c.tensor("threshold");
  Tensor* uniforms = c.optional("uniforms");
  Tensor* gumbel = c.optional("gumbelUniforms");
  Tensor* mask = c.optional("mask");
  const int64_t K = c.integer("K", 1, 1 << 20), C = c.size("capacity");
  const uint64_t seed = c.seed("seed"), step = c.seed("step"), gumbel_step = c.seed("gumbelStep");
  const double noise_mult = c.number("noiseMult"), eps = c.number("eps");
  const double balance_coef = c.number("balanceLossCoef"), z_coef = c.number("routerZLossCoef");
  const bool noisy = c.boolean("noisy"), training = c.boolean("training");
  const bool differentiable = c.boolean("differentiableTopk"), assigned = c.boolean("densityAssigned");
  c.expect_float("x", x);
  c.expect_rank("x", x, 3);
  const int64_t B = x.shape[0], N = x.shape[1], D = x.shape[2];
  c.expect("w", w, x.dtype, {-1, D});
  const int64_t E = w.shape[0];
  if (K > E) fail(ErrorCode::option, "K = %lld choices of E = %lld experts", (long long)K, (long long)E);
  c.expect("threshold", threshold, DType::f32, {K});
  if (uniforms) c.expect("uniforms", *uniforms, x.dtype, {K, B, N});
  if (gumbel) c.expect("gumbelUniforms", *gumbel, x.dtype, {B, N, E});
  if (mask) c.expect("mask", *mask, DType::i32, {B, N});
  Tensor expert_index = empty_i32(x, {B, N, K}), kept = empty_i32(x, {B, N, K}), position = empty_i32(x, {B, N, K});
  Tensor gate = empty(x, {B, N, K}), weight = empty(x, {B, N, K});
  Tensor balance = empty(x, {}), z = empty(x, {}), total = empty(x, {});
  Tensor probs = empty(x, {B, N, E}), logits = empty(x, {B, N, E}), lse = empty(x, {B, N}), density = empty(x, {B, E});
  RouteArgs args{};
  args.x = x.data();
  args.w = w.data();
  args.threshold = static_cast<const float*>(threshold.data());
  args.uniforms = data_of(uniforms);
  args.gumbel_uniforms = data_of(gumbel);
  args.mask = i32_of(mask);
  args.expert_index = i32_of(&expert_index);
  args.kept = i32_of(&kept);
  args.position = i32_of(&position);
  args.gate = gate.data();
  args.weight = weight.data();
  args.balance_loss = balance.data();
  args.z_loss = z.data();
  args.total_loss = total.data();
  args.probs = probs.data();
  args.logits = logits.data();
  args.lse = lse.data();
  args.density = density.data();
  args.dtype = x.dtype;
  args.B = B, args.N = N, args.D = D, args.E = E, args.K = K, args.C = C;
  args.seed = seed, args.step = step, args.gumbel_step = gumbel_step;
  args.noise_mult = noise_mult, args.eps = eps, args.balance_coef = balance_coef, args.z_coef = z_coef;
  args.noisy = noisy, args.training = training, args.differentiable_topk = differentiable,
  args.density_assigned = assigned;
  c.run(*x.device, &OpTable::route, args);
  return c.give(
      {&expert_index, &kept, &position, &gate, &weight, &balance, &z, &total, &probs, &logits, &lse, &density});
}

// → [dx, dw]
static Napi::Value route_backward(Call& c) {
  Tensor* dweight = c.optional("dweight");
  Tensor* dbalance = c.optional("dbalance");
  Tensor* dz = c.optional("dz");
  Tensor* dtotal = c.optional("dtotal");
  Tensor& x = c.tensor("x");
  Tensor& w = c.tensor("w");
  Tensor* mask = c.optional("mask");
  Tensor& expert_index = c.tensor("expertIndex");
  Tensor& kept = c.tensor("kept");
  Tensor& gate = c.tensor("gate");
  Tensor& probs = c.tensor("probs");
  Tensor& logits = c.tensor("logits");
  Tensor& lse = c.tensor("lse");
  Tensor& density = c.tensor("density");
  const double eps = c.number("eps"), balance_coef = c.number("balanceLossCoef"), z_coef = c.number("routerZLossCoef");
  const bool noisy = c.boolean("noisy"), training = c.boolean("training"),
             differentiable = c.boolean("differentiableTopk");
  const bool need_x = c.boolean("needX"), need_w = c.boolean("needW");
  c.expect_float("x", x);
  c.expect_rank("x", x, 3);
  c.expect_rank("expertIndex", expert_index, 3);
  const int64_t B = x.shape[0], N = x.shape[1], D = x.shape[2], E = w.shape.empty() ? 0 : w.shape[0],
                K = expert_index.shape[2];
  c.expect("w", w, x.dtype, {E, D});
  c.expect("expertIndex", expert_index, DType::i32, {B, N, K});
  c.expect("kept", kept, DType::i32, {B, N, K});
  c.expect("gate", gate, x.dtype, {B, N, K});
  c.expect("probs", probs, x.dtype, {B, N, E});
  c.expect("logits", logits, x.dtype, {B, N, E});
  c.expect("lse", lse, x.dtype, {B, N});
  c.expect("density", density, x.dtype, {B, E});
  if (mask) c.expect("mask", *mask, DType::i32, {B, N});
  if (dweight) c.expect("dweight", *dweight, x.dtype, {B, N, K});
  for (const Tensor* scalar : {dbalance, dz, dtotal})
    if (scalar) c.expect("the gradient of a loss", *scalar, x.dtype, {});
  Tensor dx, dw;
  if (need_x) dx = empty(x, x.shape);
  if (need_w) dw = empty(x, w.shape);
  RouteBackwardArgs args{};
  args.dweight = data_of(dweight);
  args.dbalance = data_of(dbalance);
  args.dz = data_of(dz);
  args.dtotal = data_of(dtotal);
  args.x = x.data();
  args.w = w.data();
  args.mask = i32_of(mask);
  args.expert_index = i32_of(&expert_index);
  args.kept = i32_of(&kept);
  args.gate = gate.data();
  args.probs = probs.data();
  args.logits = logits.data();
  args.lse = lse.data();
  args.density = density.data();
  args.dx = need_x ? dx.data() : nullptr;
  args.dw = need_w ? dw.data() : nullptr;
  args.dtype = x.dtype;
  args.B = B, args.N = N, args.D = D, args.E = E, args.K = K;
  args.eps = eps, args.balance_coef = balance_coef, args.z_coef = z_coef;
  args.noisy = noisy, args.training = training, args.differentiable_topk = differentiable;
  c.run(*x.device, &OpTable::route_backward, args);
  return c.give({need_x ? &dx : nullptr, need_w ? &dw : nullptr});
}

struct Ffn {
  int64_t T, K, D, E, H, B, C;

  int64_t rows(const Backend& backend) const {
    const int64_t slots = shape_size({E, B, C});
    return backend.fixed_slots ? slots : std::min(T * K, slots);
  }
};

static Ffn expect_ffn(Call& c, const Tensor& x, const Tensor* expert_index, const Tensor* position,
                      const Tensor* weight, const Tensor& w1, const Tensor& b1, const Tensor& mult_bias,
                      const Tensor& w2, const Tensor& b2, int64_t B, int64_t C) {
  c.expect_float("x", x);
  c.expect_rank("x", x, 2);
  c.expect("w2", w2, x.dtype, {-1, x.shape[1], -1});
  const int64_t T = x.shape[0], D = x.shape[1], E = w2.shape[0], H = w2.shape[2];
  c.expect("w1", w1, x.dtype, {E, 2 * H, D});
  c.expect("b1", b1, x.dtype, {E, 2 * H});
  c.expect("multBias", mult_bias, x.dtype, {E, H});
  c.expect("b2", b2, x.dtype, {E, D});
  if (!expert_index || !position || !weight) {
    if (expert_index || position || weight) fail(ErrorCode::option, "expertIndex, position and weight come together");
    if (E != 1) fail(ErrorCode::shape, "without routing there is one expert, got %lld", (long long)E);
    return {T, 1, D, E, H, 1, T};
  }
  c.expect("expertIndex", *expert_index, DType::i32, {T, -1});
  const int64_t K = expert_index->shape[1];
  c.expect("position", *position, DType::i32, {T, K});
  c.expect("weight", *weight, x.dtype, {T, K});
  if (B == 0 ? T != 0 : T % B != 0)
    fail(ErrorCode::shape, "%lld tokens are not a multiple of %lld sequences", (long long)T, (long long)B);
  return {T, K, D, E, H, B, C};
}

// (x [T, D], expertIndex [T, K] | null, position | null, weight | null, w1, b1, multBias, w2, b2, B, capacity, save,
// compute) → [y, a | null]
static Napi::Value expert_ffn(Call& c) {
  Tensor& x = c.tensor("x");
  Tensor* expert_index = c.optional("expertIndex");
  Tensor* position = c.optional("position");
  Tensor* weight = c.optional("weight");
  Tensor& w1 = c.tensor("w1");
  Tensor& b1 = c.tensor("b1");
  Tensor& mult_bias = c.tensor("multBias");
  Tensor& w2 = c.tensor("w2");
  Tensor& b2 = c.tensor("b2");
  const int64_t B = c.size("B"), C = c.size("capacity");
  const bool save = c.boolean("save");
  const DType compute = c.compute_dtype("compute", x.dtype);
  const Ffn n = expect_ffn(c, x, expert_index, position, weight, w1, b1, mult_bias, w2, b2, B, C);
  const int64_t rows = n.rows(*x.device->backend);
  Tensor y = empty(x, x.shape), a;
  if (save) a = empty(x, {rows, x.device->backend->saved_columns(2 * n.H)});
  c.run(*x.device, &OpTable::expert_ffn,
        ExpertFfnArgs{x.data(),
                      i32_of(expert_index),
                      i32_of(position),
                      data_of(weight),
                      w1.data(),
                      b1.data(),
                      mult_bias.data(),
                      w2.data(),
                      b2.data(),
                      y.data(),
                      save ? a.data() : nullptr,
                      x.dtype,
                      compute,
                      n.T,
                      n.K,
                      n.D,
                      n.E,
                      n.H,
                      n.B,
                      n.C,
                      rows,
                      Activation::geglu,
                      w1.storage->packed(),
                      w2.storage->packed()});
  return c.give({&y, save ? &a : nullptr});
}

// (dy, x, expertIndex, position, weight, w1, b1, multBias, w2, b2, a, B, capacity, straightThrough, needX,
// needParameters, compute) → [dx, dweight, dw1, db1, dmultBias, dw2, db2]
static Napi::Value expert_ffn_backward(Call& c) {
  Tensor& dy = c.tensor("dy");
  Tensor& x = c.tensor("x");
  Tensor* expert_index = c.optional("expertIndex");
  Tensor* position = c.optional("position");
  Tensor* weight = c.optional("weight");
  Tensor& w1 = c.tensor("w1");
  Tensor& b1 = c.tensor("b1");
  Tensor& mult_bias = c.tensor("multBias");
  Tensor& w2 = c.tensor("w2");
  Tensor& b2 = c.tensor("b2");
  Tensor& a = c.tensor("a");
  const int64_t B = c.size("B"), C = c.size("capacity");
  const bool straight_through = c.boolean("straightThrough");
  const bool need_x = c.boolean("needX"), need_parameters = c.boolean("needParameters");
  const DType compute = c.compute_dtype("compute", x.dtype);
  const Ffn n = expect_ffn(c, x, expert_index, position, weight, w1, b1, mult_bias, w2, b2, B, C);
  c.expect("dy", dy, x.dtype, x.shape);
  c.expect("a", a, x.dtype, {n.rows(*x.device->backend), x.device->backend->saved_columns(2 * n.H)});
  Tensor dx, dweight, dw1, db1, dmult_bias, dw2, db2;
  if (need_x) dx = empty(x, x.shape);
  if (weight) dweight = empty(x, weight->shape);
  if (need_parameters) {
    dw1 = empty(x, w1.shape);
    db1 = empty(x, b1.shape);
    dmult_bias = empty(x, mult_bias.shape);
    dw2 = empty(x, w2.shape);
    db2 = empty(x, b2.shape);
  }
  const auto out = [](bool needed, const Tensor& tensor) { return needed ? tensor.data() : nullptr; };
  c.run(*x.device, &OpTable::expert_ffn_backward,
        ExpertFfnBackwardArgs{dy.data(),
                              x.data(),
                              i32_of(expert_index),
                              i32_of(position),
                              data_of(weight),
                              w1.data(),
                              b1.data(),
                              mult_bias.data(),
                              w2.data(),
                              b2.data(),
                              a.data(),
                              out(need_x, dx),
                              out(weight, dweight),
                              out(need_parameters, dw1),
                              out(need_parameters, db1),
                              out(need_parameters, dmult_bias),
                              out(need_parameters, dw2),
                              out(need_parameters, db2),
                              x.dtype,
                              compute,
                              n.T,
                              n.K,
                              n.D,
                              n.E,
                              n.H,
                              n.B,
                              n.C,
                              a.shape[0],
                              Activation::geglu,
                              straight_through,
                              w1.storage->packed(),
                              w2.storage->packed()});
  const auto result = [](bool needed, const Tensor& tensor) { return needed ? &tensor : nullptr; };
  return c.give({result(need_x, dx), result(weight, dweight), result(need_parameters, dw1),
                 result(need_parameters, db1), result(need_parameters, dmult_bias), result(need_parameters, dw2),
                 result(need_parameters, db2)});
}

static Napi::Value dispatch(Call& c) {  // (x [B, N, D], expertIndex [B, N, K], position, E, C) → y [E, B, C, D]
  Tensor& x = c.tensor("x");
  Tensor& expert_index = c.tensor("expertIndex");
  Tensor& position = c.tensor("position");
  const int64_t E = c.size("E"), C = c.size("capacity");
  c.expect_float("x", x);
  c.expect_rank("x", x, 3);
  c.expect("expertIndex", expert_index, DType::i32, {x.shape[0], x.shape[1], -1});
  c.expect("position", position, DType::i32, expert_index.shape);
  Tensor y = empty(x, {E, x.shape[0], C, x.shape[2]});
  c.run(*x.device, &OpTable::dispatch,
        DispatchArgs{x.data(), i32_of(&expert_index), i32_of(&position), y.data(), x.dtype, x.shape[0], x.shape[1],
                     x.shape[2], E, expert_index.shape[2], C});
  return c.give(std::move(y));
}

static Napi::Value dispatch_backward(
    Call& c) {  // (dy [E, B, C, D], x, expertIndex, position, straightThrough) → [dx, dweight]
  Tensor& dy = c.tensor("dy");
  Tensor& x = c.tensor("x");
  Tensor& expert_index = c.tensor("expertIndex");
  Tensor& position = c.tensor("position");
  const bool straight_through = c.boolean("straightThrough");
  c.expect_float("x", x);
  c.expect_rank("x", x, 3);
  c.expect("dy", dy, x.dtype, {-1, x.shape[0], -1, x.shape[2]});
  c.expect("expertIndex", expert_index, DType::i32, {x.shape[0], x.shape[1], -1});
  c.expect("position", position, DType::i32, expert_index.shape);
  Tensor dx = empty(x, x.shape), dweight;
  if (straight_through) dweight = empty(x, expert_index.shape);
  c.run(*x.device, &OpTable::dispatch_backward,
        DispatchBackwardArgs{dy.data(), x.data(), i32_of(&expert_index), i32_of(&position), dx.data(),
                             straight_through ? dweight.data() : nullptr, x.dtype, x.shape[0], x.shape[1], x.shape[2],
                             dy.shape[0], expert_index.shape[2], dy.shape[2]});
  return c.give({&dx, straight_through ? &dweight : nullptr});
}

static void expect_combine(Call& c, const Tensor& x, const Tensor& weight, const Tensor& expert_index,
                           const Tensor& position) {
  c.expect_float("x", x);
  c.expect_rank("x", x, 4);
  c.expect("weight", weight, x.dtype, {x.shape[1], -1, -1});
  c.expect("expertIndex", expert_index, DType::i32, weight.shape);
  c.expect("position", position, DType::i32, weight.shape);
}

static Napi::Value combine(Call& c) {  // (x [E, B, C, D], weight [B, N, K], expertIndex, position) → y [B, N, D]
  Tensor& x = c.tensor("x");
  Tensor& weight = c.tensor("weight");
  Tensor& expert_index = c.tensor("expertIndex");
  Tensor& position = c.tensor("position");
  expect_combine(c, x, weight, expert_index, position);
  const int64_t B = x.shape[1], N = weight.shape[1], D = x.shape[3];
  Tensor y = empty(x, {B, N, D});
  c.run(*x.device, &OpTable::combine,
        CombineArgs{x.data(), weight.data(), i32_of(&expert_index), i32_of(&position), y.data(), x.dtype, B, N, D,
                    x.shape[0], weight.shape[2], x.shape[2]});
  return c.give(std::move(y));
}

static Napi::Value combine_backward(Call& c) {  // (dy [B, N, D], x, weight, expertIndex, position) → [dx, dweight]
  Tensor& dy = c.tensor("dy");
  Tensor& x = c.tensor("x");
  Tensor& weight = c.tensor("weight");
  Tensor& expert_index = c.tensor("expertIndex");
  Tensor& position = c.tensor("position");
  expect_combine(c, x, weight, expert_index, position);
  const int64_t B = x.shape[1], N = weight.shape[1], D = x.shape[3];
  c.expect("dy", dy, x.dtype, {B, N, D});
  Tensor dx = empty(x, x.shape), dweight = empty(x, weight.shape);
  c.run(*x.device, &OpTable::combine_backward,
        CombineBackwardArgs{dy.data(), x.data(), weight.data(), i32_of(&expert_index), i32_of(&position), dx.data(),
                            dweight.data(), x.dtype, B, N, D, x.shape[0], weight.shape[2], x.shape[2]});
  return c.give({&dx, &dweight});
}

static Napi::Value topk(Call& c) {  // (x [T, E], K) → [value, index]
  Tensor& x = c.tensor("x");
  const int64_t K = c.size("K");
  c.expect_float("x", x);
  c.expect_rank("x", x, 2);
  if (K > x.shape[1]) fail(ErrorCode::option, "K = %lld of %lld entries", (long long)K, (long long)x.shape[1]);
  Tensor value = empty(x, {x.shape[0], K}), index = empty_i32(x, {x.shape[0], K});
  c.run(*x.device, &OpTable::topk,
        TopkArgs{x.data(), value.data(), i32_of(&index), x.dtype, x.shape[0], x.shape[1], K});
  return c.give({&value, &index});
}

static Napi::Value topk_backward(Call& c) {  // (dvalue [T, K], index, E)
  Tensor& dvalue = c.tensor("dvalue");
  Tensor& index = c.tensor("index");
  const int64_t E = c.size("E");
  c.expect_float("dvalue", dvalue);
  c.expect_rank("dvalue", dvalue, 2);
  c.expect("index", index, DType::i32, dvalue.shape);
  Tensor dx = empty(dvalue, {dvalue.shape[0], E});
  c.run(*dvalue.device, &OpTable::topk_backward,
        TopkBackwardArgs{dvalue.data(), i32_of(&index), dx.data(), dvalue.dtype, dvalue.shape[0], E, dvalue.shape[1]});
  return c.give(std::move(dx));
}

static Napi::Value grouped_gemm(Call& c) {  // (x [R, I], w [G, O, I], groupSizes [G], compute) → y [R, O]
  Tensor& x = c.tensor("x");
  Tensor& w = c.tensor("w");
  Tensor& sizes = c.tensor("groupSizes");
  c.expect_float("x", x);
  const DType compute = c.compute_dtype("compute", x.dtype);
  c.expect_rank("x", x, 2);
  c.expect("w", w, x.dtype, {-1, -1, x.shape[1]});
  c.expect("groupSizes", sizes, DType::i32, {w.shape[0]});
  Tensor y = empty(x, {x.shape[0], w.shape[1]});
  c.run(*x.device, &OpTable::grouped_gemm,
        GroupedGemmArgs{x.data(), w.data(), i32_of(&sizes), sizes.storage->remembered(), y.data(), x.dtype, compute,
                        x.shape[0], w.shape[0], w.shape[2], w.shape[1], w.storage->packed()});
  return c.give(std::move(y));
}

static Napi::Value grouped_gemm_backward(Call& c) {  // (dy, x, w, groupSizes, compute) → [dx, dw]
  Tensor& dy = c.tensor("dy");
  Tensor& x = c.tensor("x");
  Tensor& w = c.tensor("w");
  Tensor& sizes = c.tensor("groupSizes");
  c.expect_float("x", x);
  const DType compute = c.compute_dtype("compute", x.dtype);
  c.expect_rank("x", x, 2);
  c.expect("w", w, x.dtype, {-1, -1, x.shape[1]});
  c.expect("groupSizes", sizes, DType::i32, {w.shape[0]});
  c.expect("dy", dy, x.dtype, {x.shape[0], w.shape[1]});
  Tensor dx = empty(x, x.shape), dw = empty(x, w.shape);
  c.run(*x.device, &OpTable::grouped_gemm_backward,
        GroupedGemmBackwardArgs{dy.data(), x.data(), w.data(), i32_of(&sizes), sizes.storage->remembered(), dx.data(),
                                dw.data(), x.dtype, compute, x.shape[0], w.shape[0], w.shape[2], w.shape[1],
                                w.storage->packed()});
  return c.give({&dx, &dw});
}

const std::vector<Entry> kMoeEntries = {
    {"tokenMask", token_mask},
    {"route", route},
    {"routeBackward", route_backward},
    {"expertFfn", expert_ffn},
    {"expertFfnBackward", expert_ffn_backward},
    {"dispatch", dispatch},
    {"dispatchBackward", dispatch_backward},
    {"combine", combine},
    {"combineBackward", combine_backward},
    {"topk", topk},
    {"topkBackward", topk_backward},
    {"groupedGemm", grouped_gemm},
    {"groupedGemmBackward", grouped_gemm_backward},
};

}  // namespace st_moe

// The ops of a mixture-of-experts layer against a plain implementation in double precision, its finite differences,
// each other (fused and unfused), and themselves on other numbers of threads.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/backend.h"
#include "moe_reference.h"

namespace {

using namespace st_moe;
using namespace moe_reference;

int failures = 0;

void check(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

double distance(const Values& a, const Values& b) {  // ‖a − b‖ / ‖b‖
  if (a.size() != b.size()) return HUGE_VAL;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1);
}

void check_close(const Values& a, const Values& b, double tolerance, const std::string& what) {
  const double d = distance(a, b);
  if (!(d <= tolerance)) check(false, what + ": distance " + std::to_string(d / tolerance) + " × tolerance");
}

template <class T>
constexpr DType dtype_of = sizeof(T) == 4 ? DType::f32 : DType::f64;

template <class T>
std::vector<T> cast(const Values& v) {
  return std::vector<T>(v.begin(), v.end());
}

template <class T>
Values widen(const std::vector<T>& v) {
  return Values(v.begin(), v.end());
}

void expect_ok(const Status& status, const char* op) {
  check(status.code == ErrorCode::none, std::string(op) + ": " + status.text);
}

// Outputs start as NaN or −7, so that what an op leaves out shows.
template <class T>
struct Layer {
  const Problem& p;
  Context ctx;
  std::vector<T> x, w, w1, b1, mu, w2, b2, uniforms, gumbel, gy;
  std::vector<T> gate, weight, losses, probs, logits, lse, density, y, a;
  std::vector<T> dweight, dx, dx_router, dw, dw1, db1, dmu, dw2, db2;
  Indices index, kept, position;

  Layer(const Problem& problem, int threads) : p(problem), ctx{threads, nullptr} {
    x = cast<T>(p.x), w = cast<T>(p.w), w1 = cast<T>(p.w1), b1 = cast<T>(p.b1), mu = cast<T>(p.mu);
    w2 = cast<T>(p.w2), b2 = cast<T>(p.b2), gy = cast<T>(p.gy);
    uniforms = cast<T>(p.uniforms), gumbel = cast<T>(p.gumbel);
    const Shape& s = p.shape;
    const int64_t tokens = s.tokens();
    const auto unset = [](size_t n) { return std::vector<T>(n, std::numeric_limits<T>::quiet_NaN()); };
    gate = weight = dweight = unset(tokens * s.K);
    losses = unset(3);
    probs = logits = unset(tokens * s.E);
    lse = unset(tokens);
    density = unset(s.B * s.E);
    y = dx = dx_router = unset(tokens * s.D);
    a = unset(tokens * s.K * s.P());
    dw = unset(w.size()), dw1 = unset(w1.size()), db1 = unset(b1.size()), dmu = unset(mu.size());
    dw2 = unset(w2.size()), db2 = unset(b2.size());
    index = kept = position = Indices(tokens * s.K, -7);
  }

  RouteArgs route_args() {
    const Shape& s = p.shape;
    RouteArgs r{};
    r.x = x.data(), r.w = w.data(), r.threshold = s.threshold.data();
    if (!s.has(kDrawn)) r.uniforms = uniforms.data(), r.gumbel_uniforms = gumbel.data();
    r.mask = p.mask.empty() ? nullptr : p.mask.data();
    r.expert_index = index.data(), r.kept = kept.data(), r.position = position.data();
    r.gate = gate.data(), r.weight = weight.data();
    r.balance_loss = &losses[0], r.z_loss = &losses[1], r.total_loss = &losses[2];
    r.probs = probs.data(), r.logits = logits.data(), r.lse = lse.data(), r.density = density.data();
    r.dtype = dtype_of<T>;
    r.B = s.B, r.N = s.N, r.D = s.D, r.E = s.E, r.K = s.K, r.C = s.C;
    r.seed = p.seed, r.step = p.step, r.gumbel_step = p.gumbel_step;
    r.noise_mult = p.noise_mult, r.eps = 1e-9, r.balance_coef = p.balance_coef, r.z_coef = p.z_coef;
    r.noisy = s.has(kNoisy), r.training = !s.has(kEvaluation), r.differentiable_topk = s.has(kSoft),
    r.density_assigned = s.has(kAssigned);
    return r;
  }

  ExpertFfnArgs ffn_args() {
    const Shape& s = p.shape;
    ExpertFfnArgs f{};
    f.x = x.data(), f.expert_index = index.data(), f.position = position.data(), f.weight = weight.data();
    f.w1 = w1.data(), f.b1 = b1.data(), f.mult_bias = mu.data(), f.w2 = w2.data(), f.b2 = b2.data();
    f.y = y.data(), f.a = a.data(), f.dtype = f.compute = dtype_of<T>, f.activation = s.activation;
    f.T = s.tokens(), f.K = s.K, f.D = s.D, f.E = s.E, f.H = s.H, f.B = s.B, f.C = s.C, f.rows = s.tokens() * s.K;
    return f;
  }

  ExpertFfnBackwardArgs ffn_backward_args() {
    const ExpertFfnArgs f = ffn_args();
    ExpertFfnBackwardArgs g{};
    g.dy = gy.data(), g.x = f.x, g.expert_index = f.expert_index, g.position = f.position, g.weight = f.weight;
    g.w1 = f.w1, g.b1 = f.b1, g.mult_bias = f.mult_bias, g.w2 = f.w2, g.b2 = f.b2, g.a = f.a;
    g.dx = dx.data(), g.dweight = dweight.data(), g.dw1 = dw1.data(), g.db1 = db1.data();
    g.dmult_bias = dmu.data(), g.dw2 = dw2.data(), g.db2 = db2.data(), g.dtype = g.compute = f.dtype;
    g.T = f.T, g.K = f.K, g.D = f.D, g.E = f.E, g.H = f.H, g.B = f.B, g.C = f.C, g.rows = f.rows;
    g.straight_through = !p.shape.has(kNoStraightThrough), g.activation = f.activation;
    return g;
  }

  Status route_backward(const T* upstream) {
    const Shape& s = p.shape;
    RouteBackwardArgs g{};
    g.dweight = dweight.data(), g.dbalance = upstream, g.dz = upstream + 1, g.dtotal = upstream + 2;
    g.x = x.data(), g.w = w.data(), g.mask = p.mask.empty() ? nullptr : p.mask.data();
    g.expert_index = index.data(), g.kept = kept.data(), g.gate = gate.data(), g.probs = probs.data();
    g.logits = logits.data(), g.lse = lse.data(), g.density = density.data();
    g.dx = dx_router.data(), g.dw = dw.data(), g.dtype = dtype_of<T>;
    g.B = s.B, g.N = s.N, g.D = s.D, g.E = s.E, g.K = s.K;
    g.eps = 1e-9, g.balance_coef = p.balance_coef, g.z_coef = p.z_coef;
    g.noisy = s.has(kNoisy), g.training = !s.has(kEvaluation), g.differentiable_topk = s.has(kSoft);
    return cpu_backend().ops.route_backward(ctx, g);
  }

  void run() {
    const OpTable& ops = cpu_backend().ops;
    expect_ok(ops.route(ctx, route_args()), "route");
    expect_ok(ops.expert_ffn(ctx, ffn_args()), "expert_ffn");
    expect_ok(ops.expert_ffn_backward(ctx, ffn_backward_args()), "expert_ffn_backward");
    const T upstream[3] = {T(p.cb), T(p.cz), T(p.ct)};
    expect_ok(route_backward(upstream), "route_backward");
  }

  Values input_gradient() const {
    Values sum = widen(dx);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += dx_router[i];
    return sum;
  }

  std::vector<const std::vector<T>*> results() const {
    return {&gate, &weight,    &losses, &probs, &logits, &lse, &density, &y,  &dweight,
            &dx,   &dx_router, &dw,     &dw1,   &db1,    &dmu, &dw2,     &db2};
  }
};

// The same layer through dispatch, one dense expert_ffn an expert, and combine; `fused` has run.
template <class T>
void check_unfused(const Layer<T>& fused, double tolerance, const std::string& name) {
  const Shape& s = fused.p.shape;
  const OpTable& ops = cpu_backend().ops;
  const Context ctx{2, nullptr};
  const int64_t rows = s.B * s.C, size = s.E * rows * s.D;
  std::vector<T> in(size, T(NAN)), out(size, T(NAN)), din(size, T(NAN)), dout(size, T(NAN)), a(s.E * rows * s.P());
  std::vector<T> y(fused.y.size()), dx(y.size()), dweight(fused.weight.size()), dweight_dispatch(dweight.size());
  Layer<T> grads(fused.p, 2);
  const int32_t *index = fused.index.data(), *position = fused.position.data();
  const DType type = dtype_of<T>;
  expect_ok(ops.dispatch(ctx, {fused.x.data(), index, position, in.data(), type, s.B, s.N, s.D, s.E, s.K, s.C}),
            "dispatch");
  const auto dense = [&](int64_t e) {
    ExpertFfnArgs f{};
    f.x = in.data() + e * rows * s.D, f.w1 = fused.w1.data() + e * s.P() * s.D, f.b1 = fused.b1.data() + e * s.P();
    f.mult_bias = fused.mu.empty() ? nullptr : fused.mu.data() + e * s.H, f.w2 = fused.w2.data() + e * s.D * s.H,
    f.b2 = fused.b2.data() + e * s.D;
    f.y = out.data() + e * rows * s.D, f.a = a.data() + e * rows * s.P(), f.dtype = f.compute = type;
    f.activation = s.activation;
    f.T = rows, f.K = 1, f.D = s.D, f.E = 1, f.H = s.H, f.B = 1, f.C = rows, f.rows = rows;
    return f;
  };
  for (int64_t e = 0; e < s.E; ++e) expect_ok(ops.expert_ffn(ctx, dense(e)), "dense expert_ffn");
  expect_ok(ops.combine(
                ctx, {out.data(), fused.weight.data(), index, position, y.data(), type, s.B, s.N, s.D, s.E, s.K, s.C}),
            "combine");
  check_close(widen(y), widen(fused.y), tolerance, name + " unfused y");

  expect_ok(ops.combine_backward(ctx, {fused.gy.data(), out.data(), fused.weight.data(), index, position, dout.data(),
                                       dweight.data(), type, s.B, s.N, s.D, s.E, s.K, s.C}),
            "combine_backward");
  for (int64_t e = 0; e < s.E; ++e) {
    const ExpertFfnArgs f = dense(e);
    ExpertFfnBackwardArgs g{};
    g.dy = dout.data() + e * rows * s.D, g.x = f.x, g.w1 = f.w1, g.b1 = f.b1, g.mult_bias = f.mult_bias, g.w2 = f.w2;
    g.b2 = f.b2, g.a = f.a, g.dx = din.data() + e * rows * s.D, g.dw1 = grads.dw1.data() + e * s.P() * s.D;
    g.db1 = grads.db1.data() + e * s.P(), g.dmult_bias = f.mult_bias ? grads.dmu.data() + e * s.H : nullptr;
    g.activation = s.activation;
    g.dw2 = grads.dw2.data() + e * s.D * s.H, g.db2 = grads.db2.data() + e * s.D, g.dtype = g.compute = type;
    g.T = rows, g.K = 1, g.D = s.D, g.E = 1, g.H = s.H, g.B = 1, g.C = rows, g.rows = rows;
    expect_ok(ops.expert_ffn_backward(ctx, g), "dense expert_ffn_backward");
  }
  expect_ok(ops.dispatch_backward(ctx, {din.data(), fused.x.data(), index, position, dx.data(), dweight_dispatch.data(),
                                        type, s.B, s.N, s.D, s.E, s.K, s.C}),
            "dispatch_backward");
  for (size_t i = 0; i < dweight.size() && !s.has(kNoStraightThrough); ++i) dweight[i] += dweight_dispatch[i];
  check_close(widen(dx), widen(fused.dx), tolerance, name + " unfused dx");
  check_close(widen(dweight), widen(fused.dweight), 4 * tolerance, name + " unfused dweight");
  check_close(widen(grads.dw1), widen(fused.dw1), tolerance, name + " unfused dw1");
  check_close(widen(grads.db1), widen(fused.db1), tolerance, name + " unfused db1");
  check_close(widen(grads.dmu), widen(fused.dmu), tolerance, name + " unfused dmult_bias");
  check_close(widen(grads.dw2), widen(fused.dw2), tolerance, name + " unfused dw2");
  check_close(widen(grads.db2), widen(fused.db2), tolerance, name + " unfused db2");
}

template <class T>
void check_forward(const Layer<T>& layer, const Reference& r, double tolerance, const std::string& name) {
  check(layer.index == r.index, name + " expert_index");
  check(layer.kept == r.kept, name + " kept");
  check(layer.position == r.position, name + " position");
  check_close(widen(layer.gate), r.gate, tolerance, name + " gate");
  check_close(widen(layer.weight), r.weight, tolerance, name + " weight");
  check_close(widen(layer.density), r.density, tolerance, name + " density");
  check_close(widen(layer.y), r.y, tolerance, name + " y");
  check_close({layer.losses[0]}, {r.balance}, tolerance, name + " balance");
  check_close({layer.losses[1]}, {r.z}, tolerance, name + " z");
  check_close({layer.losses[2]}, {r.total}, tolerance, name + " total");
}

// Central differences of the plain implementation at up to 60 entries of one input.
void check_gradient(const Problem& problem, Values Problem::* input, const Values& gradient, const std::string& name) {
  Problem p = problem;
  const Values weight = reference(p).weight, *frozen = !p.shape.has(kNoStraightThrough) ? &weight : nullptr;
  Values& v = p.*input;
  Values expected, got;
  const size_t stride = std::max<size_t>(1, v.size() / 60);
  for (size_t i = 0; i < v.size(); i += stride) {
    const double value = v[i], h = 1e-5;
    v[i] = value + h;
    const double above = reference(p, frozen).objective;
    v[i] = value - h;
    const double below = reference(p, frozen).objective;
    v[i] = value;
    expected.push_back((above - below) / (2 * h));
    got.push_back(gradient[i]);
  }
  double norm = 0;
  for (double g : expected) norm += g * g;
  if (norm < 1e-12)  // nothing flows
    check(distance(got, Values(got.size())) < 1e-6, name);
  else
    check_close(got, expected, 2e-7, name);
}

void check_gradients(const Layer<double>& layer, const std::string& name) {
  const Problem& p = layer.p;
  check_gradient(p, &Problem::x, layer.input_gradient(), name + " dx");
  check_gradient(p, &Problem::w, layer.dw, name + " dw");
  check_gradient(p, &Problem::w1, layer.dw1, name + " dw1");
  check_gradient(p, &Problem::b1, layer.db1, name + " db1");
  check_gradient(p, &Problem::mu, layer.dmu, name + " dmult_bias");
  check_gradient(p, &Problem::w2, layer.dw2, name + " dw2");
  check_gradient(p, &Problem::b2, layer.db2, name + " db2");
}

template <class T>
void check_threads(const Layer<T>& one, const std::string& name) {
  for (int threads : {2, 3, 7}) {
    Layer<T> more(one.p, threads);
    more.run();
    const auto a = one.results(), b = more.results();
    for (size_t i = 0; i < a.size(); ++i)
      check(std::memcmp(a[i]->data(), b[i]->data(), a[i]->size() * sizeof(T)) == 0,
            name + " on " + std::to_string(threads) + " threads, result " + std::to_string(i));
  }
}

// Draws a problem whose routing does not hang on rounding.
Problem clear_problem(const Shape& shape) {
  for (uint32_t seed = 1;; ++seed) {
    Problem p = make_problem(shape, seed);
    if (seed == 500) check(false, std::string(shape.name) + ": no clear routing found");
    if (seed == 500 || reference(p).margin > 5e-5) return p;
  }
}

void check_shape(const Shape& shape) {
  const std::string name = shape.name;
  const Problem p = clear_problem(shape);
  const Reference r = reference(p);
  Layer<double> wide(p, 1);
  wide.run();
  check_forward(wide, r, 1e-13, name + " f64");
  check_gradients(wide, name);
  check_unfused(wide, 1e-13, name + " f64");
  check_threads(wide, name + " f64");

  Layer<float> narrow(p, 1);
  narrow.run();
  check_forward(narrow, r, 2e-6, name + " f32");
  check_unfused(narrow, 2e-6, name + " f32");
  check_threads(narrow, name + " f32");
  const auto a = narrow.results();
  const auto b = wide.results();
  for (size_t i = 0; i < a.size(); ++i)
    check_close(widen(*a[i]), *b[i], 1e-5, name + " f32 against f64, result " + std::to_string(i));
}

const Shape kSmall{"small", 2, 9, 6, 4, 2, 4, 5, {0, 0.3f}};

void check_empty() {
  for (const auto& [B, N] : std::vector<std::pair<int64_t, int64_t>>{{0, 5}, {3, 0}}) {
    Shape shape = kSmall;
    shape.B = B, shape.N = N;
    const Problem p = make_problem(shape, 1);
    Layer<float> layer(p, 2);
    layer.run();
    check(layer.losses == std::vector<float>(3, 0), "losses without tokens");
    check(layer.dw == std::vector<float>(layer.dw.size(), 0) && layer.dw1 == std::vector<float>(layer.dw1.size(), 0),
          "gradients without tokens");
    check_unfused(layer, 1e-6, "without tokens");
  }
}

void check_nan() {
  Shape shape = kSmall;
  Problem p = make_problem(shape, 1);
  Layer<float> clean(p, 2);
  clean.run();
  p.x[3 * shape.D + 1] = NAN;  // token 3 of sequence 0
  Layer<float> spoilt(p, 2);
  spoilt.run();
  for (int64_t t = 0; t < shape.tokens(); ++t)
    for (int64_t d = 0; d < shape.D; ++d) {
      const bool nan = std::isnan(spoilt.y[t * shape.D + d]);
      const bool kept = spoilt.kept[t * shape.K];
      if (t == 3) check(nan == kept, "a NaN token has a NaN row, or zeros where it was dropped");
      if (t != 3) check(!nan, "a NaN token leaves other rows alone");
      if (t >= shape.N)
        check(spoilt.y[t * shape.D + d] == clean.y[t * shape.D + d], "a NaN token leaves other sequences alone");
    }
  for (int64_t k = 0; k < shape.K; ++k) check(spoilt.index[3 * shape.K + k] == k, "choices of a NaN token");
  check(spoilt.kept[3 * shape.K + 1] == 0, "second choice of a NaN token");

  p.mask.assign(shape.tokens(), 1);  // as padding it spoils nothing at all
  p.mask[3] = 0;
  Layer<float> padded(p, 2);
  padded.run();
  for (const std::vector<float>* v :
       {&padded.y, &padded.dx, &padded.dx_router, &padded.dw, &padded.dw1, &padded.losses})
    check(std::none_of(v->begin(), v->end(), [](float value) { return std::isnan(value); }), "a masked NaN token");
}

void check_ties() {
  Shape shape = kSmall;
  shape.K = 3, shape.threshold = {0, 0, 0};
  Problem p = make_problem(shape, 1);
  std::fill(p.w.begin(), p.w.end(), 0);
  Layer<float> layer(p, 1);
  expect_ok(cpu_backend().ops.route(layer.ctx, layer.route_args()), "route");
  for (size_t i = 0; i < layer.index.size(); ++i)
    check(layer.index[i] == int32_t(i % 3), "ties go to the lowest index");
}

void check_errors() {
  const OpTable& ops = cpu_backend().ops;
  const Problem p = make_problem(kSmall, 1);
  Layer<float> layer(p, 2);
  layer.run();
  const auto expect_option = [](const Status& status, const char* what) {
    check(status.code == ErrorCode::option, std::string("error for ") + what);
  };
  const auto run_all = [&](const char* what) {
    std::vector<float> slots(4 * 2 * 4 * 6), copy(slots);
    const int32_t *index = layer.index.data(), *position = layer.position.data();
    std::vector<float> dweight(layer.weight), dx(layer.x);
    expect_option(
        ops.dispatch(layer.ctx, {layer.x.data(), index, position, slots.data(), DType::f32, 2, 9, 6, 4, 2, 4}), what);
    expect_option(ops.dispatch_backward(layer.ctx, {slots.data(), layer.x.data(), index, position, dx.data(),
                                                    dweight.data(), DType::f32, 2, 9, 6, 4, 2, 4}),
                  what);
    expect_option(ops.combine(layer.ctx, {slots.data(), layer.weight.data(), index, position, dx.data(), DType::f32, 2,
                                          9, 6, 4, 2, 4}),
                  what);
    expect_option(ops.combine_backward(layer.ctx, {layer.gy.data(), slots.data(), layer.weight.data(), index, position,
                                                   copy.data(), dweight.data(), DType::f32, 2, 9, 6, 4, 2, 4}),
                  what);
  };
  const size_t kept = std::find(layer.kept.begin(), layer.kept.end(), 1) - layer.kept.begin();
  for (int32_t wrong : {-1, 4, INT32_MAX, INT32_MIN}) {
    const int32_t right = std::exchange(layer.index[kept], wrong);
    run_all("expert_index");
    expect_option(ops.expert_ffn(layer.ctx, layer.ffn_args()), "expert_index");
    expect_option(ops.expert_ffn_backward(layer.ctx, layer.ffn_backward_args()), "expert_index");
    layer.index[kept] = right;
  }
  for (int32_t wrong : {4, INT32_MAX}) {
    const int32_t right = std::exchange(layer.position[kept], wrong);
    run_all("position");
    layer.position[kept] = right;
  }
  ExpertFfnArgs few = layer.ffn_args();
  few.rows = 1;
  expect_option(ops.expert_ffn(layer.ctx, few), "too few rows");
  ExpertFfnArgs unknown = layer.ffn_args();
  unknown.activation = static_cast<Activation>(kActivationCount);
  expect_option(ops.expert_ffn(layer.ctx, unknown), "an unknown activation");

  // Two tokens in one slot: some valid result, and no crash.
  std::fill(layer.position.begin(), layer.position.end(), 0);
  std::fill(layer.index.begin(), layer.index.end(), 2);
  std::vector<float> slots(4 * 2 * 4 * 6, -1);
  expect_ok(ops.dispatch(layer.ctx, {layer.x.data(), layer.index.data(), layer.position.data(), slots.data(),
                                     DType::f32, 2, 9, 6, 4, 2, 4}),
            "dispatch of a shared slot");
  for (int64_t b = 0; b < 2; ++b)
    check(std::equal(&layer.x[(b * 9 + 8) * 6], &layer.x[(b * 9 + 8) * 6] + 6, &slots[((2 * 2 + b) * 4) * 6]),
          "the last token has a shared slot");
}

// Dense and with all that may be left out: no saved A, no dx, no parameter gradients.
void check_optional() {
  const OpTable& ops = cpu_backend().ops;
  const Problem p = make_problem(kSmall, 1);
  Layer<float> full(p, 2), part(p, 2);
  full.run();
  part.index = full.index, part.position = full.position, part.weight = full.weight, part.a = full.a;
  ExpertFfnArgs f = part.ffn_args();
  f.a = nullptr;
  expect_ok(ops.expert_ffn(part.ctx, f), "expert_ffn without saving");
  check(part.y == full.y, "expert_ffn without saving");
  ExpertFfnBackwardArgs g = part.ffn_backward_args();
  g.dw1 = g.db1 = g.dmult_bias = g.dw2 = g.db2 = nullptr;
  expect_ok(ops.expert_ffn_backward(part.ctx, g), "expert_ffn_backward without parameters");
  check(part.dx == full.dx && part.dweight == full.dweight, "expert_ffn_backward without parameters");
  g = part.ffn_backward_args();
  g.dx = nullptr;
  expect_ok(ops.expert_ffn_backward(part.ctx, g), "expert_ffn_backward without dx");
  check(part.dw1 == full.dw1 && part.db1 == full.db1 && part.dw2 == full.dw2, "expert_ffn_backward without dx");
}

// Experts larger than a chunk of rows and than the blocks of the sums.
void check_large() {
  const Shape shape{"large", 2, 700, 16, 2, 2, 600, 800, {0, 0.2f}};
  const Problem p = make_problem(shape, 1);
  Layer<double> wide(p, 1);
  Layer<float> narrow(p, 1);
  wide.run();
  narrow.run();
  check(wide.index == narrow.index && wide.position == narrow.position, "large: routing of f32 and f64");
  check_close(wide.y, reference(p).y, 1e-13, "large y");
  check_threads(narrow, "large f32");
  const auto a = narrow.results();
  const auto b = wide.results();
  for (size_t i = 0; i < a.size(); ++i)
    check_close(widen(*a[i]), *b[i], 1e-5, "large f32 against f64, result " + std::to_string(i));
  check_unfused(narrow, 2e-6, "large f32");
}

}  // namespace

int main() {
  std::vector<Shape> shapes = {
      kSmall,
      {"one choice", 2, 11, 7, 5, 1, 4, 6, {0}},
      {"all experts", 2, 8, 5, 3, 3, 8, 7, {0, 0.2f, 0.2f}},
      {"two tokens", 3, 2, 8, 4, 2, 4, 5, {0, 0.2f}},
      {"one token", 1, 1, 8, 4, 2, 4, 5, {0, 0.2f}},
      {"one expert", 1, 6, 4, 1, 1, 4, 3, {0}},
      {"130 experts", 1, 20, 6, 130, 2, 4, 2, {0, 0.2f}, 0, 4},
      {"thresholds", 2, 10, 6, 5, 3, 5, 4, {0, 0, 1e6f}},
      {"tuple", 2, 10, 6, 5, 3, 5, 4, {0, 0.5f, 0.1f}, kNoStraightThrough},
      {"capacity beyond tokens", 2, 5, 6, 4, 2, 9, 5, {0, 0.2f}},
      {"masked", 3, 9, 6, 4, 2, 3, 5, {0, 0.2f}, kMasked},
      {"masked, assigned, noisy", 3, 9, 6, 4, 2, 3, 5, {0, 0.2f}, kMasked | kNoisy | kAssigned},
      {"noisy", 2, 9, 6, 4, 2, 4, 5, {0, 0.2f}, kNoisy},
      {"noisy, drawn", 2, 131, 4, 3, 2, 60, 2, {0, 0.2f}, kNoisy | kDrawn},
      {"differentiable top-k", 2, 9, 6, 8, 2, 4, 5, {0, 0.2f}, kSoft},
      {"differentiable top-k, noisy", 1, 12, 6, 12, 3, 4, 5, {0, 0.2f, 0.2f}, kSoft | kNoisy, 1},
      {"saturated top-k", 1, 9, 6, 2, 2, 4, 5, {0, 0.2f}, kSoft},
      {"evaluation", 2, 9, 6, 4, 2, 4, 5, {0, 0.2f}, kEvaluation},
      {"collapse", 2, 12, 6, 4, 2, 4, 5, {0, 0.2f}, kCollapse},
      {"collapse, assigned", 2, 12, 6, 4, 2, 4, 5, {0, 0.2f}, kCollapse | kAssigned},
  };
  for (int32_t i = 0; i < kActivationCount; ++i) {
    Shape shape{kActivationNames[i], 2, 9, 6, 4, 2, 4, 5, {0, 0.3f}};
    shape.activation = static_cast<Activation>(i);
    shapes.push_back(shape);
    shape.flags = kNoStraightThrough, shape.H = 261;
    shapes.push_back(shape);
  }
  for (const Shape& shape : shapes) check_shape(shape);
  check_empty();
  check_nan();
  check_ties();
  check_errors();
  check_optional();
  check_large();
  std::printf("moe_test on %s: %d failures\n", cpu_backend().variant, failures);
  return failures != 0;
}

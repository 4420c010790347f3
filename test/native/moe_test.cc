// The ops of a mixture-of-experts layer against a plain implementation in double precision, its finite differences,
// each other (fused and unfused), and themselves on other numbers of threads.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "moe_checks.h"

namespace {

using namespace st_moe::test;
using namespace moe_reference;

template <class T>
Values widen(const std::vector<T>& v) {
  return Values(v.begin(), v.end());
}

// A result against one in double precision.
template <class T>
void check_close(const std::vector<T>& got, const Values& wanted, double limit, const std::string& what) {
  expect_close(widen(got), wanted, what, limit);
}

// The same layer through dispatch, expert_ffn without a plan, and combine; `fused` has run.
template <class T>
void check_unfused(const Layer<T>& fused, double tolerance, const std::string& name) {
  const Shape& s = fused.p.shape;
  if (s.has(kDropout)) return;  // rows without a plan have other random numbers
  const OpTable& ops = cpu_backend().ops;
  const Context ctx{2, nullptr};
  Layer<T> slots(fused.p, cpu(2), dtype_of<T>(), true);
  expect_ok(slots.route(), "route");
  slots.check_plan(name);
  const int64_t rows = s.E * s.B * s.C, tokens = s.tokens(), O = s.out();
  std::vector<T> in(rows * s.D, T(NAN)), out(rows * O, T(NAN)), din(in), dout(out), a(rows * s.P());
  std::vector<T> y(fused.y.size()), dx(fused.dx.size()), dweight(fused.weight.size()), dweight_dispatch(dweight.size());
  Layer<T> grads(fused.p, cpu(2));
  const int32_t *assignment = slots.assignment.data(), *row_of = slots.row_of.data();
  const DType type = dtype_of<T>();
  expect_ok(ops.dispatch(ctx, {fused.x.data(), assignment, row_of, in.data(), type, tokens, rows, s.K, s.D}),
            "dispatch");
  const auto given = [](auto& values) { return values.empty() ? nullptr : values.data(); };
  ExpertFfnArgs f{};
  f.x = in.data(), f.w1 = fused.w1.data(), f.b1 = given(fused.b1), f.mult_bias = given(fused.mu);
  f.w2 = fused.w2.data(), f.b2 = given(fused.b2), f.y = out.data(), f.a = a.data(), f.dtype = f.compute = type;
  f.activation = s.activation, f.limit = kLimit, f.alpha = kAlpha;
  f.T = f.R = rows, f.K = 1, f.D = s.D, f.O = O, f.E = s.E, f.H = s.H, f.saved = s.P();
  expect_ok(ops.expert_ffn(ctx, f), "dense expert_ffn");
  expect_ok(ops.combine(ctx, {out.data(), fused.weight.data(), row_of, y.data(), type, tokens, rows, s.K, O}),
            "combine");
  check_close(y, widen(fused.y), tolerance, name + " unfused y");

  expect_ok(ops.combine_backward(ctx, {fused.gy.data(), out.data(), fused.weight.data(), assignment, row_of,
                                       dout.data(), dweight.data(), type, tokens, rows, s.K, O}),
            "combine_backward");
  ExpertFfnBackwardArgs g{};
  g.dy = dout.data(), g.x = f.x, g.w1 = f.w1, g.b1 = f.b1, g.mult_bias = f.mult_bias, g.w2 = f.w2, g.b2 = f.b2;
  g.a = f.a, g.dx = din.data(), g.dw1 = grads.dw1.data(), g.db1 = given(grads.db1), g.dmult_bias = given(grads.dmu);
  g.dw2 = grads.dw2.data(), g.db2 = given(grads.db2), g.dtype = g.compute = type;
  g.activation = s.activation, g.limit = kLimit, g.alpha = kAlpha;
  g.T = g.R = rows, g.K = 1, g.D = s.D, g.O = O, g.E = s.E, g.H = s.H, g.saved = f.saved;
  expect_ok(ops.expert_ffn_backward(ctx, g), "dense expert_ffn_backward");
  expect_ok(ops.dispatch_backward(ctx, {din.data(), fused.x.data(), row_of, dx.data(), dweight_dispatch.data(), type,
                                        tokens, rows, s.K, s.D}),
            "dispatch_backward");
  for (size_t i = 0; i < dweight.size() && !s.has(kNoStraightThrough); ++i) dweight[i] += dweight_dispatch[i];
  check_close(dx, widen(fused.dx), tolerance, name + " unfused dx");
  check_close(dweight, widen(fused.dweight), 4 * tolerance, name + " unfused dweight");
  check_close(grads.dw1, widen(fused.dw1), tolerance, name + " unfused dw1");
  check_close(grads.db1, widen(fused.db1), tolerance, name + " unfused db1");
  check_close(grads.dmu, widen(fused.dmu), tolerance, name + " unfused dmult_bias");
  check_close(grads.dw2, widen(fused.dw2), tolerance, name + " unfused dw2");
  check_close(grads.db2, widen(fused.db2), tolerance, name + " unfused db2");
}

template <class T>
void check_forward(const Layer<T>& layer, const Reference& r, double tolerance, const std::string& name) {
  expect(layer.index == r.index, name + " expert_index");
  expect(layer.kept == r.kept, name + " kept");
  expect(layer.position == r.position, name + " position");
  check_close(layer.gate, r.gate, tolerance, name + " gate");
  check_close(layer.weight, r.weight, tolerance, name + " weight");
  check_close(layer.density, r.density, tolerance, name + " density");
  check_close(layer.y, r.y, tolerance, name + " y");
  check_close(layer.balance, {r.balance}, tolerance, name + " balance");
  check_close(layer.z, {r.z}, tolerance, name + " z");
  check_close(layer.total, {r.total}, tolerance, name + " total");
}

// Central differences of the plain implementation, with all entries of one input moved at a time, by random signs.
void check_gradient(const Problem& problem, Values Problem::* input, const Values& gradient, const std::string& name) {
  constexpr int kMoves = 4;
  Problem p = problem;
  const Values weight = reference(p).weight, *frozen = !p.shape.has(kNoStraightThrough) ? &weight : nullptr;
  const Values& v = problem.*input;
  const double h = 1e-5 / std::sqrt(std::max<size_t>(1, v.size()));
  std::mt19937 random(1);
  Values expected, got, signs(v.size());
  for (int move = 0; move < kMoves; ++move) {
    for (double& sign : signs) sign = random() % 2 ? 1 : -1;
    const auto objective = [&](double step) {
      for (size_t i = 0; i < v.size(); ++i) (p.*input)[i] = v[i] + step * signs[i];
      return reference(p, frozen).objective;
    };
    expected.push_back((objective(h) - objective(-h)) / (2 * h));
    got.push_back(std::inner_product(signs.begin(), signs.end(), gradient.begin(), 0.0));
  }
  double norm = 0;
  for (double g : expected) norm += g * g;
  if (norm < 1e-12)  // nothing flows
    check_close(got, Values(got.size()), 1e-6, name);
  else
    check_close(got, expected, 2e-7, name);
}

void check_gradients(const Layer<double>& layer, const std::string& name) {
  const Problem& p = layer.p;
  Values dx = layer.dx;
  for (size_t i = 0; i < dx.size(); ++i) dx[i] += layer.dx_router[i];
  check_gradient(p, &Problem::x, dx, name + " dx");
  check_gradient(p, &Problem::w, layer.dw, name + " dw");
  check_gradient(p, &Problem::w1, layer.dw1, name + " dw1");
  check_gradient(p, &Problem::b1, layer.db1, name + " db1");
  check_gradient(p, &Problem::mu, layer.dmu, name + " dmult_bias");
  check_gradient(p, &Problem::w2, layer.dw2, name + " dw2");
  check_gradient(p, &Problem::b2, layer.db2, name + " db2");
}

// The same with rows by slot, so that gradients of parameters are added up in another order.
template <class T>
void check_slots(const Layer<T>& sorted, const std::string& name) {
  Layer<T> slots(sorted.p, cpu(2), sorted.compute, true);
  slots.run(name);
  check_equal(slots, sorted, name + " by slots");
  expect(slots.y == sorted.y && slots.dx == sorted.dx && slots.dweight == sorted.dweight, name + " by slots: bits");
}

template <class T>
void check_threads(const Layer<T>& one, const std::string& name) {
  for (int threads : {2, 3, 7, 64}) {
    Layer<T> more(one.p, cpu(threads), one.compute);
    more.run(name);
    const auto a = one.results(), b = more.results();
    for (size_t i = 0; i < a.size(); ++i)
      expect(bytes_of(*a[i].second) == bytes_of(*b[i].second),
             name + " on " + std::to_string(threads) + " threads: " + a[i].first);
  }
}

void check_shape(const Shape& shape) {
  const std::string name = shape.name;
  const Problem p = clear_problem(shape);
  const Reference r = reference(p);
  Layer<double> wide(p, cpu());
  wide.run(name);
  check_forward(wide, r, 1e-13, name + " f64");
  check_gradients(wide, name);
  check_unfused(wide, 1e-13, name + " f64");
  check_threads(wide, name + " f64");
  check_slots(wide, name + " f64");

  Layer<float> narrow(p, cpu());
  narrow.run(name);
  check_forward(narrow, r, 2e-6, name + " f32");
  check_unfused(narrow, 2e-6, name + " f32");
  check_threads(narrow, name + " f32");
  check_slots(narrow, name + " f32");
  const auto a = narrow.results();
  const auto b = wide.results();
  for (size_t i = 0; i < a.size(); ++i)
    check_close(*a[i].second, *b[i].second, 1e-5, name + " f32 against f64: " + a[i].first);
}

// GEMMs of bf16, f16 and bf16x3 operands, and a saved A of the type.
void check_low_precision(const Shape& shape) {
  const Problem p = clear_problem(shape);
  Layer<double> wide(p, cpu());
  wide.run("f64");
  for (const DType compute : {DType::bf16, DType::f16, kBf16x3}) {
    const std::string name = std::string(shape.name) + " in " + dtype_name(compute);
    Layer<float> low(p, cpu(), compute);
    low.run(name);
    const auto a = low.results();
    const auto b = wide.results();
    for (size_t i = 0; i < a.size(); ++i)
      check_close(*a[i].second, *b[i].second, slope_jumps(shape.activation) ? 0.05 : low_precision_limit(compute, 12),
                  name + " against f64: " + a[i].first);
    check_threads(low, name);
    check_slots(low, name);
    Layer<float> unsaved(p, cpu(), compute);
    unsaved.optional = false;
    expect_ok(unsaved.route(), name + " route");
    expect_ok(unsaved.plan(), name + " plan");
    expect_ok(unsaved.expert_ffn(), name + " without saving");
    expect(unsaved.y == low.y, name + " without saving");
  }
}

void check_empty() {
  for (const auto& [B, N] : std::vector<std::pair<int64_t, int64_t>>{{0, 5}, {3, 0}}) {
    Shape shape = kSmall;
    shape.B = B, shape.N = N;
    const Problem p = make_problem(shape, 1);
    Layer<float> layer(p, cpu(2));
    layer.run("layer");
    for (const auto* loss : {&layer.balance, &layer.z, &layer.total}) expect((*loss)[0] == 0, "losses without tokens");
    expect(layer.dw == std::vector<float>(layer.dw.size(), 0) && layer.dw1 == std::vector<float>(layer.dw1.size(), 0),
           "gradients without tokens");
    check_unfused(layer, 1e-6, "without tokens");
  }
}

void check_nan() {
  Shape shape = kSmall;
  Problem p = make_problem(shape, 1);
  Layer<float> clean(p, cpu(2));
  clean.run("clean");
  p.x[3 * shape.D + 1] = NAN;  // token 3 of sequence 0
  Layer<float> spoilt(p, cpu(2));
  spoilt.run("spoilt");
  for (int64_t t = 0; t < shape.tokens(); ++t)
    for (int64_t d = 0; d < shape.D; ++d) {
      const bool nan = std::isnan(spoilt.y[t * shape.D + d]);
      const bool kept = spoilt.kept[t * shape.K];
      if (t == 3) expect(nan == kept, "a NaN token has a NaN row, or zeros where it was dropped");
      if (t != 3) expect(!nan, "a NaN token leaves other rows alone");
      if (t >= shape.N)
        expect(spoilt.y[t * shape.D + d] == clean.y[t * shape.D + d], "a NaN token leaves other sequences alone");
    }
  for (int64_t k = 0; k < shape.K; ++k) expect(spoilt.index[3 * shape.K + k] == k, "experts of a NaN token");
  expect(spoilt.kept[3 * shape.K + 1] == 0, "second expert of a NaN token");

  p.mask.assign(shape.tokens(), 1);  // as padding it spoils nothing at all
  p.mask[3] = 0;
  Layer<float> padded(p, cpu(2));
  padded.run("padded");
  for (const std::vector<float>* v : {&padded.y, &padded.dx, &padded.dx_router, &padded.dw, &padded.dw1, &padded.total})
    expect(std::none_of(v->begin(), v->end(), [](float value) { return std::isnan(value); }), "a masked NaN token");
}

void check_ties() {
  Shape shape = kSmall;
  shape.K = 3, shape.threshold = {0, 0, 0};
  Problem p = make_problem(shape, 1);
  std::fill(p.w.begin(), p.w.end(), 0);
  Layer<float> layer(p, cpu());
  expect_ok(layer.route(), "route");
  for (size_t i = 0; i < layer.index.size(); ++i)
    expect(layer.index[i] == int32_t(i % 3), "ties go to the lowest index");
}

bool is_option(const Status& status) {
  return status.code == ErrorCode::option;
}

void check_arguments() {
  const Problem p = make_problem(kSmall, 1);
  Layer<float> layer(p, cpu(2));
  layer.run("small");
  expect(is_option(layer.expert_ffn([](auto& f) { f.R = 1; })), "too few rows");
  const auto unknown = static_cast<Activation>(kActivationCount);
  expect(is_option(layer.expert_ffn([&](auto& f) { f.activation = unknown; })), "an unknown activation");
}

// Experts larger than a chunk of rows and than the blocks of the sums.
void check_large() {
  const Shape shape{"large", 2, 700, 16, 2, 2, 600, 800, {0, 0.2f}};
  const Problem p = make_problem(shape, 1);
  Layer<double> wide(p, cpu());
  Layer<float> narrow(p, cpu());
  wide.run("large");
  narrow.run("large");
  expect(wide.index == narrow.index && wide.position == narrow.position, "large: routing of f32 and f64");
  check_close(wide.y, reference(p).y, 1e-13, "large y");
  check_threads(narrow, "large f32");
  const auto a = narrow.results();
  const auto b = wide.results();
  for (size_t i = 0; i < a.size(); ++i)
    check_close(*a[i].second, *b[i].second, 1e-5, std::string("large f32 against f64: ") + a[i].first);
  check_unfused(narrow, 2e-6, "large f32");
}

}  // namespace

int main() try {
  std::vector<Shape> shapes = common_shapes();
  for (int32_t i = 0; i < kActivationCount; ++i) {
    Shape shape{kActivationNames[i], 2, 9, 6, 4, 2, 4, 5, {0, 0.3f}};
    shape.activation = static_cast<Activation>(i);
    shapes.push_back(shape);
    shape.flags = kNoStraightThrough, shape.H = 261;
    shapes.push_back(shape);
  }
  for (const Shape& shape : shapes) check_shape(shape);
  for (int32_t i = 0; i < kActivationCount; ++i) {
    Shape shape{kActivationNames[i], 2, 70, 24, 4, 2, 40, 261, {0, 0.3f}};
    shape.activation = static_cast<Activation>(i);
    check_low_precision(shape);
  }
  check_empty();
  check_nan();
  check_ties();
  check_hostile(cpu(2), is_option);
  check_hostile(cpu(2), is_option, true);
  check_arguments();
  check_optional(cpu(2));
  check_large();
  return report("moe_test", cpu_backend().variant);
} catch (const Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

#pragma once
#include <algorithm>

#include "moe_call.h"
#include "moe_reference.h"

// One mixture-of-experts layer, op by op, on any device, and the checks that each device passes.
namespace st_moe::test {

using namespace moe_reference;

template <class T>
std::vector<T> cast(const Values& v) {
  return std::vector<T>(v.begin(), v.end());
}

struct Unchanged {
  template <class Args>
  void operator()(Args&) const {}
};

// One layer on one device. Weights may be spoilt before it runs.
template <class T>
struct Layer {
  const Problem& p;
  Device device;
  std::vector<T> x, w, w1, b1, mu, w2, b2, uniforms, gumbel, second_place, gy, expert_bias;
  std::vector<T> gate, weight, balance, z, total, probs, logits, lse, density, second_density, y, a;
  std::vector<T> dweight, dx, dx_router, dw, dw1, db1, dmu, dw2, db2;
  Indices index, kept, position;
  Indices assignment, ends, row_of;  // the plan
  const bool slots;                  // of equal rows per expert; else of dispatched assignments alone
  bool host_ends = false;            // the host knows them too
  DType compute;
  PackedCopies *w1_packed = nullptr, *w2_packed = nullptr;
  int64_t launches = 0;
  bool optional = true;  // saves A, and wants every gradient

  Layer(const Problem& problem, const Device& on, DType operands = dtype_of<T>())
      : Layer(problem, on, operands, on.backend != &cpu_backend()) {}
  Layer(const Problem& problem, const Device& on, DType operands, bool with_slots)
      : p(problem), device(on), slots(with_slots), compute(operands) {
    x = cast<T>(p.x), w = cast<T>(p.w), w1 = cast<T>(p.w1), b1 = cast<T>(p.b1), mu = cast<T>(p.mu);
    w2 = cast<T>(p.w2), b2 = cast<T>(p.b2), gy = cast<T>(p.gy);
    uniforms = cast<T>(p.uniforms), gumbel = cast<T>(p.gumbel), second_place = cast<T>(p.second_place);
    expert_bias = cast<T>(p.expert_bias);
    const Shape& s = p.shape;
    const int64_t tokens = s.tokens();
    gate = weight = dweight = unset<T>(tokens * s.K);
    balance = z = total = unset<T>(1);
    probs = logits = unset<T>(tokens * s.E);
    lse = unset<T>(tokens);
    density = unset<T>(s.B * s.E);
    if (s.has(kSecondLoss)) second_density = density;
    y = unset<T>(tokens * s.out());
    dx = dx_router = unset<T>(tokens * s.D);
    a = unset<T>(rows() * saved_columns(*device.backend, s.activation, s.H, compute));
    dw = unset<T>(w.size()), dw1 = unset<T>(w1.size()), db1 = unset<T>(b1.size()), dmu = unset<T>(mu.size());
    dw2 = unset<T>(w2.size()), db2 = unset<T>(b2.size());
    index = kept = position = row_of = Indices(tokens * s.K, -7);
    assignment = Indices(rows(), -7), ends = Indices(s.E, -7);
  }

  int64_t rows() const {
    const Shape& s = p.shape;
    return slots ? s.E * s.B * s.C : s.tokens() * s.K;
  }

  template <class Args>
  Status run(Call& c, Op<Args> OpTable::* op, const Args& args) {
    const Status status = c.run(op, args);
    launches += c.launches;
    return status;
  }

  Status route() {
    const Shape& s = p.shape;
    Call c(device);
    RouteArgs r{};
    r.x = c.in(x), r.w = c.in(w), r.threshold = c.in(s.threshold);
    if (!s.has(kDrawn)) {
      r.uniforms = c.in(uniforms), r.gumbel_uniforms = c.in(gumbel);
      r.second_place_uniforms = c.in(second_place);
    }
    r.mask = p.mask.empty() ? nullptr : c.in(p.mask);
    r.expert_index = c.out(index), r.kept = c.out(kept), r.position = c.out(position);
    r.gate = c.out(gate), r.weight = c.out(weight);
    r.balance_loss = c.out(balance), r.z_loss = c.out(z), r.total_loss = c.out(total);
    r.probs = c.out(probs), r.logits = c.out(logits), r.lse = c.out(lse), r.density = c.out(density);
    r.second_density = s.has(kSecondLoss) ? c.out(second_density) : nullptr;
    if (slots) r.assignment = c.out(assignment), r.row_of = c.out(row_of);
    r.dtype = dtype_of<T>();
    r.B = s.B, r.N = s.N, r.D = s.D, r.E = s.E, r.K = s.K, r.C = s.C;
    r.seed = p.seed, r.step = p.step, r.gumbel_step = p.gumbel_step;
    r.noise_mult = p.noise_mult, r.eps = 1e-9, r.balance_coef = p.balance_coef, r.z_coef = p.z_coef;
    r.noisy = s.has(kNoisy), r.training = !s.has(kEvaluation), r.differentiable_topk = s.has(kSoft);
    r.density_assigned = s.has(kAssigned), r.gate_normalization = s.normalization();
    r.second_policy = s.second_policy(), r.score_function = s.score;
    r.expert_bias = expert_bias.empty() ? nullptr : c.in(expert_bias);
    r.second_place_step = p.second_place_step, r.second_place_prob = s.has(kSecondPlace) ? p.second_place_prob : 0;
    r.second_place_temperature = s.has(kSecondPlaceSampled) ? p.second_place_temperature : -1;
    r.samples = s.has(kSamples), r.temperature = p.temperature;
    r.prioritized = s.has(kPrioritized), r.ntlb = s.has(kNtlb), r.importance = s.has(kImportance);
    r.groups = s.groups, r.top_groups = s.top_groups;
    return run(c, &OpTable::route, r);
  }

  Status plan() {
    const Shape& s = p.shape;
    Call c(device);
    const int32_t *expert = c.in(index), *at = c.in(position);
    int32_t *to = c.out(assignment), *row = c.out(row_of);
    if (slots) return run(c, &OpTable::plan_slots, PlanSlotsArgs{expert, at, to, row, s.B, s.N, s.K, s.E, s.C});
    return run(c, &OpTable::plan_sorted,
               PlanSortedArgs{expert, at, to, c.out(ends), row, s.tokens(), s.K, s.E, rows()});
  }

  // Of slots it is what the router has made already.
  void check_plan(const std::string& name) {
    const Indices of_router = assignment, rows_of_router = row_of;
    expect_ok(plan(), name + " plan");
    if (slots) expect(of_router == assignment && rows_of_router == row_of, name + ": the router's plan");
  }

  template <class Args>
  void give_plan(Call& c, Args& args) {
    args.assignment = c.in(assignment), args.ends = slots ? nullptr : c.in(ends), args.row_of = c.in(row_of);
    args.host_ends = host_ends ? ends.data() : nullptr;
    args.weight = c.in(weight), args.R = rows();
    args.saved = saved_columns(*device.backend, p.shape.activation, p.shape.H, compute);
  }

  template <class Args>
  void give_weights(Call& c, Args& args) {
    const auto given = [&](const std::vector<T>& bias) { return bias.empty() ? nullptr : c.in(bias); };
    args.w1 = c.in(w1), args.b1 = given(b1), args.mult_bias = given(mu), args.w2 = c.in(w2), args.b2 = given(b2);
  }

  // `change` may spoil the arguments.
  template <class Change = Unchanged>
  Status expert_ffn(Change&& change = {}) {
    const Shape& s = p.shape;
    Call c(device);
    ExpertFfnArgs f{};
    f.x = c.in(x);
    give_plan(c, f);
    give_weights(c, f);
    f.y = c.out(y), f.a = optional ? c.out(a) : nullptr, f.dtype = dtype_of<T>(), f.compute = compute;
    f.activation = s.activation, f.limit = kLimit, f.alpha = kAlpha;
    f.dropout = s.has(kDropout) ? p.dropout : 0, f.seed = p.seed, f.step = p.dropout_step;
    f.w1_packed = w1_packed, f.w2_packed = w2_packed;
    f.T = s.tokens(), f.K = s.K, f.D = s.D, f.O = s.out(), f.E = s.E, f.H = s.H;
    change(f);
    return run(c, &OpTable::expert_ffn, f);
  }

  Status expert_ffn_backward(bool with_dx = true, bool with_parameters = true) {
    const Shape& s = p.shape;
    Call c(device);
    ExpertFfnBackwardArgs g{};
    g.dy = c.in(gy), g.x = c.in(x);
    give_plan(c, g);
    give_weights(c, g);
    g.a = c.in(a);
    g.dweight = c.out(dweight), g.dx = with_dx ? c.out(dx) : nullptr;
    if (with_parameters) {
      const auto wanted = [&](std::vector<T>& gradient) { return gradient.empty() ? nullptr : c.out(gradient); };
      g.dw1 = c.out(dw1), g.db1 = wanted(db1), g.dmult_bias = wanted(dmu), g.dw2 = c.out(dw2), g.db2 = wanted(db2);
    }
    g.dtype = dtype_of<T>(), g.compute = compute, g.w1_packed = w1_packed, g.w2_packed = w2_packed;
    g.T = s.tokens(), g.K = s.K, g.D = s.D, g.O = s.out(), g.E = s.E, g.H = s.H;
    g.straight_through = !s.has(kNoStraightThrough), g.activation = s.activation;
    g.limit = kLimit, g.alpha = kAlpha;
    g.dropout = s.has(kDropout) ? p.dropout : 0, g.seed = p.seed, g.step = p.dropout_step;
    return run(c, &OpTable::expert_ffn_backward, g);
  }

  // To dx_router, or added to `sum`.
  Status route_backward(std::vector<T>* sum = nullptr) {
    const Shape& s = p.shape;
    const std::vector<T> upstream[3] = {{T(p.cb)}, {T(p.cz)}, {T(p.ct)}};
    Call c(device);
    RouteBackwardArgs g{};
    g.dweight = c.in(dweight), g.dbalance_loss = c.in(upstream[0]), g.dz_loss = c.in(upstream[1]),
    g.dtotal_loss = c.in(upstream[2]);
    g.x = c.in(x), g.w = c.in(w), g.mask = p.mask.empty() ? nullptr : c.in(p.mask);
    g.expert_index = c.in(index), g.kept = c.in(kept), g.gate = c.in(gate), g.probs = c.in(probs);
    g.logits = c.in(logits), g.lse = c.in(lse), g.density = c.in(density);
    g.second_density = s.has(kSecondLoss) ? c.in(second_density) : nullptr, g.importance = s.has(kImportance);
    g.dx = sum ? nullptr : c.out(dx_router), g.dx_sum = sum ? c.out(*sum) : nullptr;
    g.dw = c.out(dw), g.dtype = dtype_of<T>();
    g.B = s.B, g.N = s.N, g.D = s.D, g.E = s.E, g.K = s.K;
    g.eps = 1e-9, g.balance_coef = p.balance_coef, g.z_coef = p.z_coef;
    g.noisy = s.has(kNoisy), g.training = !s.has(kEvaluation), g.differentiable_topk = s.has(kSoft);
    g.gate_normalization = s.normalization(), g.score_function = s.score;
    return run(c, &OpTable::route_backward, g);
  }

  void check_sum(const std::string& name) {
    std::vector<T> sum(x), wanted(x);
    for (size_t i = 0; i < x.size(); ++i) wanted[i] += dx_router[i];
    expect_ok(route_backward(&sum), name + " route_backward, sum");
    expect_close(Values(sum.begin(), sum.end()), Values(wanted.begin(), wanted.end()), name + " sum of dx",
                 sizeof(T) == 4 ? 1e-6 : 1e-14);
  }

  void run(const std::string& name) {
    launches = 0;
    expect_ok(route(), name + " route");
    check_plan(name);
    expect_ok(expert_ffn(), name + " expert_ffn");
    const Shape& s = p.shape;
    const int64_t rounds = s.has(kNtlb) ? 3 * s.K - 1 : 0;  // count, scan and find slots for each choice
    const int64_t sorting = slots ? 0 : s.E < 256 ? 4 : 7;  // by one byte or two; slots take one launch
    const int64_t products = slots ? 0 : 2;                 // lists of pointers, or the products themselves
    const int64_t most = 8 + sorting + products + s.has(kKeptNormalized) + 2 * s.has(kPrioritized) + rounds;
    expect(launches <= most, name + ": kernels of the forward pass", double(launches), double(most));
    launches = 0;
    expect_ok(expert_ffn_backward(), name + " expert_ffn_backward");
    expect_ok(route_backward(), name + " route_backward");
    const int64_t most_back = slots ? 14 : 20 + s.E / 64;  // zeros of experts without rows too
    expect(launches <= most_back, name + ": kernels of the backward pass", double(launches), double(most_back));
    if (p.mask.empty()) check_sum(name);
  }

  std::vector<std::pair<const char*, const std::vector<T>*>> results() const {
    return {{"logits", &logits},
            {"lse", &lse},
            {"probs", &probs},
            {"gate", &gate},
            {"weight", &weight},
            {"density", &density},
            {"second density", &second_density},
            {"balance", &balance},
            {"z", &z},
            {"total", &total},
            {"y", &y},
            {"dweight", &dweight},
            {"dx", &dx},
            {"dx of the router", &dx_router},
            {"dw", &dw},
            {"dw1", &dw1},
            {"db1", &db1},
            {"dmult_bias", &dmu},
            {"dw2", &dw2},
            {"db2", &db2}};
  }
};

template <class T>
void check_equal(const Layer<T>& got, const Layer<T>& expected, const std::string& name, double limit = 0) {
  expect(got.index == expected.index, name + " expert_index");
  expect(got.kept == expected.kept, name + " kept");
  expect(got.position == expected.position, name + " position");
  const auto a = got.results(), b = expected.results();
  const Shape& s = got.p.shape;
  const double rounding = rounding_limit<T> * sum_slack(std::max({s.D, 2 * s.H, s.tokens()}));
  for (size_t i = 0; i < a.size(); ++i) {
    const bool cancels = a[i].second == &got.lse;  // a logarithm near 0 of a sum of which every term is rounded
    expect_close(*a[i].second, *b[i].second, name + " " + a[i].first,
                 limit > 0 ? limit
                 : cancels ? 10 * rounding
                           : rounding);
  }
}

}  // namespace st_moe::test

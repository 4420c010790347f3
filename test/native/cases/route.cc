// The router: every option, in small shapes whose decisions do not hang on rounding.
#include <climits>

#include "../cuda/rounding.h"
#include "../moe_reference.h"
#include "case.h"

namespace st_moe::test {
namespace {

enum Special : int {
  kMask = 1,     // some tokens are padding; with `importance` some are in between
  kDrawn = 2,    // random numbers from the generator instead of given ones
  kCollapse = 4  // every token prefers expert 1
};

struct Router {
  RouteArgs args;  // but for the numbers that all routers here have
  Values threshold;
  int special = 0;
  double spread = 2;  // of the logits
  double margin = 5e-5;
  bool biased = false, second_loss = false;
};

RouteArgs sizes(int64_t B, int64_t N, int64_t D, int64_t E, int64_t K, int64_t C) {
  return {.B = B,
          .N = N,
          .D = D,
          .E = E,
          .K = K,
          .C = C,
          .seed = 12345678901234567,
          .gumbel_step = 2,
          .second_place_step = 4,
          .router_temperature = 1.5,
          .noise_mult = 0.75,
          .eps = 1e-9,
          .balance_loss_coef = 0.5,
          .router_z_loss_coef = 0.25,
          .training = 1,
          .routing_groups = 1,
          .top_groups = 1};
}

void draw_inputs(const Router& router, uint64_t seed, Problem& p) {
  RouteArgs& a = *reinterpret_cast<RouteArgs*>(p.args);
  TestRandom random{seed * 7919 + 1};
  a.step = 1000 + seed;
  const auto normals = [&](const char* name, double scale) {
    for (double& value : p[name]) value = static_cast<float>(scale * random.normal());
  };
  normals("x", 1);
  normals("w", router.spread / std::sqrt(std::max<double>(1, static_cast<double>(a.D))));
  normals("expert_bias", 0.3);
  if (router.special & kCollapse) {
    for (int64_t t = 0; t < a.B * a.N; ++t) p["x"][t * a.D] = 4;
    for (int64_t e = 0; e < a.E; ++e) p["w"][e * a.D] = e == 1 ? 3 : -1;
  }
  const auto uniforms = [&](const char* name, uint64_t step) {
    Values& values = p[name];
    for (size_t i = 0; i < values.size(); ++i) values[i] = uniform24(philox_word(a.seed, step, i));
  };
  uniforms("uniforms", a.step), uniforms("gumbel_uniforms", a.gumbel_step);
  uniforms("second_place_uniforms", a.second_place_step);
  for (int64_t k = 0; k < a.K; ++k) p["threshold"][k] = static_cast<float>(router.threshold[k]);
  for (int64_t t = 0; t < a.B * a.N; ++t) {
    const bool padding = t / a.N == 1 || t % 5 == 2;  // all of sequence 1
    p["mask"][t] = padding ? 0 : a.importance && t % 3 == 1 ? 2 : 1;
  }
}

// Samples inputs until no decision hangs on rounding.
void clear_inputs(const Router& router, Problem& p) {
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    draw_inputs(router, seed, p);
    if (router.margin == 0) return;
    Problem trial = p;
    RouteReference reference(trial.as<RouteArgs>(), trial);
    reference.run();
    if (reference.margin() > router.margin) return;
  }
  check(false, "no clear routing found");
}

// Rounding that adds up along the GEMM, and over the tokens of a gradient.
double slack(const RouteArgs& a) {
  return sum_slack(std::max({a.D, a.B * a.N, int64_t{64}}));
}

Case& add_forward(Table& table, const std::string& name, const Router& router, DType dtype) {
  RouteArgs args = router.args;
  args.dtype = dtype;
  Case& c = table.add(args).called(name).fill([=](Problem& p) { clear_inputs(router, p); });
  if (router.special & kDrawn) c.without("uniforms").without("gumbel_uniforms").without("second_place_uniforms");
  if (!(router.special & kMask)) c.without("mask");
  if (!router.biased) c.without("expert_bias");
  if (!router.second_loss) c.without("second_density");
  const int64_t sorting = 2 * args.batch_prioritized + (args.ntlb ? 3 * args.K - 1 : 0);
  c.launches(6 + sorting + (args.gate_normalization == GateNormalization::kept));
  return c.tolerance(8 * slack(args), 4 * slack(args)).loose("lse", 10).on_threads({1, 2, 3, 7, 64});
}

Case& add_gradient(Table& table, const Case& forward, bool adds) {
  const double rounding = slack(forward.empty.as<RouteArgs>());
  Case& c = table.add_backward(forward, RouteBackwardArgs{});
  c.label = forward.label;
  c.fill([](Problem& p) { p["dbalance_loss"] = {0.7}, p["dz_loss"] = {-0.4}, p["dtotal_loss"] = {1.3}; });
  return c.without(adds ? "dx" : "dx_sum")
      .tolerance(33 * rounding, 4 * rounding)
      .steps(2e-6, 2e-7)
      .launches(8)
      .on_threads({1, 2, 3, 7, 64});
}

const std::vector<std::string> kResults = {"expert_index", "kept",    "position",      "gate",  "weight",
                                           "balance_loss", "z_loss",  "total_loss",    "probs", "logits",
                                           "lse",          "density", "second_density"};

// The router, with and without the plan of slots, and its gradients.
void add_router(Table& table, const std::string& name, const Router& router, DType dtype) {
  const bool clear = router.margin > 0;
  const Case forward = add_forward(table, name, router, dtype);
  if (dtype == DType::f32) {
    Case& part = add_forward(table, name, router, dtype).without("assignment").without("row_of").on_threads({1});
    part.same_as(forward, kResults);
  }
  for (const bool adds : {false, true}) {
    if (adds && ((router.special & kMask) || (dtype == DType::f64 && clear))) continue;
    Case& c = add_gradient(table, forward, adds);
    if (!clear) c.without_differences();
  }
}

template <class Change>
Router with(Router router, Change&& change) {
  change(router);
  return router;
}

std::vector<std::pair<std::string, Router>> routers() {
  constexpr auto kept = GateNormalization::kept, none = GateNormalization::none;
  constexpr auto assigned = BalanceDensity::assigned;
  std::vector<std::pair<std::string, Router>> all;
  const auto add = [&](const char* name, const RouteArgs& args, const Values& threshold, auto&& change) {
    all.push_back({name, with({args, threshold}, [&](Router& r) { change(r, r.args); })});
  };
  using A = RouteArgs;
  const auto plain = [](Router&, A&) {};
  const RouteArgs small = sizes(2, 9, 6, 4, 2, 4);
  const Values two = {0, 0.2}, three = {0, 0.3, 0.2};
  add("small", small, {0, 0.3}, plain);
  add("top-1", sizes(2, 11, 7, 5, 1, 4), {0}, plain);
  add("all experts", sizes(2, 8, 5, 3, 3, 8), {0, 0.2, 0.2}, plain);
  add("two tokens", sizes(3, 2, 8, 4, 2, 4), two, plain);
  add("one token", sizes(1, 1, 8, 4, 2, 4), two, plain);
  add("one expert", sizes(1, 6, 4, 1, 1, 4), {0}, plain);
  add("130 experts", sizes(1, 20, 6, 130, 2, 4), two, [](Router& r, A&) { r.spread = 4; });
  add("thresholds", sizes(2, 10, 6, 5, 3, 5), {0, 0, 1e6}, plain);
  add("thresholds of each", sizes(2, 10, 6, 5, 3, 5), {0, 0.5, 0.1}, plain);
  add("capacity beyond tokens", sizes(2, 5, 6, 4, 2, 9), two, plain);
  add("no capacity", sizes(2, 5, 6, 4, 2, 0), two, plain);
  add("masked", sizes(3, 9, 6, 4, 2, 3), two, [](Router& r, A&) { r.special = kMask; });
  add("masked, assigned, noisy", sizes(3, 9, 6, 4, 2, 3), two,
      [](Router& r, A& a) { r.special = kMask, a.noise_gates = 1, a.balance_density = assigned; });
  add("noisy", small, two, [](Router&, A& a) { a.noise_gates = 1; });
  add("noisy, drawn", sizes(2, 131, 4, 3, 2, 60), two, [](Router& r, A& a) { r.special = kDrawn, a.noise_gates = 1; });
  add("differentiable top-k", sizes(2, 9, 6, 8, 2, 4), two, [](Router&, A& a) { a.differentiable_topk = 1; });
  add("differentiable top-k, noisy", sizes(1, 12, 6, 12, 3, 4), {0, 0.2, 0.2},
      [](Router& r, A& a) { a.differentiable_topk = a.noise_gates = 1, r.spread = 1; });
  add("differentiable top-k, 40 experts", sizes(1, 9, 6, 40, 3, 4), {0, 0.2, 0.2},
      [](Router& r, A& a) { a.differentiable_topk = 1, r.spread = 3; });
  add("saturated top-k", sizes(1, 9, 6, 2, 2, 4), two, [](Router&, A& a) { a.differentiable_topk = 1; });
  add("evaluation", small, two, [](Router&, A& a) { a.training = 0; });
  add("collapse", sizes(2, 12, 6, 4, 2, 4), two, [](Router& r, A&) { r.special = kCollapse; });
  add("collapse, assigned", sizes(2, 12, 6, 4, 2, 4), two,
      [](Router& r, A& a) { r.special = kCollapse, a.balance_density = assigned; });
  add("gates not normalised", sizes(2, 10, 6, 5, 3, 4), three, [](Router&, A& a) { a.gate_normalization = none; });
  add("gates not normalised, masked, soft", sizes(3, 9, 6, 6, 2, 4), two,
      [](Router& r, A& a) { r.special = kMask, a.gate_normalization = none, a.differentiable_topk = 1; });
  add("kept gates normalised", sizes(2, 12, 6, 4, 3, 4), three, [](Router&, A& a) { a.gate_normalization = kept; });
  add("kept gates normalised, masked, soft", sizes(3, 9, 6, 6, 2, 4), two,
      [](Router& r, A& a) { r.special = kMask, a.gate_normalization = kept, a.differentiable_topk = 1; });
  add("second expert always", small, {0, 1e6}, [](Router&, A& a) { a.second_policy = SecondPolicy::all; });
  add("second expert never", small, {0, 0}, [](Router&, A& a) { a.second_policy = SecondPolicy::none; });
  add("second expert by threshold", sizes(2, 9, 6, 4, 3, 4), {0, 0.3, 0.1},
      [](Router&, A& a) { a.second_policy = SecondPolicy::threshold, a.gate_normalization = kept; });
  add("prioritized", sizes(2, 12, 6, 4, 2, 4), {0, 0.3}, [](Router&, A& a) { a.batch_prioritized = 1; });
  add("prioritized, masked, kept gates normalised", sizes(3, 70, 6, 4, 2, 9), two,
      [](Router& r, A& a) { r.special = kMask, a.batch_prioritized = 1, a.gate_normalization = kept; });
  add("prioritized top-1, not normalised", sizes(2, 40, 6, 4, 1, 4), {0},
      [](Router&, A& a) { a.batch_prioritized = 1, a.gate_normalization = none; });
  add("prioritized top-1", sizes(2, 40, 6, 4, 1, 4), {0}, [](Router&, A& a) { a.batch_prioritized = 1; });
  add("prioritized, sampled, soft", sizes(2, 20, 6, 5, 3, 4), three, [](Router& r, A& a) {
    r.special = kDrawn, a.batch_prioritized = a.sample_experts = 1, a.gate_normalization = kept;
  });
  add("prioritized, soft, noisy", sizes(2, 20, 6, 5, 3, 4), three,
      [](Router&, A& a) { a.batch_prioritized = a.differentiable_topk = a.noise_gates = 1; });
  const auto ntlb = [](A& a) { a.ntlb = 1, a.second_policy = SecondPolicy::all, a.gate_normalization = none; };
  add("no token left behind", sizes(2, 40, 6, 5, 3, 4), {0, 0, 0}, [=](Router&, A& a) { ntlb(a); });
  add("no token left behind, masked, prioritized", sizes(3, 40, 6, 5, 4, 4), {0, 0, 0, 0},
      [=](Router& r, A& a) { ntlb(a), r.special = kMask, a.batch_prioritized = 1; });
  const auto importance = [](Router& r, A& a) { r.special = kMask, a.importance = 1; };
  add("importance", sizes(3, 20, 6, 4, 2, 4), {0, 0.3},
      [=](Router& r, A& a) { importance(r, a), a.balance_density = assigned; });
  add("importance, three choices, soft", sizes(3, 20, 6, 5, 3, 4), three,
      [=](Router& r, A& a) { importance(r, a), a.differentiable_topk = 1; });
  add("importance, kept gates normalised, prioritized", sizes(3, 20, 6, 5, 3, 4), three,
      [=](Router& r, A& a) { importance(r, a), a.gate_normalization = kept, a.batch_prioritized = 1; });
  add("importance, top-1", sizes(3, 20, 6, 5, 1, 4), {0},
      [=](Router& r, A& a) { importance(r, a), a.gate_normalization = none; });
  add("importance, no token left behind", sizes(3, 20, 6, 5, 3, 4), {0, 0, 0},
      [=](Router& r, A& a) { importance(r, a), ntlb(a); });
  add("loss of second places", sizes(2, 20, 6, 4, 2, 4), {0, 0.3}, [](Router& r, A&) { r.second_loss = true; });
  add("loss of second places, importance", sizes(3, 20, 6, 70, 3, 4), {0, 0.3, 0.3},
      [=](Router& r, A& a) { importance(r, a), a.balance_density = assigned, r.second_loss = true, r.spread = 4; });
  add("sampled", sizes(2, 20, 6, 40, 2, 4), {0, 0.3}, [](Router& r, A& a) { a.sample_experts = 1, r.spread = 4; });
  add("sampled top-1, drawn", sizes(2, 20, 6, 4, 1, 4), {0},
      [](Router& r, A& a) { a.sample_experts = 1, r.special = kDrawn, a.gate_normalization = none; });
  add("second place", sizes(2, 20, 6, 40, 2, 4), {0, 0.3},
      [](Router& r, A& a) { a.second_place_prob = 0.5, a.second_place_temperature = -1, r.spread = 4; });
  add("second place, sampled, drawn", sizes(2, 20, 6, 5, 2, 4), {0, 0.3},
      [](Router& r, A& a) { a.second_place_prob = 0.5, a.second_place_temperature = 0.75, r.special = kDrawn; });
  add("second place, top-1, masked", sizes(3, 20, 6, 5, 1, 4), {0}, [](Router& r, A& a) {
    a.second_place_prob = 0.5, a.second_place_temperature = -1, r.special = kMask, a.gate_normalization = none;
  });
  constexpr auto sigmoid = ScoreFunction::sigmoid;
  add("sigmoid", sizes(2, 9, 6, 5, 3, 4), three, [](Router&, A& a) { a.score_function = sigmoid; });
  add("sigmoid, biased choice, masked", sizes(3, 9, 6, 5, 3, 4), three, [](Router& r, A& a) {
    a.score_function = sigmoid, r.biased = true, r.special = kMask, a.gate_normalization = none;
  });
  add("sigmoid, top groups, biased choice", sizes(2, 9, 6, 12, 4, 4), {0, 0.1, 0.1, 0.1}, [](Router& r, A& a) {
    a.score_function = sigmoid, r.biased = true, a.routing_groups = 4, a.top_groups = 2,
    a.second_policy = SecondPolicy::all;
  });
  add("sigmoid after top-k", sizes(2, 9, 6, 5, 2, 4), two,
      [](Router&, A& a) { a.score_function = ScoreFunction::sigmoid_after_topk, a.gate_normalization = none; });
  add("softmax after top-k, biased choice", sizes(2, 9, 6, 5, 2, 4), two, [](Router& r, A& a) {
    a.score_function = ScoreFunction::softmax_after_topk, r.biased = true, a.gate_normalization = kept;
  });
  add("top groups of one expert, noisy", sizes(2, 9, 6, 6, 2, 4), two,
      [](Router&, A& a) { a.routing_groups = 6, a.top_groups = 3, a.noise_gates = 1; });
  add("top groups of 40 experts", sizes(1, 9, 6, 80, 3, 4), {0, 0.2, 0.1},
      [](Router& r, A& a) { a.routing_groups = 2, r.spread = 3; });
  for (const auto& [B, N] : {std::pair<int64_t, int64_t>{0, 5}, {3, 0}})
    add("without tokens", sizes(B, N, 6, 4, 2, 4), {0, 0.3}, plain);
  return all;
}

// Where inputs whose decisions are clear in f32 cannot be found: f64 alone.
void add_large(Table& table) {
  const struct {
    const char* name;
    RouteArgs args;
    bool soft = false;
  } all[] = {{"1101 experts, whose row blocks have several z", sizes(1, 40, 6, 1101, 2, 4)},
             {"top-40", sizes(2, 150, 4, 45, 40, 90)},  // tiles of 64 tokens
             {"all of 70 experts", sizes(1, 300, 4, 70, 70, 200)},
             {"all of 1024 experts", sizes(1, 3, 4, 1024, 1024, 2)},
             {"13 experts, rows of several rounds of a warp", sizes(2, 21, 300, 13, 2, 5)},
             {"the same, not aligned", sizes(2, 21, 301, 13, 2, 5)},
             {"700 tokens", sizes(2, 700, 16, 2, 2, 600)},
             {"several tiles", sizes(2, 203, 5, 6, 2, 33)},
             {"all of 33 experts, differentiable", sizes(2, 7, 4, 33, 33, 5), true}};
  for (const auto& [name, args, soft] : all) {
    if (small() && args.B * args.N * args.E > 5000) continue;
    Router router{args, Values(args.K, 0.01), 0, 2, 0};
    router.args.differentiable_topk = router.args.noise_gates = soft;
    add_router(table, name, router, DType::f64);
  }
}

// Random shapes and options.
void add_random(Table& table, int rounds) {
  TestRandom random{7};
  const auto draw = [&](int64_t low, int64_t high) { return low + random.below(high - low + 1); };
  for (int round = 0; round < rounds; ++round) {
    const int64_t E = draw(1, 20);
    Router r{
        sizes(draw(1, 3), draw(1, 80), draw(1, 20), E, draw(1, std::min<int64_t>(E, 4)), draw(1, 20)), {}, 0, 2, 0};
    RouteArgs& a = r.args;
    r.threshold.assign(a.K, static_cast<double>(draw(0, 9)) / 10);
    for (int32_t* flag : {&a.noise_gates, &a.differentiable_topk}) *flag = draw(0, 2) == 0;
    a.balance_density = draw(0, 2) == 0 ? BalanceDensity::assigned : BalanceDensity::kept;
    a.training = draw(0, 2) != 0;
    for (const int special : {kMask, kDrawn, kCollapse})
      if (draw(0, 2) == 0) r.special |= special;
    const int64_t groups = draw(1, 4);
    r.biased = draw(0, 2) == 0;
    if (E % groups == 0) a.routing_groups = groups, a.top_groups = draw((a.K * groups + E - 1) / E, groups);
    if (!a.noise_gates && !a.differentiable_topk)
      a.score_function = static_cast<ScoreFunction>(draw(0, kScoreFunctionCount - 1));
    a.second_policy = static_cast<SecondPolicy>(draw(0, kSecondPolicyCount - 1));
    a.gate_normalization = static_cast<GateNormalization>(draw(0, kGateNormalizationCount - 1));
    if (a.gate_normalization != GateNormalization::topk)
      // The gradient of the logits is s (ds − <s, ds>), which cancels if one probability is nearly 1.
      r.special &= ~kCollapse, r.spread = 0.5;
    add_router(table, "random " + std::to_string(round), r, DType::f64);
  }
}

// A token with a NaN has the first experts, spoils the losses and no other token; as padding it spoils nothing.
void add_special_values(Table& table) {
  const Router small{sizes(2, 9, 6, 4, 2, 4), {0, 0.3}};
  const auto spoil = [](Problem& p) { p["x"][3 * 6 + 1] = NAN; };
  const auto hide = [](Problem& p) { std::fill(p["mask"].begin(), p["mask"].end(), 1), p["mask"][3] = 0; };
  for (DType dtype : reals()) {
    add_gradient(table, Case(add_forward(table, "small", small, dtype)), true);
    const Case nan = add_forward(table, "NaN token", small, dtype).fill(spoil);
    add_gradient(table, nan, false);
    Router with_mask = small;
    with_mask.special = kMask;
    const Case padded = add_forward(table, "masked NaN token", with_mask, dtype).fill(spoil).fill(hide);
    add_gradient(table, padded, false).verify = [](Problem& got, const char* name) {
      for (const char* tensor : {"dx", "dw"})
        for (double value : got[tensor]) check(!std::isnan(value), "%s: %s has a NaN", name, tensor);
    };
    Router ties{sizes(2, 9, 6, 4, 3, 4), {0, 0, 0}, 0, 2, 0};
    add_forward(table, "ties", ties, dtype).fill([](Problem& p) { std::fill(p["w"].begin(), p["w"].end(), 0); });
  }
  // On the CPU only the binding makes sure of indices.
  for (const double wrong : {-1.0, 4.0, double(INT_MAX), double(INT_MIN)}) {
    const Case forward = add_forward(table, "small", small, DType::f32);
    add_gradient(table, forward, false)
        .spoil([=](Problem& p) { p["expert_index"][0] = wrong; })
        .device_only()
        .fails(ErrorCode::option, "expert_index", true);
  }
}

}  // namespace

void route(Table& table) {
  table.loop<RouteArgs>([](const RouteArgs& a, Problem& p) { RouteReference(a, p).run(); });
  for (const auto& [name, router] : routers())
    for (DType dtype : reals()) add_router(table, name, router, dtype);
  add_large(table), add_random(table, small() ? 3 : 10), add_special_values(table);
}

}  // namespace st_moe::test

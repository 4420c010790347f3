#include <algorithm>
#include <array>
#include <climits>
#include <numeric>

#include "case.h"
#include "core/router_statistics.h"

namespace st_moe::test {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

// ---- plans: indices out of range are dropped ------------------------------------------------------------------

void plan_slots_loop(const PlanSlotsArgs& a, Problem& p) {
  std::fill(p["assignment"].begin(), p["assignment"].end(), -1);
  for (int64_t i = 0; i < a.B * a.N * a.K; ++i) {
    const double e = p["expert_index"][at(i)], position = p["position"][at(i)];
    const bool dispatched = position >= 0 && position < double(a.C) && e >= 0 && e < double(a.E);
    const double slot = dispatched ? (e * double(a.B) + double(i / (a.N * a.K))) * double(a.C) + position : -1;
    p["row_of"][at(i)] = slot;
    if (dispatched) p["assignment"][static_cast<size_t>(slot)] = double(i);
  }
}

void plan_sorted_loop(const PlanSortedArgs& a, Problem& p) {
  std::fill(p["assignment"].begin(), p["assignment"].end(), -1);
  std::fill(p["row_of"].begin(), p["row_of"].end(), -1);
  int64_t rows = 0;
  for (int64_t e = 0; e < a.E; ++e) {
    for (int64_t i = 0; i < a.T * a.K; ++i) {
      if (p["position"][at(i)] < 0 || p["expert_index"][at(i)] != double(e)) continue;
      if (rows == a.R) continue;
      p["row_of"][at(i)] = double(rows);
      p["assignment"][at(rows++)] = double(i);
    }
    p["ends"][at(e)] = double(rows);
  }
}

// Distinct experts of each token, and the slots in order; about a third is dropped.
Fill routed(int64_t N, int64_t K, int64_t E, int64_t C) {
  return [=](Problem& p) {
    std::vector<int64_t> used(at(E));
    for (int64_t i = 0; i < static_cast<int64_t>(p["position"].size()); ++i) {
      if (i % (N * K) == 0) std::fill(used.begin(), used.end(), 0);
      const int64_t e = (i / K * 7 + i % K) % E;
      p["expert_index"][at(i)] = double(e);
      p["position"][at(i)] = p.random.below(3) > 0 && used[at(e)] < C ? double(used[at(e)]++) : -1;
    }
  };
}

// ---- what dispatch and combine read: some rows are empty, some assignments are dropped -------------------------

void dispatch_loop(const DispatchArgs& a, Problem& p) {
  for (int64_t r = 0; r < a.R; ++r) {
    const double assignment = p["assignment"][at(r)];
    const bool full = assignment >= 0 && assignment < double(a.T * a.K);
    for (int64_t d = 0; d < a.D; ++d)
      p["y"][at(r * a.D + d)] = full ? p["x"][at(static_cast<int64_t>(assignment) / a.K * a.D + d)] : 0;
  }
}

bool is_row(double row, int64_t R) {
  return row >= 0 && row < double(R);
}

void dispatch_backward_loop(const DispatchBackwardArgs& a, Problem& p) {
  for (int64_t i = 0; i < a.T * a.K; ++i) {
    const double row = p["row_of"][at(i)];
    for (int64_t d = 0; is_row(row, a.R) && d < a.D; ++d) {
      const double dy = p["dy"][at(static_cast<int64_t>(row) * a.D + d)];
      p["dx"][at(i / a.K * a.D + d)] += dy;
      if (p.has("dweight")) p["dweight"][at(i)] += p["x"][at(i / a.K * a.D + d)] * dy;
    }
  }
}

void combine_loop(const CombineArgs& a, Problem& p) {
  for (int64_t i = 0; i < a.T * a.K; ++i) {
    const double row = p["row_of"][at(i)];
    for (int64_t d = 0; is_row(row, a.R) && d < a.D; ++d)
      p["y"][at(i / a.K * a.D + d)] += p["weight"][at(i)] * p["x"][at(static_cast<int64_t>(row) * a.D + d)];
  }
}

// Every fourth assignment is dropped; the others have rows of their own, so some rows are empty.
Fill planned(int64_t R) {
  return [R](Problem& p) {
    const auto row_of = [&](int64_t i) { return i % 4 == 1 || i >= R ? -1 : R - 1 - i; };
    if (p.has("row_of"))
      for (size_t i = 0; i < p["row_of"].size(); ++i) p["row_of"][i] = double(row_of(static_cast<int64_t>(i)));
    if (!p.has("assignment")) return;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t i = R - 1 - r;
      const bool full = i % 4 != 1 && (!p.has("row_of") || at(i) < p["row_of"].size());
      p["assignment"][at(r)] = full ? double(i) : -1;
    }
  };
}

// ---- expert choice ---------------------------------------------------------------------------------------------

void expert_choice_loop(const ExpertChoiceArgs& a, Problem& p) {
  const std::vector<double>&x = p["x"], &w = p["w"];
  std::vector<double>&s = p["gate"], &kept = p["kept"], &position = p["position"], &weight = p["weight"];
  const auto masked = [&](int64_t t) { return p.has("mask") && p["mask"][at(t)] == 0; };
  std::fill(s.begin(), s.end(), 0), std::fill(kept.begin(), kept.end(), 0), std::fill(weight.begin(), weight.end(), 0);
  std::fill(position.begin(), position.end(), -1);
  double z = 0, balance = 0;
  int64_t tokens = 0;
  for (int64_t t = 0; t < a.B * a.N; ++t) {
    double sum = 0;
    for (int64_t e = 0; e < a.E; ++e) {
      double& l = p["logits"][at(t * a.E + e)] = 0;
      for (int64_t d = 0; d < a.D; ++d) l += x[at(t * a.D + d)] * w[at(e * a.D + d)];
      sum += std::exp(l);
      p["expert_index"][at(t * a.E + e)] = double(e);
    }
    p["lse"][at(t)] = std::log(sum);
    if (masked(t)) continue;
    ++tokens, z += std::log(sum) * std::log(sum);
    for (int64_t e = 0; e < a.E; ++e)
      s[at(t * a.E + e)] = std::exp(p["logits"][at(t * a.E + e)]) / (a.over_experts ? sum : 1);
  }
  for (int64_t b = 0; b < a.B; ++b) {
    std::vector<int64_t> real;
    for (int64_t t = b * a.N; t < (b + 1) * a.N; ++t)
      if (!masked(t)) real.push_back(t);
    for (int64_t e = 0; e < a.E; ++e) {
      double sum = 0;
      for (int64_t t : real) sum += s[at(t * a.E + e)];
      for (int64_t t : real) s[at(t * a.E + e)] /= a.over_experts ? 1 : sum;
      std::vector<int64_t> order = real;
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t i, int64_t j) { return s[at(i * a.E + e)] > s[at(j * a.E + e)]; });
      for (size_t c = 0; c < order.size() && c < at(a.C); ++c) {
        kept[at(order[c] * a.E + e)] = 1;
        position[at(order[c] * a.E + e)] = double(c);
      }
    }
    for (int64_t t : real) {
      double mean = 0, taken = 0;
      for (int64_t e = 0; e < a.E; ++e) mean += s[at(t * a.E + e)] / double(a.E), taken += kept[at(t * a.E + e)];
      for (int64_t e = 0; e < a.E; ++e)
        if (kept[at(t * a.E + e)]) weight[at(t * a.E + e)] = s[at(t * a.E + e)] / (a.over_experts ? 1 : taken);
      balance += mean * mean * double(real.size()) / double(a.B);
    }
  }
  if (a.over_experts || !a.training) balance = 0;
  z = a.training && tokens > 0 ? z / double(tokens) : 0;
  p["balance_loss"] = {balance}, p["z_loss"] = {z},
  p["total_loss"] = {a.balance_loss_coef * balance + a.router_z_loss_coef * z};
}

// The selection stays fixed; test/autograd/gradcheck.test.ts compares with differences.
void expert_choice_backward_loop(const ExpertChoiceBackwardArgs& a, Problem& p) {
  const std::vector<double>&s = p["gate"], &kept = p["kept"], &x = p["x"], &w = p["w"];
  const auto masked = [&](int64_t t) { return p.has("mask") && p["mask"][at(t)] == 0; };
  double tokens = 0;
  std::vector<double> real(at(a.B)), ds(s.size()), mean(at(a.B * a.E));
  for (int64_t t = 0; t < a.B * a.N; ++t) tokens += !masked(t), real[at(t / a.N)] += !masked(t);
  const double upstream = p["dbalance_loss"][0] + a.balance_loss_coef * p["dtotal_loss"][0];
  for (int64_t i = 0; i < a.B * a.N * a.E; ++i) {
    const int64_t t = i / a.E, b = t / a.N;
    if (masked(t)) continue;
    double taken = 0, sum = 0;
    for (int64_t e = t * a.E; e < (t + 1) * a.E; ++e) taken += kept[at(e)], sum += s[at(e)];
    if (kept[at(i)]) ds[at(i)] = p["dweight"][at(i)] / (a.over_experts ? 1 : taken);
    if (a.training && !a.over_experts)
      ds[at(i)] += upstream * 2 * real[at(b)] * sum / double(a.E) / double(a.E) / double(a.B);
  }
  for (int64_t i = 0; i < a.B * a.N * a.E; ++i) {
    const int64_t t = i / a.E, b = t / a.N, e = i % a.E;
    if (masked(t)) continue;
    double inner = 0;  // <s, ds> over what the softmax is over
    for (int64_t j = 0; j < (a.over_experts ? a.E : a.N); ++j) {
      const size_t other = at(a.over_experts ? t * a.E + j : (b * a.N + j) * a.E + e);
      inner += s[other] * ds[other];
    }
    double dl = s[at(i)] * (ds[at(i)] - inner);
    if (a.training)
      dl += (p["dz_loss"][0] + a.router_z_loss_coef * p["dtotal_loss"][0]) * 2 / tokens * p["lse"][at(t)] *
            std::exp(p["logits"][at(i)] - p["lse"][at(t)]);
    for (int64_t d = 0; d < a.D; ++d) {
      p[p.has("dx_sum") ? "dx_sum" : "dx"][at(t * a.D + d)] += dl * w[at(e * a.D + d)];
      p["dw"][at(e * a.D + d)] += dl * x[at(t * a.D + d)];
    }
  }
}

void mask_some(Problem& p) {
  for (size_t t = 0; p.has("mask") && t < p["mask"].size(); ++t) p["mask"][t] = t % 5 != 2;
}

// ---- what routers are watched by -------------------------------------------------------------------------------

void router_statistics_loop(const RouterStatisticsArgs& a, Problem& p) {
  const std::vector<double>&gate = p["gate"], &logits = p["logits"];
  std::vector<double>& sums = p["statistics"];
  std::fill(sums.begin(), sums.end(), 0);
  sums[kForwards] = 1, sums[kSlots] = double(a.B * a.E * a.C);
  for (int64_t t = 0; t < a.B * a.N; ++t) {
    if (p.has("mask") && p["mask"][at(t)] == 0) continue;
    int64_t top = 0, dispatched = 0;
    for (int64_t k = 0; k < a.K; ++k) {
      const size_t i = at(t * a.K + k);
      if (gate[i] > gate[at(t * a.K + top)]) top = k;
      if (p["kept"][i] == 0) continue;
      ++dispatched, ++sums[kRouterSums + at(int64_t(p["expert_index"][i]))], ++sums[kRouterSums + at(2 * a.E + k)];
    }
    ++sums[kRouterSums + at(a.E + int64_t(p["expert_index"][at(t * a.K + top)]))];
    ++sums[kTokens], sums[kDropped] += dispatched == 0;
    if (!p.has("logits")) continue;
    double largest = -INFINITY, total = 0, squares = 0;
    for (int64_t e = t * a.E; e < (t + 1) * a.E; ++e) largest = std::fmax(largest, logits[at(e)]);
    for (int64_t e = t * a.E; e < (t + 1) * a.E; ++e)
      total += std::exp(logits[at(e)] - largest), squares += logits[at(e)] * logits[at(e)];
    for (int64_t e = t * a.E; e < (t + 1) * a.E; ++e) {
      const double s = std::exp(logits[at(e)] - largest) / total;
      if (s > 0) sums[kEntropy] -= s * std::log(s);
    }
    sums[kConfidence] += 1 / total, sums[kLogitNorm] += std::sqrt(squares);
  }
}

void add_statistics(Table& table) {
  table.loop(router_statistics_loop);
  for (DType dtype : reals())
    for (const auto& [B, N, K, E, C] : {std::array<int64_t, 5>{2, 9, 2, 4, 4},
                                        {1, 1, 1, 1, 1},
                                        {3, 150, 3, 19, 7},
                                        {1, 1000, 1, 8, 0},
                                        {0, 4, 2, 3, 4},
                                        {2, 0, 2, 3, 4},
                                        {1, 300, 40, 130, 20}}) {
      const RouterStatisticsArgs args{
          .dtype = dtype, .B = B, .N = N, .K = K, .E = E, .C = C, .S = router_statistics_size(E)};
      const auto route = [K = K, E = E](Problem& p) {
        for (size_t i = 0; i < p["kept"].size(); ++i) {
          p["expert_index"][i] = double((int64_t(i) / K * 7 + int64_t(i) % K) % E);
          p["kept"][i] = double(p.random.below(3) == 0);
        }
        for (double& l : p["logits"]) l *= 3;
      };
      table.add(args).fill(route).fill(mask_some);
      table.add(args).fill(route).without("mask");
      table.add(args).fill(route).without("mask").without("logits").same_bits();
    }
  for (const double wrong : {-1.0, 2.0, double(INT_MAX)})
    table.add(RouterStatisticsArgs{.dtype = DType::f32, .B = 1, .N = 3, .K = 2, .E = 2, .C = 4, .S = 13})
        .without("mask")
        .fill([=](Problem& p) { p["expert_index"][3] = wrong; })
        .fails(ErrorCode::option, "expert_index must be in [0, 2)", true);
}

void add_plans(Table& table) {
  table.loop(plan_slots_loop), table.loop(plan_sorted_loop);
  for (const auto& [B, N, K, E, C] : {std::array<int64_t, 5>{2, 9, 2, 4, 4},
                                      {1, 1, 1, 1, 1},
                                      {3, 50, 3, 19, 7},
                                      {2, 5, 2, 3, 0},
                                      {0, 4, 2, 3, 4},
                                      {2, 0, 2, 3, 4},
                                      {1, 300, 8, 130, 20}}) {
    table.add(PlanSlotsArgs{.B = B, .N = N, .K = K, .E = E, .C = C}).fill(routed(N, K, E, C));
    table.add(PlanSortedArgs{.T = B * N, .K = K, .E = E, .R = B * N * K}).fill(routed(N, K, E, C));
  }
  const PlanSlotsArgs slots{.B = 1, .N = 3, .K = 2, .E = 2, .C = 4};
  const PlanSortedArgs sorted{.T = 3, .K = 2, .E = 2, .R = 6};
  table.add(slots)
      .fill([](Problem& p) { p["expert_index"] = {0, 1, 0, 1, 0, 1}, p["position"] = {1, 1, -1, 2, 3, 1}; })
      .fails(ErrorCode::option, "tokens 0 and 2 have the same slot: position 1 of expert 1");
  table.add(sorted).fill([](Problem& p) { p["position"] = {1, 1, -1, 1, 3, 3}; });
  for (const double wrong : {-1.0, 2.0, double(INT_MIN), double(INT_MAX)}) {
    const auto spoil = [=](Problem& p) { p["expert_index"][3] = wrong, p["position"] = {0, 1, 2, 3, -1, -1}; };
    table.add(slots).fill(spoil).fails(ErrorCode::option, "expert_index must be in [0, 2)");
    table.add(sorted).fill(spoil).fails(ErrorCode::option, "expert_index must be in [0, 2)");
  }
  for (const double wrong : {4.0, double(INT_MAX)})
    table.add(slots)
        .fill([=](Problem& p) { p["position"] = {0, wrong, -1, 1, 2, 3}; })
        .fails(ErrorCode::option, "position must be below the capacity 4");
  table.add(PlanSortedArgs{.T = 3, .K = 2, .E = 2, .R = 5})
      .fails(ErrorCode::option, "6 assignments are dispatched, but there is room for 5 rows");
}

void add_rows(Table& table) {
  table.loop(dispatch_loop), table.loop(dispatch_backward_loop), table.loop(combine_loop);
  for (DType dtype : reals()) {
    for (const auto& [T, K, R, D] : {std::array<int64_t, 4>{9, 2, 20, 6},
                                     {1, 1, 1, 1},
                                     {40, 3, 100, 35},
                                     {40, 3, 200, 70},
                                     {0, 2, 8, 4},
                                     {5, 2, 0, 3},
                                     {6, 2, 9, 1032},
                                     {9, 2, 20, 64},
                                     {300, 8, 2400, 33}}) {
      const Fill plan = planned(R);
      table.add(DispatchArgs{.dtype = dtype, .T = T, .R = R, .K = K, .D = D}).fill(plan).same_bits();
      table.add(DispatchBackwardArgs{.dtype = dtype, .T = T, .R = R, .K = K, .D = D}).fill(plan);
      table.add(DispatchBackwardArgs{.dtype = dtype, .T = T, .R = R, .K = K, .D = D}).fill(plan).without("dweight");
      table.add(CombineArgs{.dtype = dtype, .T = T, .R = R, .K = K, .D = D}).fill(plan);
      table.add(CombineBackwardArgs{.dtype = dtype, .T = T, .R = R, .K = K, .D = D}).fill(plan);
      table.add(CombineBackwardArgs{.dtype = dtype, .T = T, .R = R, .K = K, .D = D}).fill(plan).without("dx");
      table.add(CombineBackwardArgs{.dtype = dtype, .T = T, .R = R, .K = K, .D = D}).fill(plan).without("dweight");
    }
    for (const double wrong : {20.0, double(INT_MAX)}) {
      const auto refused = [&](auto args, const char* name, const char* text) {
        const auto spoil = [=](Problem& p) { p[name][5] = wrong; };
        table.add(args).fill(planned(20)).fill(spoil).fails(ErrorCode::option, text);
      };
      refused(DispatchArgs{.dtype = dtype, .T = 9, .R = 20, .K = 2, .D = 6}, "assignment",
              "assignment must be below 18");
      refused(DispatchBackwardArgs{.dtype = dtype, .T = 9, .R = 20, .K = 2, .D = 6}, "row_of",
              "row_of must be below 20");
      refused(CombineArgs{.dtype = dtype, .T = 9, .R = 20, .K = 2, .D = 6}, "row_of", "row_of must be below 20");
    }
  }
}

void add_expert_choice(Table& table) {
  table.loop(expert_choice_loop), table.loop(expert_choice_backward_loop);
  for (DType dtype : reals())
    for (const int32_t over_experts : {0, 1})
      for (const auto& [B, N, D, E, C] : {std::array<int64_t, 5>{2, 9, 6, 4, 3},
                                          {1, 1, 3, 1, 4},
                                          {3, 40, 5, 37, 11},
                                          {1, 300, 4, 3, 80},
                                          {2, 6, 3, 4, 0},
                                          {0, 4, 3, 2, 1},
                                          {2, 0, 3, 2, 4}})
        for (const bool masks : {false, true}) {
          const auto options = [&, B = B, N = N, D = D, E = E, C = C](auto args) {
            args.dtype = dtype, args.B = B, args.N = N, args.D = D, args.E = E;
            args.balance_loss_coef = 0.5, args.router_z_loss_coef = 0.25, args.over_experts = over_experts,
            args.training = C != 80;
            return args;
          };
          Case& f = table.add(options(ExpertChoiceArgs{.C = C})).fill(mask_some).tolerance(4, 8);
          if (!masks) f.without("mask");
          for (const bool adds : {false, true}) {
            if (adds && masks) continue;
            Case& b = table.add(options(ExpertChoiceBackwardArgs{})).fill(mask_some).tolerance(8, 16);
            b.without(adds ? "dx" : "dx_sum");
            if (!masks) b.without("mask");
            b.fill([](Problem& p) {
              for (double& taken : p["kept"]) taken = double(p.random.below(2));
            });
          }
        }
}

}  // namespace

void routing(Table& table) {
  add_plans(table), add_rows(table), add_expert_choice(table), add_statistics(table);
}

}  // namespace st_moe::test

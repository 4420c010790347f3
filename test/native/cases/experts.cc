// The experts: every activation and plan, operands in each number format, what may be left out.
#include <algorithm>
#include <climits>

#include "../cuda/rounding.h"
#include "../moe_reference.h"
#include "case.h"

namespace st_moe::test {
namespace {

// The rows of experts: C slots of each expert and sequence, dispatched assignments alone, or all tokens, without a
// plan.
enum class Rows { slots, sorted, dense };

struct Experts {
  std::string name;
  int64_t B, N, D, E, K, C, H;
  Activation activation = Activation::geglu;
  int64_t output = 0;  // O; 0: D
  bool biases = true, multiplicative = true, straight_through = true;
  double dropout = 0;
  DType stored{};  // w1 and w2

  int64_t tokens() const { return B * N; }
  int64_t rows(Rows kind) const {
    return kind == Rows::slots ? E * B * C : kind == Rows::sorted ? tokens() * K : tokens();
  }
};

void expert_ffn_loop(const ExpertFfnArgs& a, Problem& p) {
  const int64_t P = w1_rows(a.activation, a.H);
  const Values &x = p["x"], &w1 = p["w1"], &b1 = p["b1"], &mult_bias = p["mult_bias"], &w2 = p["w2"], &b2 = p["b2"];
  const Values &assignment = p["assignment"], &ends = p["ends"], &row_of = p["row_of"], &weight = p["weight"];
  const bool planned = p.has("assignment"), weighted = p.has("weight"), by_ends = p.has("ends");
  // The straight-through factor 1 + w − stop_gradient(w) of x.
  const Tensor* before = p.find("before weight");
  Values rows(a.R * a.O);
  std::vector<bool> computed(a.R);
  int64_t expert = 0;
  for (int64_t r = 0; r < a.R; ++r) {
    while (by_ends && expert < a.E && static_cast<double>(r) >= ends[expert]) ++expert;
    const int64_t e = by_ends ? expert : r / (a.R / a.E);
    const double i = planned ? assignment[r] : static_cast<double>(r);
    if (e >= a.E || i < 0 || i >= static_cast<double>(a.T * a.K)) continue;
    const int64_t at = static_cast<int64_t>(i);
    const auto of = [e](bool has, const Values& v, int64_t size) { return has ? v.data() + e * size : nullptr; };
    const ExpertReference parameters{of(true, w1, P * a.D), of(p.has("b1"), b1, P),
                                     of(p.has("mult_bias"), mult_bias, a.H), of(true, w2, a.O * a.H),
                                     of(p.has("b2"), b2, a.O)};
    const double factor = before ? 1 + weight[at] - before->numbers[at] : 1;
    reference_expert(a, parameters, x.data() + at / a.K * a.D, factor, at, rows.data() + r * a.O);
    computed[r] = true;
  }
  for (int64_t i = 0; i < a.T * a.K; ++i) {
    const double row = planned ? row_of[i] : static_cast<double>(i);
    if (row < 0 || row >= static_cast<double>(a.R) || !computed[static_cast<size_t>(row)]) continue;
    for (int64_t o = 0; o < a.O; ++o)
      p["y"][i / a.K * a.O + o] += (weighted ? weight[i] : 1) * rows[static_cast<size_t>(row) * a.O + o];
  }
}

// Distinct experts of each token; about a quarter of the assignments is dropped, and what finds no slot.
void plan(const Experts& s, Rows kind, Problem& p) {
  TestRandom random{static_cast<uint64_t>(s.tokens() * 31 + s.E)};
  const int64_t assignments = s.tokens() * s.K;
  std::vector<int64_t> expert(assignments), slot(assignments, -1), used(s.B * s.E);
  for (int64_t i = 0; i < assignments; ++i) {
    const bool taken = i % s.K > 0 && s.E >= s.K;
    expert[i] = taken ? (expert[i - 1] + 1 + random.below(std::max<int64_t>(1, s.E / s.K))) % s.E : random.below(s.E);
    for (int64_t k = i / s.K * s.K; k < i; ++k)
      if (expert[k] == expert[i]) expert[i] = (expert[i] + 1) % s.E, k = i / s.K * s.K - 1;
    int64_t& count = used[i / s.K / s.N * s.E + expert[i]];
    if (random.below(4) > 0 && count < s.C) slot[i] = count++;
    p["weight"][i] = slot[i] < 0 ? 0 : static_cast<float>(0.6 + 0.4 * random.real());
  }
  std::fill(p["assignment"].begin(), p["assignment"].end(), -1);
  int64_t rows = 0;
  const auto give_row = [&](int64_t i, int64_t row) {
    p["row_of"][i] = static_cast<double>(row);
    if (row >= 0) p["assignment"][row] = static_cast<double>(i);
  };
  if (kind == Rows::slots)
    for (int64_t i = 0; i < assignments; ++i)
      give_row(i, slot[i] < 0 ? -1 : (expert[i] * s.B + i / s.K / s.N) * s.C + slot[i]);
  for (int64_t e = 0; kind == Rows::sorted && e < s.E; ++e) {
    for (int64_t i = 0; i < assignments; ++i)
      if (expert[i] == e) give_row(i, slot[i] < 0 ? -1 : rows++);
    p["ends"][e] = static_cast<double>(rows);
  }
}

void fill(const Experts& s, Rows kind, Problem& p) {
  const auto scale = [&](const char* name, double factor, double shift = 0) {
    for (double& value : p[name]) value = static_cast<float>(shift + factor * value);
  };
  scale("w1", 1.5 / std::sqrt(static_cast<double>(s.D))), scale("b1", 0.3), scale("mult_bias", 0.3, 1);
  scale("w2", 1.5 / std::sqrt(static_cast<double>(s.H))), scale("b2", 0.3);
  if (kind != Rows::dense) return plan(s, kind, p);
  for (size_t t = 0; t < p["weight"].size(); ++t) p["weight"][t] = static_cast<float>(0.5 + std::cos(double(t)));
}

// Rounding of operands, if so many roundings add up.
double low_precision(DType compute, double roundings) {
  return roundings * (compute == DType::bf16 ? 0x1p-9 : compute == DType::f16 ? 0x1p-12 : 0x1p-17);
}

// Whether f' jumps: then rounding that changes the sign of one pre-activation changes gradients by any amount.
bool slope_jumps(Activation activation) {
  return activation == Activation::relu || activation == Activation::reglu || activation == Activation::swiglu_clamped;
}

// A factor of tolerances of 3e-7 and 1e-6.
Case& within(Case& c, const Experts& s, double cpu_factor) {
  const auto compute_of = [&] {
    for (const Field& field : c.empty.op->fields)
      if (field.role == Role::compute) return member<DType>(c.empty.args, field.offset);
    return DType::f32;
  };
  const DType compute = compute_of();
  const double slack = sum_slack(std::max({s.D, 2 * s.H, s.tokens()}));
  if (compute == c.empty.dtype()) return c.tolerance(cpu_factor * slack, 4 * slack);
  const bool jumps = slope_jumps(s.activation);
  if (jumps || compute == kBf16x3) c.cpu_only();
  const double jump = compute == DType::bf16 ? 0.07 : compute == DType::f16 ? 0.03 : 0.01;
  return c.tolerance((jumps ? jump : low_precision(compute, 12)) / 3e-7, low_precision(compute, 8) / 1e-6);
}

Case& add_forward(Table& table, const Experts& s, DType dtype, DType compute, Rows kind) {
  const bool planned = kind != Rows::dense;
  Case& c = table.add(ExpertFfnArgs{.w1_stored = s.stored,
                                    .w2_stored = s.stored,
                                    .dtype = dtype,
                                    .compute = compute,
                                    .T = s.tokens(),
                                    .K = planned ? s.K : 1,
                                    .R = s.rows(kind),
                                    .D = s.D,
                                    .O = s.output ? s.output : s.D,
                                    .E = s.E,
                                    .H = s.H,
                                    .activation = s.activation,
                                    .limit = 1.5,  // both sides of the clamps occur
                                    .alpha = 1.7,
                                    .dropout = s.dropout,
                                    .seed = 12345678901234567,
                                    .step = 5,
                                    .P = w1_rows(s.activation, s.H)});
  c.called(s.name).fill([=](Problem& p) { fill(s, kind, p); });
  if (!planned) c.without("assignment").without("row_of");
  if (!planned && s.E > 1) c.without("weight");
  if (kind != Rows::sorted) c.without("ends");
  if (!s.biases) c.without("b1").without("b2");
  if (!s.multiplicative || !is_gated(s.activation)) c.without("mult_bias");
  return within(c, s, 8).on_threads({1, 2, 3, 7, 64}).launches(kind == Rows::sorted ? 8 : 6);
}

Case& add_gradient(Table& table, const Experts& s, const Case& forward) {
  Case& c = table.add_backward(forward, ExpertFfnBackwardArgs{.straight_through = s.straight_through});
  if (s.straight_through && forward.empty.as<ExpertFfnArgs>().K > 0 && c.empty.find("weight")->present)
    c.detach("weight");
  c.on_device = forward.on_device, c.on_cpu = forward.on_cpu, c.host_copies = forward.host_copies;
  const bool sorted = c.empty.find("ends")->present;
  return within(c.called(s.name), s, 33)
      .on_threads({1, 2, 3, 7, 64})
      .steps(2e-6, 2e-7)
      .launches(sorted ? 14 + s.E / 64 : 10);
}

const std::vector<std::string> kParameterGradients = {"dw1", "db1", "dmult_bias", "dw2", "db2"};

Case& without_parameters(Case& c) {
  for (const std::string& name : kParameterGradients) c.without(name);
  return c;
}

struct Pair {
  Case forward, backward;
};

// Forward, backward, and both with what may be left out, which changes no bits of the rest.
Pair add_experts(Table& table, const Experts& s, DType dtype, DType compute, Rows kind) {
  const Case forward = add_forward(table, s, dtype, compute, kind);
  const Case backward = add_gradient(table, s, forward);
  add_forward(table, s, dtype, compute, kind).without("a").same_as(forward, {"y"}).on_threads({1});
  without_parameters(add_gradient(table, s, forward))
      .same_as(backward, {"dx", "dweight"})
      .without_differences()
      .on_threads({1});
  add_gradient(table, s, forward)
      .without("dx")
      .same_as(backward, kParameterGradients)
      .without_differences()
      .on_threads({1});
  return {forward, backward};
}

// By slots, and sorted, with numbers of rows that the device alone knows or the host as well. On the CPU only the order
// in which gradients of parameters are added up hangs on it.
void add_planned(Table& table, const Experts& s, DType dtype, DType compute) {
  const Pair slots = add_experts(table, s, dtype, compute, Rows::slots);
  const Case sorted =
      add_forward(table, s, dtype, compute, Rows::sorted).same_as(slots.forward, {"y"}, false).on_threads({1, 3});
  add_gradient(table, s, sorted).same_as(slots.backward, {"dx", "dweight"}, false).on_threads({1, 3});
  Case& host = add_forward(table, s, dtype, compute, Rows::sorted).device_only();
  host.host_copies = true;
  add_gradient(table, s, Case(host));
}

std::vector<Experts> shapes() {
  std::vector<Experts> all = {
      {"top-1", 2, 11, 7, 5, 1, 4, 6},
      {"all experts", 2, 8, 5, 3, 3, 8, 7},
      {"one token", 1, 1, 8, 4, 2, 4, 5},
      {"one expert", 1, 6, 4, 1, 1, 4, 3},
      {"130 experts", 1, 20, 6, 130, 2, 4, 2},
      {"no capacity", 2, 5, 6, 4, 2, 0, 5},
      {"no sequences", 0, 5, 6, 4, 2, 4, 5},
      {"no tokens", 3, 0, 6, 4, 2, 4, 5},
      {"dropout", 2, 9, 6, 4, 2, 4, 37, Activation::geglu, 0, true, true, true, 0.3},
      {"dropout, three choices", 3, 9, 6, 4, 3, 4, 300, Activation::geglu, 0, true, true, false, 0.3},
      {"narrow outputs", 2, 9, 9, 4, 2, 4, 5, Activation::geglu, 2},
      {"wide outputs without biases", 2, 9, 4, 4, 2, 4, 5, Activation::geglu, 19, false, false},
      {"no multiplicative bias", 2, 9, 6, 4, 2, 4, 5, Activation::geglu, 0, true, false},
      {"no biases of plain experts", 2, 9, 6, 4, 2, 4, 5, Activation::silu, 0, false},
  };
  for (int32_t i = 0; i < kActivationCount; ++i) {
    const Activation activation = static_cast<Activation>(i);
    all.push_back({kActivationNames[i], 2, 9, 6, 4, 2, 4, 5, activation});
    if (small() && i % 3 != 0) continue;
    all.push_back({kActivationNames[i], 2, 9, 6, 4, 2, 4, 261, activation, 0, true, true, false});
  }
  return all;
}

// Shapes for blocks of threads: several tiles, and accesses of 128 bits in every type.
std::vector<Experts> device_shapes() {
  std::vector<Experts> all = {{"several tiles", 2, 203, 5, 6, 2, 33, 140},
                              {"accesses of 128 bits", 2, 70, 16, 3, 2, 40, 144}};
  for (int32_t i = 1; i < kActivationCount; ++i)
    all.push_back(
        {kActivationNames[i], 2, 70, i % 2 ? 6 : 16, 3, 2, 40, i % 2 ? 140 : 144, static_cast<Activation>(i)});
  return all;
}

// w1 and w2 in fewer bits: of few and of many tokens per expert, in every `compute`.
void add_stored(Table& table) {
  Experts few{"stored weights", 1, 3, 70, 4, 2, 3, 37}, many{"stored weights", 2, 90, 24, 4, 2, 40, 130};
  for (const DType stored : {DType::bf16, DType::f16, DType::int8})
    for (Experts s : {few, many}) {
      s.stored = stored;
      for (const DType compute : {DType::f32, DType::bf16, DType::f16, kBf16x3})
        if (!small() || compute == DType::f32 || compute == stored) add_planned(table, s, DType::f32, compute);
    }
}

void add_low_precision(Table& table) {
  for (int32_t i = 0; i < kActivationCount; ++i)
    for (const DType compute : {DType::bf16, DType::f16, kBf16x3}) {
      Experts s{kActivationNames[i], 2, 70, 24, 4, 2, 40, 261, static_cast<Activation>(i)};
      if (small() && (compute == DType::f16 || i % 4 != 0)) continue;
      add_planned(table, s, DType::f32, compute);
    }
}

// Without a plan: each expert has as many tokens; or one has all of them, with weights or without.
void add_dense(Table& table) {
  const Experts equal{"dense", 4, 9, 6, 4, 2, 4, 5};
  const Experts one{"dense", 1, 70, 33, 1, 1, 70, 140}, few{"dense", 1, 5, 3, 1, 1, 5, 4};
  for (const DType dtype : reals())
    for (const Experts& s : {equal, one, few, Experts{"dense", 1, 0, 3, 1, 1, 0, 4}})
      add_experts(table, s, dtype, dtype, Rows::dense);
  for (const DType compute : {DType::bf16, DType::f16})
    for (const Experts& s : {one, Experts{"dense", 1, 3, 64, 1, 1, 3, 97}, Experts{"dense", 1, 0, 3, 1, 1, 0, 4}})
      add_experts(table, s, DType::f32, compute, Rows::dense);
}

// Indices of a plan that point outside are errors, and touch nothing.
void add_wrong_plans(Table& table) {
  for (const Rows kind : {Rows::slots, Rows::sorted}) {
    const Experts s{"wrong plan", 2, 9, 6, 4, 2, 4, 5};
    const double assignments = static_cast<double>(s.tokens() * s.K), rows = static_cast<double>(s.rows(kind));
    const auto wrong = [&](const char* name, size_t at, double value, const char* text) {
      const Fill spoil = [=](Problem& p) { p[name][at] = value; };
      const Case right = add_forward(table, s, DType::f32, DType::f32, kind);
      add_forward(table, s, DType::f32, DType::f32, kind).fill(spoil).races().fails(ErrorCode::option, text, true);
      add_gradient(table, s, right).spoil(spoil).races().fails(ErrorCode::option, text, true);
    };
    for (const double value : {assignments, double(INT_MAX)})
      wrong("assignment", 0, value, "assignment must be below 36");
    for (const double value : {rows, double(INT_MAX)}) wrong("row_of", 3, value, "row_of must be below");
    for (const double value : {-1.0, rows + 1, double(INT_MAX), double(INT_MIN)})
      if (kind == Rows::sorted) wrong("ends", 1, value, "ends must rise and be at most 36");
    // Rows that two assignments read, that one assignment has twice, or that nothing reads.
    const Fill shared = [](Problem& p) {
      p["row_of"][3] = p["row_of"][4] = 0, p["assignment"][1] = p["assignment"][0];
    };
    const Case right = add_forward(table, s, DType::f32, DType::f32, kind);
    add_forward(table, s, DType::f32, DType::f32, kind).fill(shared).races().any_values();
    add_gradient(table, s, right).spoil(shared).races().any_values();
  }
  Experts unknown{"unknown activation", 2, 9, 6, 4, 2, 4, 5};
  unknown.activation = static_cast<Activation>(kActivationCount);
  add_forward(table, unknown, DType::f32, DType::f32, Rows::slots).fails(ErrorCode::option, "activation", true);
}

void expect_no_nan(Problem& got, const char* name) {
  for (const Tensor& t : got.tensors)
    for (double value : t.numbers)
      check(t.role == Role::input || !t.present || t.opaque || !std::isnan(value), "%s: %s has a NaN", name,
            t.name.c_str());
}

// A token with a NaN spoils its own row, and only if it is dispatched; an expert without tokens spoils nothing.
void add_special_values(Table& table) {
  const Fill nan_token = [](Problem& p) { p["x"][3 * 6 + 1] = NAN; };
  const Experts few{"NaN in an expert without tokens", 1, 3, 6, 4, 1, 4, 5};
  const Fill nan_expert = [](Problem& p) {
    std::vector<bool> used(4);
    for (size_t row = 0; row < 16; ++row)
      if (p["assignment"][row] >= 0) used[row / 4] = true;
    const size_t unused = static_cast<size_t>(std::find(used.begin(), used.end(), false) - used.begin());
    for (size_t i = 0; i < 60; ++i) p["w1"][unused * 60 + i] = i % 2 ? NAN : INFINITY;
    for (size_t i = 0; i < 30; ++i) p["w2"][unused * 30 + i] = i % 2 ? NAN : INFINITY;
    std::fill_n(p["b2"].begin() + unused * 6, 6, NAN);
  };
  for (const DType dtype : reals())
    for (const Rows kind : {Rows::slots, Rows::sorted}) {
      Experts s{"NaN token", 2, 9, 6, 4, 2, 4, 5};
      add_gradient(table, s, Case(add_forward(table, s, dtype, dtype, kind).fill(nan_token)));
      if (kind == Rows::sorted) continue;
      const Case forward = add_forward(table, few, dtype, dtype, kind).fill(nan_expert);
      add_gradient(table, few, forward).verify = expect_no_nan;
    }
}

}  // namespace

void experts(Table& table) {
  table.loop(expert_ffn_loop);
  for (const DType dtype : reals()) {
    for (const Experts& s : shapes()) add_planned(table, s, dtype, dtype);
  }
  for (const Experts& s : device_shapes()) {
    const size_t from = table.cases().size();
    for (const DType dtype : reals()) add_planned(table, s, dtype, dtype);
    for (const DType compute : {DType::bf16, DType::f16})
      if (!small() || compute == DType::bf16) add_planned(table, s, DType::f32, compute);
    table.device_only_from(from);
  }
  // Experts larger than a chunk of rows and than the blocks of the sums.
  const Experts large{"large", 2, 700, 16, 2, 2, 600, 800};
  const Case forward = add_forward(table, large, DType::f32, DType::f32, Rows::sorted).cpu_only();
  if (!small()) add_gradient(table, large, forward);
  add_low_precision(table), add_stored(table), add_dense(table), add_wrong_plans(table), add_special_values(table);
}

}  // namespace st_moe::test

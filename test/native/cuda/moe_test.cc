// The ops of a mixture-of-experts layer on the CUDA backend against those of the CPU: the same routing, and values to
// rounding. With an argument, that many random layers.
#include <algorithm>
#include <array>
#include <utility>

#include "../moe_checks.h"
#include "machine.h"
#include "size.h"

namespace {

using namespace st_moe::test;
using namespace moe_reference;

Device gpu() {
  return {&machine().gpu(), machine().context, [] {
            const Counters count = counters();
            return Work{count.launches, count.synchronisations + count.copies};
          }};
}

template <class T>
void check_layer(const Problem& p, const std::string& name, DType compute = dtype_of<T>()) {
  Layer<T> expected(p, cpu(), compute), got(p, gpu(), compute), again(p, gpu(), compute);
  expected.run(name + " on the CPU");
  got.run(name);
  // What is rounded to low precision a second time may differ in its last bit where float32 does in its own; and the
  // CPU alone rounds pre-activations before the activation, and expert outputs.
  const double limit = compute == dtype_of<T>() ? 0 : low_precision_limit(compute, 8);
  check_equal(got, expected, name, limit);
  again.run(name + " again");
  const auto a = got.results(), b = again.results();
  for (size_t i = 0; i < a.size(); ++i)
    expect(bytes_of(*a[i].second) == bytes_of(*b[i].second), name + " twice: " + a[i].first);
  for (const bool host_ends : {false, true}) {
    const std::string sorted_name = name + (host_ends ? ", rows known to the host" : ", rows known to the device");
    Layer<T> sorted(p, gpu(), compute, false);
    sorted.host_ends = host_ends;
    sorted.run(sorted_name);
    check_equal(sorted, expected, sorted_name, limit);
  }
}

void check_shapes() {
  std::vector<Shape> shapes = common_shapes();
  shapes.push_back({"several tiles", 2, 203, 5, 6, 2, 33, 140, {0, 0.4f}, kMasked});
  shapes.push_back({"accesses of 128 bits", 2, 70, 16, 3, 2, 40, 144, {0, 0.3f}});
  for (int32_t i = 1; i < kActivationCount; ++i) {
    Shape shape{kActivationNames[i], 2, 70, 6, 3, 2, 40, 140, {0, 0.3f}};
    if (i % 2 == 0) shape.D = 16, shape.H = 144;  // accesses of 128 bits in every type
    shape.activation = static_cast<Activation>(i);
    shapes.push_back(shape);
  }
  for (const Shape& shape : shapes) {
    const Problem p = clear_problem(shape);
    check_layer<float>(p, std::string(shape.name) + " f32");
    const bool jumps = slope_jumps(shape.activation);
    if (!jumps) check_layer<float>(p, std::string(shape.name) + " bf16", DType::bf16);
    if (small()) continue;
    check_layer<double>(p, std::string(shape.name) + " f64");
    if (!jumps) check_layer<float>(p, std::string(shape.name) + " f16", DType::f16);
  }
}

// Keeps copies, as a parameter does.
struct Copies : PackedCopies {
  Copies() : PackedCopies{find_copy, keep_copy, list_copies} {}
  ~Copies() { clear(); }
  void clear() {
    for (const PackedCopy& copy : held) gpu().backend->release(gpu().ctx, copy.data, copy.bytes);
    held.clear();
  }
  static const void* find_copy(const PackedCopies& copies, const PackKey& key) {
    for (const PackedCopy& copy : static_cast<const Copies&>(copies).held)
      if (!copy.outdated && copy.key == key) return copy.data;
    return nullptr;
  }
  static bool keep_copy(PackedCopies& copies, const PackKey& key, void* data, size_t bytes) {
    static_cast<Copies&>(copies).held.push_back({key, data, bytes});
    return true;
  }
  static size_t list_copies(PackedCopies& copies, PackedCopy** list) {
    auto& held = static_cast<Copies&>(copies).held;
    *list = held.data();
    return held.size();
  }
  std::vector<PackedCopy> held;
};

// Packed copies are made once, change nothing, and cost the forward pass no launch.
void check_packed() {
  const Problem p = make_problem({"hidden 127", 2, 9, 67, 4, 2, 4, 127, {0, 0.3f}}, 1);
  Copies w1, w2;
  Layer<float> plain(p, gpu(), DType::bf16), packed(p, gpu(), DType::bf16);
  plain.run("without copies");
  packed.w1_packed = &w1, packed.w2_packed = &w2;
  packed.run("with copies");
  packed.run("with copies again");
  expect(w1.held.size() == 1 && w2.held.size() == 1, "one copy of each, for forward and backward");
  expect(w1.held[0].bytes == 2 * 4 * 256 * 128 && w2.held[0].bytes == 2 * 4 * 128 * 128, "bytes of the copies");
  const auto a = plain.results(), b = packed.results();
  for (size_t i = 0; i < a.size(); ++i)
    expect(bytes_of(*a[i].second) == bytes_of(*b[i].second), std::string("with copies: ") + a[i].first);
  for (float& value : packed.w1) value = -value;  // behind the back of the copies
  expect_ok(packed.expert_ffn(), "with copies of other weights");
  expect(bytes_of(packed.y) == bytes_of(plain.y), "the copies are what is multiplied");
  w1.clear(), w2.clear();
  expect_ok(packed.expert_ffn(), "without copies of changed weights");
  expect(bytes_of(packed.y) != bytes_of(plain.y), "new copies of changed weights");
}

// An optimizer writes the copy of a weight with the weight: the same as a new copy.
template <class Args>
void check_rewritten(Op<Batch<Args>> OpTable::* op, int64_t D, DType compute, Args args) {
  const std::string name = "a copy that an optimizer writes, columns " + std::to_string(D);
  const Problem p = make_problem({"rewritten", 2, 9, D, 4, 2, 4, 127, {0, 0.3f}}, 1);
  Copies w1;
  Layer<float> layer(p, gpu(), compute), fresh(p, gpu(), compute);
  layer.w1_packed = &w1;
  layer.run(name);
  const std::vector<float> before = layer.y;
  const void* copy = w1.held[0].data;
  w1.held[0].outdated = true;
  {
    Call c(gpu());
    args.p = c.out(layer.w1), args.g = c.in(layer.dw1), args.size = int64_t(layer.w1.size());
    args.dtype = DType::f32, args.step = 1, args.lr = 0.1, args.p_packed = &w1;
    std::vector<float> m(layer.w1.size()), v(layer.w1.size());
    if constexpr (std::is_same_v<Args, AdamwArgs>) args.m = c.out(m), args.v = c.out(v);
    expect_ok(c.run(op, Batch<Args>{&args, 1}), name);
  }
  expect(w1.held.size() == 1 && w1.held[0].data == copy && !w1.held[0].outdated, name);
  expect_ok(layer.expert_ffn(), name);
  fresh.w1 = layer.w1;
  fresh.run(name);
  expect(bytes_of(layer.y) == bytes_of(fresh.y) && bytes_of(layer.y) != bytes_of(before), name + ": the output");
}

void check_rewritten() {
  for (const int64_t D : {67, 68})
    for (const DType compute : {DType::bf16, DType::f16}) {
      AdamwArgs adamw{};
      adamw.beta1 = 0.9, adamw.beta2 = 0.99, adamw.eps = 1e-8;
      check_rewritten(&OpTable::adamw, D, compute, adamw);
      check_rewritten(&OpTable::sgd, D, compute, SgdArgs{});
    }
}

// Shapes for which the search for a clear problem is hopeless: f64 only.
void check_large_routing() {
  const std::vector<float> threshold(1024, 0.01f);
  const std::vector<Shape> shapes = {
      {"1101 experts, whose row blocks have several z", 1, 40, 6, 1101, 2, 4, 1, threshold},
      {"top-40", 2, 150, 4, 45, 40, 90, 1, threshold},  // tiles of 64 tokens
      {"all of 70 experts", 1, 300, 4, 70, 70, 200, 1, threshold},
      {"all of 1024 experts", 1, 3, 4, 1024, 1024, 2, 1, threshold},
      {"13 experts, rows of several rounds of a warp", 2, 21, 300, 13, 2, 5, 3, threshold},
      {"the same, not aligned", 2, 21, 301, 13, 2, 5, 3, threshold},
      {"all of 33 experts, differentiable", 2, 7, 4, 33, 33, 5, 1, threshold, kSoft | kNoisy},
  };
  for (Shape shape : shapes) {
    if (small() && shape.B * shape.N * shape.E > 5000) continue;
    shape.threshold.resize(shape.K);
    check_layer<double>(make_problem(shape, 1), std::string(shape.name) + " f64");
  }
}

// Random shapes and flags.
void check_random(int rounds) {
  std::mt19937 engine(7);
  const auto draw = [&](int low, int high) { return int64_t(std::uniform_int_distribution<int>(low, high)(engine)); };
  for (int round = 0; round < rounds; ++round) {
    Shape s{"random", draw(1, 3), draw(1, 80), draw(1, 20), draw(1, 20), 1, draw(1, 20), draw(1, 30), {}};
    s.K = draw(1, int(std::min<int64_t>(s.E, 4)));
    s.threshold.assign(s.K, float(draw(0, 9)) / 10);
    for (uint32_t flag : {kMasked, kNoisy, kSoft, kAssigned, kNoStraightThrough, kEvaluation, kCollapse, kDrawn})
      if (draw(0, 2) == 0) s.flags |= flag;
    const int64_t policy = draw(0, 3), normalization = draw(0, 2), groups = draw(1, 4);
    s.biased_choice = draw(0, 2) == 0;
    if (s.E % groups == 0) s.groups = groups, s.top_groups = draw(int((s.K * groups + s.E - 1) / s.E), int(groups));
    if (!s.has(kNoisy) && !s.has(kSoft)) s.score = ScoreFunction(draw(0, kScoreFunctionCount - 1));
    s.flags |= std::array{0u, uint32_t{kSecondAll}, uint32_t{kSecondNone}, uint32_t{kSecondThreshold}}[size_t(policy)];
    if (normalization > 0) {
      s.flags |= normalization == 1 ? kUnnormalized : kKeptNormalized;
      // The gradient of the logits is s (ds − <s, ds>), which cancels if one probability is nearly 1.
      s.flags &= ~uint32_t{kCollapse};
      s.spread = 0.5;
    }
    check_layer<double>(make_problem(s, uint32_t(round)), "random " + std::to_string(round) + " f64");
  }
}

void check_empty() {
  for (const auto& [B, N] : std::vector<std::pair<int64_t, int64_t>>{{0, 5}, {3, 0}}) {
    Shape shape{"empty", B, N, 6, 4, 2, 4, 5, {0, 0.3f}};
    const Problem p = make_problem(shape, 1);
    check_layer<float>(p, "without tokens");
  }
}

template <class T>
bool has_nan(const std::vector<T>& v) {
  return std::any_of(v.begin(), v.end(), [](T value) { return std::isnan(value); });
}

void check_nan() {
  const Shape& shape = kSmall;
  Problem p = make_problem(shape, 1);
  p.x[3 * shape.D + 1] = NAN;
  check_layer<float>(p, "NaN token");  // NaN in the same places as on the CPU
  p.mask.assign(shape.tokens(), 1);
  p.mask[3] = 0;
  Layer<float> padded(p, gpu());
  padded.run("masked NaN token");
  for (const std::vector<float>* v : {&padded.y, &padded.dx, &padded.dx_router, &padded.dw, &padded.dw1, &padded.total})
    expect(!has_nan(*v), "a masked NaN token");

  // NaN in the weights of an expert: only what its dispatched tokens touch.
  Problem spoilt = make_problem({"few", 1, 3, 6, 4, 1, 4, 5, {0}}, 2);
  int32_t unused = 0;  // an expert without tokens
  const Reference r = reference(spoilt);
  while (std::find(r.index.begin(), r.index.end(), unused) != r.index.end()) ++unused;
  for (int64_t i = 0; i < 2 * 5 * 6; ++i) spoilt.w1[unused * 60 + i] = i % 2 ? NAN : INFINITY;
  for (int64_t i = 0; i < 5 * 6; ++i) spoilt.w2[unused * 30 + i] = i % 2 ? NAN : INFINITY;
  for (int64_t i = 0; i < 6; ++i) spoilt.b2[unused * 6 + i] = NAN;
  Layer<float> layer(spoilt, gpu());
  layer.run("NaN weights of an expert without tokens");
  for (const auto& [name, v] : layer.results())
    expect(!has_nan(*v), std::string("NaN weights of an expert without tokens: ") + name);
}

// One expert and all tokens, with and without weights and what may be left out.
template <class T>
void check_dense(int64_t tokens, int64_t D, int64_t H, bool weighted, bool all, DType compute = dtype_of<T>()) {
  const std::string name = "dense" + std::string(weighted ? ", weighted" : "") + (all ? "" : ", part");
  const Problem p = make_problem({"dense", 1, tokens, D, 1, 1, tokens, H, {0}}, 3);
  std::vector<T> x = cast<T>(p.x), w1 = cast<T>(p.w1), b1 = cast<T>(p.b1), mu = cast<T>(p.mu), w2 = cast<T>(p.w2);
  std::vector<T> b2 = cast<T>(p.b2), gy = cast<T>(p.gy), weight(tokens);
  for (int64_t t = 0; t < tokens; ++t) weight[t] = T(0.5 + std::cos(double(t)));
  std::vector<T> out[2][9];
  const Device devices[2] = {cpu(), gpu()};
  for (int d = 0; d < 2; ++d) {
    const size_t sizes[9] = {
        x.size(),  size_t(tokens * saved_columns(*devices[d].backend, Activation::geglu, H, compute)),
        x.size(),  size_t(tokens),
        w1.size(), b1.size(),
        mu.size(), w2.size(),
        b2.size()};
    for (int i = 0; i < 9; ++i) out[d][i] = unset<T>(sizes[i]);
    Call c(devices[d]);
    T* pointer[9];
    for (int i = 0; i < 9; ++i) pointer[i] = c.out(out[d][i]);
    const T* weights = weighted ? c.in(weight) : nullptr;
    const T *px = c.in(x), *pw1 = c.in(w1), *pb1 = c.in(b1), *pmu = c.in(mu), *pw2 = c.in(w2), *pb2 = c.in(b2);
    ExpertFfnArgs f{};
    f.x = px, f.weight = weights, f.w1 = pw1, f.b1 = pb1, f.mult_bias = pmu, f.w2 = pw2, f.b2 = pb2;
    f.y = pointer[0], f.a = pointer[1], f.dtype = dtype_of<T>(), f.compute = compute;
    f.T = f.R = tokens, f.K = f.E = 1, f.D = f.O = D, f.H = H,
    f.saved = saved_columns(*devices[d].backend, Activation::geglu, H, compute);
    expect_ok(c.run(&OpTable::expert_ffn, f), name);
    ExpertFfnBackwardArgs g{};
    g.dy = c.in(gy), g.x = px, g.weight = weights, g.w1 = pw1, g.b1 = pb1, g.mult_bias = pmu, g.w2 = pw2, g.b2 = pb2;
    g.a = pointer[1], g.dx = pointer[2], g.dweight = weighted ? pointer[3] : nullptr;
    g.dw1 = pointer[4], g.db1 = pointer[5], g.dmult_bias = pointer[6], g.dw2 = pointer[7], g.db2 = pointer[8];
    g.dtype = dtype_of<T>(), g.compute = compute, g.straight_through = 1;
    g.T = g.R = tokens, g.K = g.E = 1, g.D = g.O = D, g.H = H, g.saved = f.saved;
    if (!all) g.dw1 = g.db1 = g.dmult_bias = g.dw2 = g.db2 = nullptr;
    expect_ok(c.run(&OpTable::expert_ffn_backward, g), name + " backward");
  }
  const double rounding = rounding_limit<T> * sum_slack(std::max({D, 2 * H, tokens}));
  for (int i = 0; i < 9; ++i)
    if (i != 1)  // A is the backend's own
      expect_close(out[1][i], out[0][i], name + " result " + std::to_string(i),
                   compute == dtype_of<T>() ? rounding : low_precision_limit(compute, 8));
}

// The backward of the router reads indices too; on the CPU only the binding makes sure of them.
void check_route_backward_index() {
  const Problem p = make_problem(kSmall, 1);
  Layer<float> layer(p, gpu());
  layer.run("small");
  for (int32_t wrong : {-1, 4, INT32_MAX, INT32_MIN}) {
    const int32_t right = std::exchange(layer.index[0], wrong);
    expect(layer.route_backward().code != ErrorCode::none, "no error for expert_index, route_backward");
    layer.index[0] = right;
  }
}

}  // namespace

int main(int count, char** arguments) {
  check_shapes();
  check_large_routing();
  check_random(count > 1 ? std::atoi(arguments[1]) : small() ? 3 : 10);
  check_empty();
  check_nan();
  check_dense<float>(70, 33, 140, false, true);
  check_dense<double>(70, 33, 140, true, true);
  check_dense<double>(5, 3, 4, true, false);
  check_dense<float>(0, 3, 4, false, true);
  for (DType compute : {DType::bf16, DType::f16}) {
    check_dense<float>(70, 33, 140, false, true, compute);
    check_dense<float>(3, 64, 97, true, false, compute);
    check_dense<float>(0, 3, 4, true, true, compute);
  }
  check_optional(gpu());
  check_packed();
  check_rewritten();
  // Indices that are wrong make blocks write the same rows: races, of which only the memory that they touch matters.
  if (!std::getenv("SIMT_RACES"))
    check_hostile(gpu(), [](const Status& status) { return status.code != ErrorCode::none; });
  check_route_backward_index();
  return report("moe_test", machine().gpu().variant);
}

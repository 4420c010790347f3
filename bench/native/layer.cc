#include "layer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../../test/native/moe_reference.h"
#include "core/binary.h"

namespace st_moe::bench {

int64_t LayerSizes::capacity() const {
  if (dropless) return N;
  const int64_t share = static_cast<int64_t>(static_cast<double>(N) * capacity_factor / static_cast<double>(E));
  return std::max<int64_t>(std::min(N, share), 4);
}

Members LayerSizes::params() const {
  Members params{{"B", B}, {"N", N}, {"D", D}, {"E", E}, {"K", K}};
  if (H != D * 8 / 3) params.push_back({"H", H});
  if (dropless) params.push_back({"dropless", 1});
  return params;
}

Values LayerSizes::values() const {
  Values values{{"seed", 1},
                {"step", 1},
                {"eps", 1e-9},
                {"balance_loss_coef", 1e-2},
                {"router_z_loss_coef", 1e-3},
                {"training", 1},
                {"straight_through", 1}};
  const std::pair<const char*, int64_t> dimensions[] = {{"B", B}, {"N", N}, {"D", D},          {"O", D},       {"E", E},
                                                        {"K", K}, {"H", H}, {"C", capacity()}, {"T", tokens()}};
  for (const auto& [name, size] : dimensions) values[name] = static_cast<double>(size);
  return values;
}

Layer::Layer(const Bench& bench, const LayerSizes& s)
    : sizes(s),
      memory(bench),
      bench_(bench),
      sorted_(s.dropless || bench.backend().name == std::string("cpu")),
      values_(s.values()) {
  const int64_t D = s.D, E = s.E, H = s.H, assignments = s.tokens() * s.K, slots = E * s.B * s.capacity();
  values_["R"] = static_cast<double>(sorted_ ? std::min(assignments, slots) : slots);
  const double first = 1 / std::sqrt(static_cast<double>(D)), second = 1 / std::sqrt(static_cast<double>(H));
  memory.put("w", bench.uniforms({E, D}, -first, first));
  w1 = memory.put("w1", bench.uniforms({E, 2 * H, D}, -first, first));
  memory.put("b1", bench.uniforms({E, 2 * H}, -first, first));
  memory.put("mult_bias", bench.filled({E, H}, 1));
  w2 = memory.put("w2", bench.uniforms({E, D, H}, -second, second));
  memory.put("b2", bench.uniforms({E, D}, -second, second));
  memory.put("threshold", bench.filled({s.K}, 0.2));
  memory.put("dtotal_loss", bench.filled({}, 1));
  if (bench.platform.keeps_packed_weights) w1.storage->keep_packed(), w2.storage->keep_packed();

  forward(DType::f32, false)(1);
  expert_rows.assign(static_cast<size_t>(E), 0);
  const auto position = bench.host<int32_t>(memory.at("position", {assignments}), 0, assignments);
  const auto expert = bench.host<int32_t>(memory.at("expert_index", {assignments}), 0, assignments);
  for (size_t i = 0; i < position.size(); ++i)
    if (position[i] >= 0) ++expert_rows[static_cast<size_t>(expert[i])];
  const double rows = static_cast<double>(std::accumulate(expert_rows.begin(), expert_rows.end(), int64_t{0}));
  kept = rows / static_cast<double>(assignments), occupancy = rows / static_cast<double>(slots);
  if (!sorted_) expert_rows.assign(static_cast<size_t>(E), slots / E);
}

DeclaredOp Layer::op(const char* name, DType compute, const std::map<std::string, std::string>& renamed) const {
  return {memory, name, values_, renamed, compute};
}

Layer::Pass Layer::forward(DType compute, bool save) const {
  const DeclaredOp route = op("route", DType::f32, kNotGiven);
  const DeclaredOp plan = op(sorted_ ? "plan_sorted" : "plan_slots", DType::f32);
  const DeclaredOp experts = op("expert_ffn", compute, {{"a", save ? "a" : ""}, {"ends", sorted_ ? "ends" : ""}});
  return [=, this](int threads) {
    route(threads), plan(threads);
    if (sorted_) memory.copy_to_host("ends", sizes.E);  // which waits
    experts(threads);
  };
}

Layer::Pass Layer::backward(DType compute) const {
  std::map<std::string, std::string> renamed = kNotGiven;
  renamed["dx"] = "dx of the router";
  const DeclaredOp experts = op("expert_ffn_backward", compute, {{"ends", sorted_ ? "ends" : ""}}),
                   route = op("route_backward", DType::f32, renamed);
  const Shape all{sizes.tokens(), sizes.D};
  BinaryArgs sum{};
  sum.a = sum.y = memory.at("dx", all).data(), sum.b = memory.at("dx of the router", all).data();
  sum.dtype = DType::f32, sum.kind = BinaryKind::add, sum.rank = 1, sum.shape[0] = sizes.tokens() * sizes.D;
  sum.a_strides[0] = sum.b_strides[0] = 1;
  return [=, &bench = bench_](int threads) {
    experts(threads), route(threads);
    bench.call(&OpTable::binary, threads, sum);
  };
}

void Layer::change_weights() const {
  w1.storage->change(), w2.storage->change();
}

double Layer::flops() const {
  const int64_t rows = std::accumulate(expert_rows.begin(), expert_rows.end(), int64_t{0});
  return 6.0 * static_cast<double>(rows * sizes.D) * static_cast<double>(sizes.H);
}

double Layer::error(DType compute) const {
  const int64_t D = sizes.D, H = sizes.H, K = sizes.K, T = sizes.tokens(), E = sizes.E;
  forward(compute, false)(bench_.most_threads());
  // Entry i of a tensor of so many.
  const auto slice = [&](const char* name, int64_t count, int64_t i, int64_t size) {
    const std::vector<float> values = bench_.host<float>(memory.at(name, {count, size}), i * size, size);
    return test::Values(values.begin(), values.end());
  };
  const auto index = [&](const char* name, int64_t i) {
    return bench_.host<int32_t>(memory.at(name, {T, K}), i, 1)[0];
  };
  double difference = 0, norm = 0;
  for (int64_t sample = 0; sample < 4; ++sample) {
    const int64_t t = sample * (T - 1) / 3;
    test::Values wanted(static_cast<size_t>(D)), out(wanted), got = slice("y", T, t, D);
    for (int64_t i = t * K; i < (t + 1) * K; ++i) {
      if (index("position", i) < 0) continue;
      const int64_t e = index("expert_index", i);
      const test::Values w1 = slice("w1", E, e, 2 * H * D), b1 = slice("b1", E, e, 2 * H);
      const test::Values mult_bias = slice("mult_bias", E, e, H), w2 = slice("w2", E, e, D * H),
                         b2 = slice("b2", E, e, D);
      const test::ExpertReference one{w1.data(), b1.data(), mult_bias.data(), w2.data(), b2.data()};
      test::reference_expert({.D = D, .O = D, .H = H}, one, slice("x", T, t, D).data(), 1, 0, out.data());
      const double weight = slice("weight", T * K, i, 1)[0];
      for (size_t o = 0; o < out.size(); ++o) wanted[o] += weight * out[o];
    }
    for (size_t i = 0; i < wanted.size(); ++i) {
      difference += (got[i] - wanted[i]) * (got[i] - wanted[i]);
      norm += wanted[i] * wanted[i];
    }
  }
  return Bench::checked(std::sqrt(difference / norm), bench_.platform.name_of(compute) == "f32" ? 1e-5 : 2e-2);
}

}  // namespace st_moe::bench

#include "layer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../../test/native/moe_reference.h"

namespace st_moe::bench {

int64_t LayerSizes::capacity() const {
  const int64_t share = static_cast<int64_t>(static_cast<double>(N) * 1.25 / static_cast<double>(E));
  return std::max<int64_t>(std::min(N, share), 4);
}

Members LayerSizes::params() const {
  Members params{{"B", B}, {"N", N}, {"D", D}, {"E", E}, {"K", K}};
  if (H != D * 8 / 3) params.push_back({"H", H});
  return params;
}

Layer::Layer(const Bench& bench, const LayerSizes& s, bool with_backward) : sizes(s), bench_(bench) {
  const int64_t T = s.tokens(), D = s.D, E = s.E, H = s.H, K = s.K, slots = E * s.B * s.capacity();
  const double first = 1 / std::sqrt(static_cast<double>(D)), second = 1 / std::sqrt(static_cast<double>(H));
  const bool fixed = bench.backend().fixed_slots;
  row_limit = fixed ? slots : std::min(slots, T * K);
  x = bench.normals({T, D}), dy = bench.normals({T, D}), gate_weight_ = bench.uniforms({E, D}, -first, first);
  w1 = bench.uniforms({E, 2 * H, D}, -first, first), b1_ = bench.uniforms({E, 2 * H}, -first, first);
  w2 = bench.uniforms({E, D, H}, -second, second), b2_ = bench.uniforms({E, D}, -second, second);
  mult_bias_ = bench.filled({E, H}, 1), threshold_ = bench.filled({K}, 0.2), one_ = bench.filled({}, 1);
  if (bench.platform.keeps_packed_weights) w1.storage->keep_packed(), w2.storage->keep_packed();

  for (Tensor* t : {&expert_index, &kept_mask_, &position}) *t = bench.filled({T, K}, 0, DType::i32);
  for (Tensor* t : {&gate_, &weight, &dweight}) *t = bench.filled({T, K});
  for (Tensor* t : {&probs_, &logits_}) *t = bench.filled({T, E});
  for (Tensor* t : {&y, &dx, &dx_route_}) *t = bench.filled({T, D});
  losses_ = bench.filled({3}), lse_ = bench.filled({T}), density_ = bench.filled({s.B, E});
  if (with_backward) {
    a_ = bench.filled({row_limit, bench.backend().saved_columns(2 * H)}), dgate_weight_ = bench.filled({E, D});
    dw1 = bench.filled(w1.shape), db1_ = bench.filled(b1_.shape), dmult_bias_ = bench.filled({E, H});
    dw2 = bench.filled(w2.shape), db2_ = bench.filled(b2_.shape);
  }

  forward(1, DType::f32, false);
  std::vector<int64_t> dispatched(static_cast<size_t>(E));
  const std::vector<int32_t> slot = bench.host<int32_t>(position, 0, T * K);
  const std::vector<int32_t> expert = bench.host<int32_t>(expert_index, 0, T * K);
  for (size_t i = 0; i < slot.size(); ++i)
    if (slot[i] >= 0) ++dispatched[static_cast<size_t>(expert[i])];
  kept_ = std::accumulate(dispatched.begin(), dispatched.end(), int64_t{0});
  expert_rows = fixed ? std::vector<int64_t>(static_cast<size_t>(E), slots / E) : dispatched;
}

template <class Args>
void Layer::share(Args& args, DType compute) const {
  args.x = x.data(), args.weight = weight.data();
  args.expert_index = i32(expert_index), args.position = i32(position);
  args.w1 = w1.data(), args.b1 = b1_.data(), args.mult_bias = mult_bias_.data(), args.w2 = w2.data();
  args.b2 = b2_.data(), args.dtype = DType::f32, args.compute = compute;
  args.w1_packed = w1.storage->packed(), args.w2_packed = w2.storage->packed();
  args.T = sizes.tokens(), args.K = sizes.K, args.D = sizes.D, args.E = sizes.E, args.H = sizes.H;
  args.B = sizes.B, args.C = sizes.capacity(), args.rows = row_limit;
}

template <class Args>
void Layer::share_route(Args& args) const {
  args.x = x.data(), args.w = gate_weight_.data(), args.dtype = DType::f32;
  args.expert_index = i32(expert_index), args.kept = i32(kept_mask_);
  args.gate = gate_.data(), args.probs = probs_.data(), args.logits = logits_.data();
  args.lse = lse_.data(), args.density = density_.data();
  args.B = sizes.B, args.N = sizes.N, args.D = sizes.D, args.E = sizes.E, args.K = sizes.K;
  args.eps = 1e-9, args.balance_coef = 1e-2, args.z_coef = 1e-3, args.training = 1;
}

void Layer::route(int threads) const {
  RouteArgs r{};
  share_route(r);
  r.threshold = f32(threshold_), r.position = i32(position), r.weight = weight.data();
  r.balance_loss = f32(losses_), r.z_loss = f32(losses_) + 1, r.total_loss = f32(losses_) + 2;
  r.C = sizes.capacity(), r.seed = 1, r.step = 1;
  bench_.call(&OpTable::route, threads, r);
}

void Layer::experts(int threads, DType compute, bool save) const {
  ExpertFfnArgs f{};
  share(f, compute);
  f.y = y.data(), f.a = save ? a_.data() : nullptr;
  bench_.call(&OpTable::expert_ffn, threads, f);
}

void Layer::experts_backward(int threads, DType compute) const {
  ExpertFfnBackwardArgs f{};
  share(f, compute);
  f.dy = dy.data(), f.a = a_.data(), f.dx = dx.data(), f.dweight = dweight.data();
  f.dw1 = dw1.data(), f.db1 = db1_.data(), f.dmult_bias = dmult_bias_.data();
  f.dw2 = dw2.data(), f.db2 = db2_.data(), f.straight_through = 1;
  bench_.call(&OpTable::expert_ffn_backward, threads, f);
}

void Layer::route_backward(int threads) const {
  RouteBackwardArgs r{};
  share_route(r);
  r.dweight = dweight.data(), r.dtotal = one_.data(), r.dx = dx_route_.data(), r.dw = dgate_weight_.data();
  bench_.call(&OpTable::route_backward, threads, r);
}

void Layer::backward(int threads, DType compute) const {
  experts_backward(threads, compute);
  route_backward(threads);
  BinaryArgs sum{};
  sum.a = sum.y = dx.data(), sum.b = dx_route_.data(), sum.dtype = DType::f32, sum.kind = BinaryKind::add;
  sum.rank = 1, sum.shape[0] = dx.size, sum.a_strides[0] = sum.b_strides[0] = 1;
  bench_.call(&OpTable::binary, threads, sum);
}

void Layer::change_weights() const {
  w1.storage->change(), w2.storage->change();
}

double Layer::flops() const {
  const int64_t rows = std::accumulate(expert_rows.begin(), expert_rows.end(), int64_t{0});
  return 6.0 * static_cast<double>(rows * sizes.D) * static_cast<double>(sizes.H);
}

double Layer::kept() const {
  return static_cast<double>(kept_) / static_cast<double>(sizes.tokens() * sizes.K);
}

double Layer::occupancy() const {
  return static_cast<double>(kept_) / static_cast<double>(sizes.E * sizes.B * sizes.capacity());
}

double Layer::error(DType compute) const {
  const int64_t D = sizes.D, H = sizes.H, K = sizes.K;
  forward(bench_.most_threads(), compute, false);
  double difference = 0, norm = 0;
  for (int64_t sample = 0; sample < 4; ++sample) {
    const int64_t t = sample * (sizes.tokens() - 1) / 3;
    const auto slice = [&](const Tensor& from, int64_t i, int64_t count) {
      const std::vector<float> values = bench_.host<float>(from, i * count, count);
      return moe_reference::Values(values.begin(), values.end());
    };
    moe_reference::Values wanted(static_cast<size_t>(D)), got = slice(y, t, D);
    for (int64_t k = 0; k < K; ++k) {
      if (bench_.host<int32_t>(position, t * K + k, 1)[0] < 0) continue;
      const int64_t e = bench_.host<int32_t>(expert_index, t * K + k, 1)[0];
      moe_reference::Problem one;  // this token and this expert
      one.shape.D = D, one.shape.H = H;
      one.x = slice(x, t, D), one.mu = slice(mult_bias_, e, H);
      one.w1 = slice(w1, e, 2 * H * D), one.b1 = slice(b1_, e, 2 * H);
      one.w2 = slice(w2, e, D * H), one.b2 = slice(b2_, e, D);
      moe_reference::reference_expert(one, 0, 0, 1, slice(weight, t * K + k, 1)[0], wanted);
    }
    for (size_t i = 0; i < wanted.size(); ++i) {
      difference += (got[i] - wanted[i]) * (got[i] - wanted[i]);
      norm += wanted[i] * wanted[i];
    }
  }
  return Bench::checked(std::sqrt(difference / norm), bench_.platform.name_of(compute) == "f32" ? 1e-5 : 2e-2);
}

}  // namespace st_moe::bench

#include "layer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace st_moe::bench {

int64_t LayerSizes::capacity() const {
  const int64_t share = static_cast<int64_t>(static_cast<double>(N) * 1.25 / static_cast<double>(E));
  return std::max<int64_t>(std::min(N, share), 4);
}

Layer::Layer(const Bench& bench, const LayerSizes& s)
    : bench_(bench),
      sizes_(s),
      rows_(std::min(s.E * s.B * s.capacity(), s.tokens() * s.K)),
      x_(normals(bench, s.tokens() * s.D)),
      gathered_(normals(bench, rows_ * s.D)),
      gate_weight_(uniforms(bench, s.E * s.D, 1 / std::sqrt(static_cast<double>(s.D)))),
      w1_(uniforms(bench, s.E * 2 * s.H() * s.D, 1 / std::sqrt(static_cast<double>(s.D)))),
      b1_(uniforms(bench, s.E * 2 * s.H(), 1 / std::sqrt(static_cast<double>(s.D)))),
      mult_bias_(bench, s.E * s.H()),
      w2_(uniforms(bench, s.E * s.D * s.H(), 1 / std::sqrt(static_cast<double>(s.H())))),
      b2_(uniforms(bench, s.E * s.D, 1 / std::sqrt(static_cast<double>(s.H())))),
      dy_(normals(bench, s.tokens() * s.D)),
      threshold_(bench, s.K),
      one_(bench, 1),
      expert_index_(bench, s.tokens() * s.K),
      kept_(bench, s.tokens() * s.K),
      position_(bench, s.tokens() * s.K),
      gate_(bench, s.tokens() * s.K),
      weight_(bench, s.tokens() * s.K),
      losses_(bench, 3),
      probs_(bench, s.tokens() * s.E),
      logits_(bench, s.tokens() * s.E),
      lse_(bench, s.tokens()),
      density_(bench, s.B * s.E),
      y_(bench, s.tokens() * s.D),
      a_(bench, rows_ * 2 * s.H()),
      hidden_(normals(bench, rows_ * s.H())),
      dx_(bench, std::max(s.tokens(), rows_) * s.D),
      dx_route_(bench, s.tokens() * s.D),
      dweight_(bench, s.tokens() * s.K),
      dw1_(bench, w1_.size()),
      db1_(bench, b1_.size()),
      dmult_bias_(bench, mult_bias_.size()),
      dw2_(bench, w2_.size()),
      db2_(bench, b2_.size()),
      dgate_weight_(bench, gate_weight_.size()),
      expert_rows_(static_cast<size_t>(s.E)) {
  std::fill_n(mult_bias_.get(), mult_bias_.size(), 1.0f);
  std::fill_n(threshold_.get(), s.K, 0.2f);
  one_[0] = 1;
  forward(1, DType::f32, false);
  for (int64_t i = 0; i < s.tokens() * s.K; ++i)
    if (position_[i] >= 0) ++expert_rows_[static_cast<size_t>(expert_index_[i])];
}

void Layer::forward(int threads, DType compute, bool save) const {
  const LayerSizes& s = sizes_;
  RouteArgs route{};
  route.x = x_, route.w = gate_weight_, route.threshold = threshold_;
  route.expert_index = expert_index_, route.kept = kept_, route.position = position_;
  route.gate = gate_, route.weight = weight_;
  route.balance_loss = losses_.get(), route.z_loss = losses_.get() + 1, route.total_loss = losses_.get() + 2;
  route.probs = probs_, route.logits = logits_, route.lse = lse_, route.density = density_;
  route.B = s.B, route.N = s.N, route.D = s.D, route.E = s.E, route.K = s.K, route.C = s.capacity();
  route.seed = 1, route.step = 1, route.eps = 1e-9, route.balance_coef = 1e-2, route.z_coef = 1e-3, route.training = 1;
  call(bench_.ops().route, threads, route);

  ExpertFfnArgs ffn{};
  ffn.x = x_, ffn.expert_index = expert_index_, ffn.position = position_, ffn.weight = weight_;
  ffn.w1 = w1_, ffn.b1 = b1_, ffn.mult_bias = mult_bias_, ffn.w2 = w2_, ffn.b2 = b2_;
  ffn.y = y_, ffn.a = save ? a_.get() : nullptr, ffn.compute = compute;
  ffn.T = s.tokens(), ffn.K = s.K, ffn.D = s.D, ffn.E = s.E, ffn.H = s.H(), ffn.B = s.B, ffn.C = s.capacity();
  ffn.rows = rows_;
  call(bench_.ops().expert_ffn, threads, ffn);
}

void Layer::backward(int threads, DType compute) const {
  const LayerSizes& s = sizes_;
  ExpertFfnBackwardArgs ffn{};
  ffn.dy = dy_, ffn.x = x_, ffn.expert_index = expert_index_, ffn.position = position_, ffn.weight = weight_;
  ffn.w1 = w1_, ffn.b1 = b1_, ffn.mult_bias = mult_bias_, ffn.w2 = w2_, ffn.b2 = b2_, ffn.a = a_;
  ffn.dx = dx_, ffn.dweight = dweight_;
  ffn.dw1 = dw1_, ffn.db1 = db1_, ffn.dmult_bias = dmult_bias_, ffn.dw2 = dw2_, ffn.db2 = db2_;
  ffn.compute = compute, ffn.straight_through = 1;
  ffn.T = s.tokens(), ffn.K = s.K, ffn.D = s.D, ffn.E = s.E, ffn.H = s.H(), ffn.B = s.B, ffn.C = s.capacity();
  ffn.rows = rows_;
  call(bench_.ops().expert_ffn_backward, threads, ffn);

  RouteBackwardArgs route{};
  route.dweight = dweight_, route.dtotal = one_, route.x = x_, route.w = gate_weight_;
  route.expert_index = expert_index_, route.kept = kept_;
  route.gate = gate_, route.probs = probs_, route.logits = logits_, route.lse = lse_, route.density = density_;
  route.dx = dx_route_, route.dw = dgate_weight_;
  route.B = s.B, route.N = s.N, route.D = s.D, route.E = s.E, route.K = s.K;
  route.eps = 1e-9, route.balance_coef = 1e-2, route.z_coef = 1e-3, route.training = 1;
  call(bench_.ops().route_backward, threads, route);

  BinaryArgs add{dx_, dx_route_, dx_, DType::f32, BinaryKind::add, 1, {dx_route_.size()}, {1}, {1}};
  call(bench_.ops().binary, threads, add);
}

void Layer::products(int threads, DType compute, bool all) const {
  const auto run = [&](Product product, const float* a, const float* b, float* c) {
    bench_.kernels.run_product({threads, nullptr}, {product, sizes_.D, sizes_.H(), expert_rows_, a, b, c, compute});
  };
  const float *x = gathered_, *dy = gathered_;
  run(Product::a, x, w1_, a_);
  run(Product::y, hidden_, w2_, dx_);
  if (!all) return;
  run(Product::dh, dy, w2_, hidden_);
  run(Product::dw2, dy, hidden_, dw2_);
  run(Product::dw1, a_, x, dw1_);
  run(Product::dx, a_, w1_, dx_);
}

double Layer::flops() const {
  const int64_t rows = std::accumulate(expert_rows_.begin(), expert_rows_.end(), int64_t{0});
  return 6.0 * static_cast<double>(rows * sizes_.D) * static_cast<double>(sizes_.H());
}

double Layer::kept() const {
  const int64_t rows = std::accumulate(expert_rows_.begin(), expert_rows_.end(), int64_t{0});
  return static_cast<double>(rows) / static_cast<double>(sizes_.tokens() * sizes_.K);
}

double Layer::occupancy() const {
  const int64_t slots = sizes_.E * sizes_.B * sizes_.capacity();
  return kept() * static_cast<double>(sizes_.tokens() * sizes_.K) / static_cast<double>(slots);
}

double Layer::error(DType compute) const {
  const int64_t D = sizes_.D, H = sizes_.H(), K = sizes_.K;
  forward(bench_.threads.back(), compute, false);
  double difference = 0, norm = 0;
  std::vector<double> y(static_cast<size_t>(D));
  for (int64_t sample = 0; sample < 4; ++sample) {
    const int64_t t = sample * (sizes_.tokens() - 1) / 3;
    std::fill(y.begin(), y.end(), 0);
    for (int64_t k = 0; k < K; ++k) {
      if (position_[t * K + k] < 0) continue;
      const int64_t e = expert_index_[t * K + k];
      const auto hidden = [&](int64_t j) {  // column j of x · W1ᵀ + b1
        double sum = static_cast<double>(b1_[e * 2 * H + j]);
        const float* w = w1_.get() + (e * 2 * H + j) * D;
        for (int64_t i = 0; i < D; ++i) sum += static_cast<double>(x_[t * D + i]) * static_cast<double>(w[i]);
        return sum;
      };
      std::vector<double> h(static_cast<size_t>(H));
      for (int64_t j = 0; j < H; ++j) {
        const double gate = hidden(H + j);
        h[static_cast<size_t>(j)] = gate * 0.5 * std::erfc(-gate * std::sqrt(0.5)) * hidden(j);
      }
      for (int64_t i = 0; i < D; ++i) {
        double sum = static_cast<double>(b2_[e * D + i]);
        for (int64_t j = 0; j < H; ++j)
          sum += h[static_cast<size_t>(j)] * static_cast<double>(w2_[(e * D + i) * H + j]);
        y[static_cast<size_t>(i)] += sum * static_cast<double>(weight_[t * K + k]);
      }
    }
    for (int64_t i = 0; i < D; ++i) {
      const double wanted = y[static_cast<size_t>(i)];
      difference += std::pow(static_cast<double>(y_[t * D + i]) - wanted, 2);
      norm += wanted * wanted;
    }
  }
  return std::sqrt(difference / norm);
}

}  // namespace st_moe::bench

#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "cuda/expert_rows.cuh"
#include "cuda/ops.h"
#include "harness.h"

// The layer that is timed: one mixture of experts, op by op, and its GEMMs alone.
namespace st_moe::cuda {

struct Config {
  std::string name;
  int64_t D, E, K, B, N, H;
  DType compute;

  int64_t C() const { return std::max(std::min(N, N * 5 / (4 * E)), int64_t{4}); }
  int64_t tokens() const { return B * N; }
  int64_t each() const { return B * C(); }  // rows of an expert
  int64_t wide(int64_t n) const { return compute == DType::f32 ? n : ceil_div(n, kOperandMultiple) * kOperandMultiple; }
  const char* type() const { return compute == DType::f32 && uses_tf32() ? "tf32" : dtype_name(compute); }
  double flops() const { return 6.0 * double(E * each()) * double(D) * double(H); }  // of the GEMMs of a forward
  double bytes(bool backward) const {  // weights, copies, gradients; activations of the layer and of the GEMMs alone
    const double weights = 3.0 * double(E * D * H), rows = double(E * each());
    return weights * ((compute == DType::f32 ? 4 : 6) + (backward ? 4 : 0)) +
           rows * (40.0 * double(H) + 32.0 * double(D));
  }
};

// One layer and everything that its two passes read and write.
class Layer {
 public:
  Layer(st_moe::Device& device, const Config& config, bool with_backward) : c(config), device_(device) {
    const int64_t D = c.D, H = c.H, E = c.E, T = c.tokens(), K = c.K;
    x = random({T, D}, 1), dy = random({T, D}, 1), gate_w = random({E, D}, 1 / std::sqrt(double(D)));
    w1 = random({E, 2 * H, D}, 1 / std::sqrt(double(2 * H))), b1 = random({E, 2 * H}, 0.1);
    w2 = random({E, D, H}, 1 / std::sqrt(double(D))), b2 = random({E, D}, 0.1), mu = random({E, H}, 1);
    threshold = random({K}, 0.2);
    w1.storage->keep_packed(), w2.storage->keep_packed();
    index = integers({T, K}), kept = integers({T, K}), position = integers({T, K});
    gate = floats({T, K}), weight = floats({T, K}), dweight = floats({T, K}), losses = floats({3});
    probs = floats({T, E}), logits = floats({T, E}), lse = floats({T}), density = floats({c.B, E});
    y = floats({T, D}), dx = floats({T, D}), dx_router = floats({T, D}), dgate_w = floats({E, D});
    a = floats({E * c.each(), saved_columns(2 * H)});
    if (with_backward) {
      dw1 = floats(w1.shape), db1 = floats(b1.shape), dw2 = floats(w2.shape), db2 = floats(b2.shape);
      dmu = floats(mu.shape);
    }
    in = operand({E, c.each(), c.wide(D)}), hidden = operand({E, c.each(), c.wide(H)});
    da = operand({E, c.each(), c.wide(2 * H)});
    out = floats({E, c.each(), D}), pre = floats({E, c.each(), saved_columns(2 * H)});
  }

  void forward() {
    RouteArgs r{};
    r.x = x.data(), r.w = gate_w.data(), r.threshold = static_cast<const float*>(threshold.data());
    r.expert_index = i32(index), r.kept = i32(kept), r.position = i32(position);
    r.gate = gate.data(), r.weight = weight.data();
    r.balance_loss = losses.data(), r.z_loss = f32(losses) + 1, r.total_loss = f32(losses) + 2;
    r.probs = probs.data(), r.logits = logits.data(), r.lse = lse.data(), r.density = density.data();
    r.B = c.B, r.N = c.N, r.D = c.D, r.E = c.E, r.K = c.K, r.C = c.C(), r.seed = 1;
    r.eps = 1e-9, r.balance_coef = 1e-2, r.z_coef = 1e-3, r.noise_mult = 1, r.training = 1;
    expect_ok(op_table().route(device_.context, r));
    ExpertFfnArgs f{};
    f.y = y.data(), f.a = a.data();
    share(f);
    expect_ok(op_table().expert_ffn(device_.context, f));
  }

  void backward() {
    ExpertFfnBackwardArgs g{};
    g.dy = dy.data(), g.a = a.data(), g.dx = dx.data(), g.dweight = dweight.data();
    g.dw1 = dw1.data(), g.db1 = db1.data(), g.dmult_bias = dmu.data(), g.dw2 = dw2.data(), g.db2 = db2.data();
    g.straight_through = 1;
    share(g);
    expect_ok(op_table().expert_ffn_backward(device_.context, g));
    RouteBackwardArgs r{};
    r.dweight = dweight.data(), r.dtotal = f32(losses) + 2, r.x = x.data(), r.w = gate_w.data();
    r.expert_index = i32(index), r.kept = i32(kept), r.gate = gate.data(), r.probs = probs.data();
    r.logits = logits.data(), r.lse = lse.data(), r.density = density.data();
    r.dx = dx_router.data(), r.dw = dgate_w.data();
    r.B = c.B, r.N = c.N, r.D = c.D, r.E = c.E, r.K = c.K;
    r.eps = 1e-9, r.balance_coef = 1e-2, r.z_coef = 1e-3, r.training = 1;
    expect_ok(op_table().route_backward(device_.context, r));
  }

  void change_weights() { w1.storage->change(), w2.storage->change(); }  // as an optimizer would: new copies

  // The GEMMs alone. The layer has run, so that its copies of the weights are there.
  void gemms(bool all) {
    const int64_t D = c.D, H = c.H, E = c.E, M = c.each();
    const ExpertRows rows{{nullptr, nullptr, c.B, c.N, c.K, E, c.C(), nullptr}, true, M};
    const Matrix x_rows{in.data(), M, c.wide(D)}, h{hidden.data(), M, c.wide(H)}, d{da.data(), M, c.wide(2 * H)};
    const Matrix first = weight_of(w1, 2 * H, D), second = weight_of(w2, D, H);
    const auto run = [&](const Product& p) { multiply(device_.context, c.compute, DType::f32, p); };
    run(rows.of_rows(x_rows, first, true, pre.data(), saved_columns(2 * H), first.rows));
    run(rows.of_rows(h, second, true, out.data(), D, D));
    if (!all) return;
    run(rows.of_rows(x_rows, second, false, pre.data(), c.wide(H), c.wide(H)));
    run(rows.over_rows(x_rows, h, dw2.data(), D, H));
    run(rows.over_rows(d, x_rows, dw1.data(), 2 * H, D));
    run(rows.of_rows(d, first, false, out.data(), D, D));
  }

  bool finite() {
    std::vector<float> values(static_cast<size_t>(y.size));
    expect_ok(device_.backend->copy_out(device_.context, values.data(), y.data(), values.size() * sizeof(float)));
    return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
  }

 private:
  static float* f32(const Tensor& t) { return static_cast<float*>(t.data()); }
  static int32_t* i32(const Tensor& t) { return static_cast<int32_t*>(t.data()); }
  Tensor floats(Shape shape) { return make_tensor(device_, DType::f32, std::move(shape)); }
  Tensor integers(Shape shape) { return make_tensor(device_, DType::i32, std::move(shape)); }
  Tensor random(Shape shape, double bound) {
    Tensor t = floats(std::move(shape));
    const RandomArgs args{t.data(), DType::f32, t.size, Distribution::uniform, -bound, bound, 1, step_++};
    expect_ok(op_table().random(device_.context, args));
    return t;
  }
  Tensor operand(Shape shape) {
    const Tensor values = random(std::move(shape), 1);
    Tensor t = make_tensor(device_, c.compute, values.shape);
    expect_ok(op_table().convert(device_.context, {values.data(), t.data(), DType::f32, c.compute, t.size}));
    return t;
  }
  Matrix weight_of(const Tensor& w, int64_t rows, int64_t columns) {
    if (c.compute == DType::f32) return {w.data(), rows, columns};
    const PackedCopies& copies = *w.storage->packed();
    return {copies.find(copies, {0, c.compute, c.E, rows, columns}), c.wide(rows), c.wide(columns)};
  }
  template <class Args>
  void share(Args& f) {
    f.x = x.data(), f.expert_index = i32(index), f.position = i32(position), f.weight = weight.data();
    f.w1 = w1.data(), f.b1 = b1.data(), f.mult_bias = mu.data(), f.w2 = w2.data(), f.b2 = b2.data();
    f.dtype = DType::f32, f.compute = c.compute, f.w1_packed = w1.storage->packed(), f.w2_packed = w2.storage->packed();
    f.T = c.tokens(), f.K = c.K, f.D = c.D, f.E = c.E, f.H = c.H, f.B = c.B, f.C = c.C(), f.rows = c.E * c.each();
  }

  const Config c;
  st_moe::Device& device_;
  uint64_t step_ = 0;
  Tensor x, dy, gate_w, w1, b1, w2, b2, mu, threshold, index, kept, position, gate, weight, dweight, losses;
  Tensor probs, logits, lse, density, y, dx, dx_router, dgate_w, a, dw1, db1, dw2, db2, dmu;
  Tensor in, hidden, da, out, pre;
};

}  // namespace st_moe::cuda

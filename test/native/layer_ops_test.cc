#include <limits>

#include "variants.h"

// Layers, losses and optimizers: float64 against plain loops and finite differences, float32 against float64.
using namespace st_moe;
using namespace st_moe::test;

namespace {

struct Rows {
  int64_t T, D;
};
const Rows kRows[] = {{0, 5}, {1, 1}, {3, 2}, {5, 17}, {40, 64}, {70, 129}, {1100, 33}, {3, 5000}};

const OpTable& reference() {
  return variants().back().op_table();
}
const Context kSerial{1, nullptr};

template <class T>
std::vector<T> narrow(const std::vector<double>& v) {
  return std::vector<T>(v.begin(), v.end());
}

std::vector<double> rmsnorm_loops(const std::vector<double>& x, const std::vector<double>& gamma, Rows s) {
  std::vector<double> y(x.size());
  for (int64_t t = 0; t < s.T; ++t) {
    double squares = 0;
    for (int64_t j = 0; j < s.D; ++j) squares += x[t * s.D + j] * x[t * s.D + j];
    const double norm = std::fmax(std::sqrt(squares), 1e-12);
    for (int64_t j = 0; j < s.D; ++j)
      y[t * s.D + j] = x[t * s.D + j] / norm * gamma[j] * std::sqrt(static_cast<double>(s.D));
  }
  return y;
}

std::vector<double> layernorm_loops(const std::vector<double>& x, const std::vector<double>& w,
                                    const std::vector<double>& b, Rows s) {
  std::vector<double> y(x.size());
  for (int64_t t = 0; t < s.T; ++t) {
    double mean = 0, squares = 0;
    for (int64_t j = 0; j < s.D; ++j) mean += x[t * s.D + j] / static_cast<double>(s.D);
    for (int64_t j = 0; j < s.D; ++j) squares += std::pow(x[t * s.D + j] - mean, 2) / static_cast<double>(s.D);
    for (int64_t j = 0; j < s.D; ++j)
      y[t * s.D + j] = (x[t * s.D + j] - mean) / std::sqrt(squares + 1e-5) * w[j] + b[j];
  }
  return y;
}

std::vector<double> softmax_loops(const std::vector<double>& x, Rows s, bool log) {
  std::vector<double> y(x.size());
  for (int64_t t = 0; t < s.T; ++t) {
    double sum = 0;
    for (int64_t j = 0; j < s.D; ++j) sum += std::exp(x[t * s.D + j]);
    for (int64_t j = 0; j < s.D; ++j)
      y[t * s.D + j] = log ? x[t * s.D + j] - std::log(sum) : std::exp(x[t * s.D + j]) / sum;
  }
  return y;
}

template <class T>
void test_rmsnorm(Rows s) {
  std::vector<double> x = normals<double>(s.T * s.D, 1), gamma = normals<double>(s.D, 2, 1),
                      dy = normals<double>(s.T * s.D, 3);
  std::vector<double> dx(x.size()), dgamma(s.D), want = rmsnorm_loops(x, gamma, s);
  reference().rmsnorm_backward(kSerial,
                               {dy.data(), x.data(), gamma.data(), dx.data(), dgamma.data(), DType::f64, s.T, s.D});
  const auto loss = [&] { return inner(dy, rmsnorm_loops(x, gamma, s)); };
  expect_gradient(x, dx, loss, "rmsnorm dx");
  expect_gradient(gamma, dgamma, loss, "rmsnorm dgamma");
  const auto x_t = narrow<T>(x), gamma_t = narrow<T>(gamma), dy_t = narrow<T>(dy);
  std::vector<T> y(x.size()), dx_t(x.size()), dgamma_t(s.D), alone(s.D);
  run_op(
      "rmsnorm", {output(y)},
      [&](auto& ops, auto& ctx) {
        return ops.rmsnorm(ctx, {x_t.data(), gamma_t.data(), y.data(), dtype_of<T>(), s.T, s.D});
      },
      [&](auto what) { expect_close(y, want, what); });
  run_op(
      "rmsnorm_backward", {output(dx_t), output(dgamma_t)},
      [&](auto& ops, auto& ctx) {
        return ops.rmsnorm_backward(
            ctx, {dy_t.data(), x_t.data(), gamma_t.data(), dx_t.data(), dgamma_t.data(), dtype_of<T>(), s.T, s.D});
      },
      [&](auto what) {
        if (s.D > 1) expect_close(dx_t, dx, what + " dx", 2);
        expect_close(dgamma_t, dgamma, what + " dgamma", 2);
      });
  run_op(
      "rmsnorm_backward, one output", {output(alone)},
      [&](auto& ops, auto& ctx) {
        return ops.rmsnorm_backward(
            ctx, {dy_t.data(), x_t.data(), gamma_t.data(), nullptr, alone.data(), dtype_of<T>(), s.T, s.D});
      },
      [&](auto what) { expect_close(alone, dgamma, what, 2); });
}

template <class T>
void test_layernorm(Rows s) {
  std::vector<double> x = normals<double>(s.T * s.D, 1, 2), w = normals<double>(s.D, 2, 1), b = normals<double>(s.D, 3);
  const std::vector<double> dy = normals<double>(s.T * s.D, 4), want = layernorm_loops(x, w, b, s);
  std::vector<double> dx(x.size()), dw(s.D), db(s.D);
  reference().layernorm_backward(
      kSerial, {dy.data(), x.data(), w.data(), dx.data(), dw.data(), db.data(), DType::f64, s.T, s.D, 1e-5});
  const auto loss = [&] { return inner(dy, layernorm_loops(x, w, b, s)); };
  if (s.D > 2) expect_gradient(x, dx, loss, "layernorm dx");
  expect_gradient(w, dw, loss, "layernorm dweight");
  expect_gradient(b, db, loss, "layernorm dbias");
  const auto x_t = narrow<T>(x), w_t = narrow<T>(w), b_t = narrow<T>(b), dy_t = narrow<T>(dy);
  std::vector<T> y(x.size()), dx_t(x.size()), dw_t(s.D), db_t(s.D);
  run_op(
      "layernorm", {output(y)},
      [&](auto& ops, auto& ctx) {
        return ops.layernorm(ctx, {x_t.data(), w_t.data(), b_t.data(), y.data(), dtype_of<T>(), s.T, s.D, 1e-5});
      },
      [&](auto what) { expect_close(y, want, what); });
  run_op(
      "layernorm_backward", {output(dx_t), output(dw_t), output(db_t)},
      [&](auto& ops, auto& ctx) {
        return ops.layernorm_backward(ctx, {dy_t.data(), x_t.data(), w_t.data(), dx_t.data(), dw_t.data(), db_t.data(),
                                            dtype_of<T>(), s.T, s.D, 1e-5});
      },
      [&](auto what) {
        if (s.D > 2) expect_close(dx_t, dx, what + " dx", 2);
        expect_close(dw_t, dw, what + " dweight", 2);
        expect_close(db_t, db, what + " dbias", 2);
      });
}

template <class T>
void test_softmax(Rows s, bool log) {
  std::vector<double> x = normals<double>(s.T * s.D, 5), dy = normals<double>(s.T * s.D, 6),
                      want = softmax_loops(x, s, log);
  std::vector<double> dx(x.size());
  reference().softmax_backward(kSerial, {dy.data(), want.data(), dx.data(), DType::f64, s.T, s.D, log});
  if (s.D > 1) expect_gradient(x, dx, [&] { return inner(dy, softmax_loops(x, s, log)); }, "softmax dx");
  const auto x_t = narrow<T>(x), dy_t = narrow<T>(dy), y_t = narrow<T>(want);
  std::vector<T> y(x.size()), dx_t(x.size());
  run_op(
      log ? "log_softmax" : "softmax", {output(y)},
      [&](auto& ops, auto& ctx) { return ops.softmax(ctx, {x_t.data(), y.data(), dtype_of<T>(), s.T, s.D, log}); },
      [&](auto what) { expect_close(y, want, what); });
  run_op(
      "softmax_backward", {output(dx_t)},
      [&](auto& ops, auto& ctx) {
        return ops.softmax_backward(ctx, {dy_t.data(), y_t.data(), dx_t.data(), dtype_of<T>(), s.T, s.D, log});
      },
      [&](auto what) {
        if (s.D > 1) expect_close(dx_t, dx, what, 3);
      });
}

template <class T>
void test_non_finite_rows() {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const int64_t V = 37;
  for (int log = 0; log < 2; ++log) {
    std::vector<T> x = normals<T>(4 * V, 7), y(4 * V);
    x[5] = nan;
    x[V + 36] = inf;
    for (int64_t j = 0; j < V - 1; ++j) x[2 * V + j] = -inf;
    for (int64_t j = 0; j < V; ++j) x[3 * V + j] += 1000;
    run_op(
        "softmax of non-finite rows", {output(y)},
        [&](auto& ops, auto& ctx) { return ops.softmax(ctx, {x.data(), y.data(), dtype_of<T>(), 4, V, log}); },
        [&](auto what) {
          double sum = 0;
          for (int64_t j = 0; j < V; ++j)
            sum += log ? std::exp(static_cast<double>(y[3 * V + j])) : static_cast<double>(y[3 * V + j]);
          expect(std::isnan(y[0]) && std::isnan(y[V + 36]), what + ": NaN and inf");
          expect(y[2 * V + 36] == (log ? 0 : 1) && y[2 * V] == (log ? -inf : 0), what + ": −inf");
          expect(std::fabs(sum - 1) < 1e-5, what + ": large logits", sum, 1);
        });
  }
  std::vector<T> x = normals<T>(3 * V, 8), gamma(V, T(1)), y(3 * V), dx(3 * V);
  for (int64_t j = 0; j < V; ++j) x[V + j] = 0;
  x[2 * V + 3] = nan;
  run_op(
      "rmsnorm of zero and NaN rows", {output(y), output(dx)},
      [&](auto& ops, auto& ctx) {
        ops.rmsnorm(ctx, {x.data(), gamma.data(), y.data(), dtype_of<T>(), 3, V});
        return ops.rmsnorm_backward(ctx,
                                    {gamma.data(), x.data(), gamma.data(), dx.data(), nullptr, dtype_of<T>(), 1, V});
      },
      [&](auto what) { expect(std::isfinite(y[0]) && y[V] == 0 && std::isnan(y[2 * V]), what); });
  const std::vector<T> dy = normals<T>(3 * V, 9);
  run_op(
      "rmsnorm_backward of a zero row", {output(dx)},
      [&](auto& ops, auto& ctx) {
        return ops.rmsnorm_backward(ctx, {dy.data(), x.data(), gamma.data(), dx.data(), nullptr, dtype_of<T>(), 3, V});
      },
      [&](auto what) {
        expect(std::isfinite(dx[0]) && dx[V] == 0 && dx[2 * V - 1] == 0 && std::isnan(dx[2 * V]), what);
      });
}

template <class T>
void test_cross_entropy(Rows s) {
  const int64_t V = s.D;
  std::vector<double> x = normals<double>(s.T * V, 8);
  std::vector<int32_t> target(s.T);
  int64_t counted = 0;
  for (int64_t t = 0; t < s.T; ++t) {
    target[t] = t % 5 == 3 ? -100 : static_cast<int32_t>((t * 7) % V);
    counted += target[t] >= 0;
  }
  const auto loss = [&] {
    const std::vector<double> y = softmax_loops(x, {s.T, V}, true);
    double sum = 0;
    for (int64_t t = 0; t < s.T; ++t)
      if (target[t] >= 0) sum -= y[t * V + target[t]];
    return counted ? sum / static_cast<double>(counted) : 0.0;
  };
  const std::vector<double> wanted_loss{loss()};
  std::vector<double> dx(x.size()), lse(s.T), value(1), one{1};
  reference().cross_entropy(kSerial, {x.data(), target.data(), value.data(), lse.data(), DType::f64, s.T, V, -100});
  reference().cross_entropy_backward(
      kSerial, {one.data(), x.data(), lse.data(), target.data(), dx.data(), DType::f64, s.T, V, -100});
  if (V > 1) expect_gradient(x, dx, [&] { return loss(); }, "cross_entropy dlogits");
  const auto x_t = narrow<T>(x);
  std::vector<T> loss_t(1), lse_t(s.T), dx_t(x.size()), upstream{T(0.5)};
  for (double& v : dx) v *= 0.5;
  run_op(
      "cross_entropy", {output(loss_t), output(lse_t), output(dx_t)},
      [&](auto& ops, auto& ctx) {
        ops.cross_entropy(ctx, {x_t.data(), target.data(), loss_t.data(), lse_t.data(), dtype_of<T>(), s.T, V, -100});
        return ops.cross_entropy_backward(
            ctx, {upstream.data(), x_t.data(), lse_t.data(), target.data(), dx_t.data(), dtype_of<T>(), s.T, V, -100});
      },
      [&](auto what) {
        if (V > 1) expect_close(loss_t, wanted_loss, what + " loss");
        expect_close(lse_t, lse, what + " lse");
        if (V > 1) expect_close(dx_t, dx, what + " dlogits", 2);
      });
  if (s.T < 2) return;
  target[1] = static_cast<int32_t>(V);
  run_error("cross_entropy", ErrorCode::option, " at 1", [&](auto& ops, auto& ctx) {
    return ops.cross_entropy(ctx,
                             {x_t.data(), target.data(), loss_t.data(), lse_t.data(), dtype_of<T>(), s.T, V, -100});
  });
}

// One logit so large that only its own exponential counts, and does not overflow, wherever in the row it stands.
template <class T>
void test_cross_entropy_of_a_large_logit() {
  const int64_t V = 1100;
  for (const int64_t at : {0, 1, 511, 512, 550, 1023, 1024, 1099}) {
    std::vector<T> x = normals<T>(V, 9), loss(1), lse(1);
    x[at] = 1000;
    const std::vector<int32_t> target{static_cast<int32_t>(at)};
    run_op(
        "cross_entropy, large logit at " + std::to_string(at), {output(loss), output(lse)},
        [&](auto& ops, auto& ctx) {
          return ops.cross_entropy(ctx, {x.data(), target.data(), loss.data(), lse.data(), dtype_of<T>(), 1, V, -100});
        },
        [&](auto what) {
          expect(loss[0] == 0, what + " loss", loss[0], 0);
          expect(lse[0] == 1000, what + " lse", lse[0], 1000);
        });
  }
}

template <class T>
void test_embedding(int64_t tokens, int64_t D, int64_t V) {
  const std::vector<T> w = normals<T>(V * D, 20), dy = normals<T>(tokens * D, 21);
  std::vector<int32_t> index(tokens);
  Source source(22);
  for (int32_t& i : index) i = static_cast<int32_t>(source.below(V) * source.below(V) / V);
  std::vector<T> y(tokens * D), want(tokens * D), dw(V * D), want_dw(V * D);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < D; ++j) {
      want[t * D + j] = w[index[t] * D + j];
      want_dw[index[t] * D + j] += dy[t * D + j];
    }
  run_op(
      "embedding", {output(y)},
      [&](auto& ops, auto& ctx) {
        return ops.embedding(ctx, {w.data(), index.data(), y.data(), dtype_of<T>(), tokens, D, V});
      },
      [&](auto what) { expect(y == want, what); });
  run_op(
      "embedding_backward", {output(dw)},
      [&](auto& ops, auto& ctx) {
        return ops.embedding_backward(ctx, {dy.data(), index.data(), dw.data(), dtype_of<T>(), tokens, D, V});
      },
      [&](auto what) { expect(dw == want_dw, what); });
  if (tokens == 0) return;
  index[tokens - 1] = -1;
  const std::string place = "got -1 at " + std::to_string(tokens - 1);
  run_error("embedding", ErrorCode::option, place.c_str(), [&](auto& ops, auto& ctx) {
    return ops.embedding(ctx, {w.data(), index.data(), y.data(), dtype_of<T>(), tokens, D, V});
  });
  run_error("embedding_backward", ErrorCode::option, place.c_str(), [&](auto& ops, auto& ctx) {
    return ops.embedding_backward(ctx, {dy.data(), index.data(), dw.data(), dtype_of<T>(), tokens, D, V});
  });
}

template <class T>
void test_adamw(int64_t n) {
  const std::vector<T> start = normals<T>(n, 30), g = normals<T>(n, 31);
  std::vector<double> wp(start.begin(), start.end()), wm(n), wv(n);
  for (int step = 1; step <= 3; ++step)
    for (int64_t i = 0; i < n; ++i) {
      const double grad = static_cast<double>(g[i]) * step;
      wp[i] *= 1 - 1e-2 * 0.1;
      wm[i] = 0.9 * wm[i] + 0.1 * grad;
      wv[i] = 0.999 * wv[i] + 0.001 * grad * grad;
      wp[i] -= 1e-2 / (1 - std::pow(0.9, step)) * wm[i] / (std::sqrt(wv[i] / (1 - std::pow(0.999, step))) + 1e-8);
    }
  std::vector<T> p(n), m(n), v(n);
  run_op(
      "adamw", {output(p), output(m), output(v)},
      [&](auto& ops, auto& ctx) {
        p = start;
        m.assign(n, T(0));
        v.assign(n, T(0));
        Status status{};
        for (int64_t step = 1; step <= 3; ++step) {
          std::vector<T> scaled = g;
          for (T& x : scaled) x *= static_cast<T>(step);
          status = ops.adamw(
              ctx, {p.data(), scaled.data(), m.data(), v.data(), dtype_of<T>(), n, step, 1e-2, 0.9, 0.999, 1e-8, 0.1});
        }
        return status;
      },
      [&](auto what) {
        expect_close(p, wp, what + " p");
        expect_close(m, wm, what + " m", 2);
        expect_close(v, wv, what + " v", 2);
      });
}

template <class T>
void test_sgd(int64_t n, double momentum) {
  const std::vector<T> start = normals<T>(n, 32), g = normals<T>(n, 33);
  std::vector<double> wp(start.begin(), start.end()), wb(n);
  for (int step = 1; step <= 3; ++step)
    for (int64_t i = 0; i < n; ++i) {
      const double grad = static_cast<double>(g[i]) + 0.1 * wp[i];
      wb[i] = step == 1 ? grad : momentum * wb[i] + grad;
      wp[i] -= 0.05 * (momentum > 0 ? wb[i] : grad);
    }
  std::vector<T> p(n), buffer(n);
  run_op(
      "sgd", {output(p), output(buffer)},
      [&](auto& ops, auto& ctx) {
        p = start;
        Status status{};
        for (int64_t step = 1; step <= 3; ++step)
          status = ops.sgd(ctx, {p.data(), g.data(), momentum > 0 ? buffer.data() : nullptr, dtype_of<T>(), n, step,
                                 0.05, momentum, 0.1});
        return status;
      },
      [&](auto what) { expect_close(p, wp, what); });
}

template <class T>
void test_all() {
  for (Rows s : kRows) {
    test_rmsnorm<T>(s);
    test_layernorm<T>(s);
    test_softmax<T>(s, false);
    test_softmax<T>(s, true);
    test_cross_entropy<T>(s);
  }
  test_non_finite_rows<T>();
  test_cross_entropy_of_a_large_logit<T>();
  test_embedding<T>(0, 4, 3);
  test_embedding<T>(1, 1, 1);
  test_embedding<T>(300, 33, 11);
  test_embedding<T>(2000, 64, 5000);
  for (int64_t n : {0, 1, 7, 40001}) {
    test_adamw<T>(n);
    test_sgd<T>(n, 0);
    test_sgd<T>(n, 0.9);
  }
}

}  // namespace

int main() {
  test_all<float>();
  test_all<double>();
  return report("layer ops");
}

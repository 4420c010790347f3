// The optimizers: each in plain loops, with its cases, small ones and one of a model's size.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "case.h"

namespace st_moe::test {
namespace {

bool skipped(Problem& p) {
  return p.has("norm") && !std::isfinite(p["norm"][0]);
}

void adamw(const AdamwArgs& a, Problem& p) {
  if (skipped(p)) return;
  const double step = static_cast<double>(a.step);
  for (int64_t i = 0; i < a.size; ++i) {
    double &w = p["p"][i], &m = p["m"][i], &v = p["v"][i];
    const double g = p["g"][i];
    m = a.beta1 * m + (1 - a.beta1) * g;
    v = a.beta2 * v + (1 - a.beta2) * g * g;
    w -= a.lr * a.weight_decay * w;
    w -= a.lr * m / (1 - std::pow(a.beta1, step)) / (std::sqrt(v / (1 - std::pow(a.beta2, step))) + a.eps);
  }
}

void sgd(const SgdArgs& a, Problem& p) {
  if (skipped(p)) return;
  for (int64_t i = 0; i < a.size; ++i) {
    double g = p["g"][i] + a.weight_decay * p["p"][i];
    if (p.has("buffer")) g = p["buffer"][i] = a.step == 1 ? g : a.momentum * p["buffer"][i] + g;
    p["p"][i] -= a.lr * g;
  }
}

void lion(const LionArgs& a, Problem& p) {
  if (skipped(p)) return;
  for (int64_t i = 0; i < a.size; ++i) {
    double &w = p["p"][i], &m = p["m"][i];
    const double g = p["g"][i], blended = a.beta1 * m + (1 - a.beta1) * g;
    w -= a.lr * (static_cast<double>((blended > 0) - (blended < 0)) + a.weight_decay * w);
    m = a.beta2 * m + (1 - a.beta2) * g;
  }
}

void ema(const EmaArgs& a, Problem& p) {
  for (int64_t i = 0; i < a.size; ++i) p["average"][i] = a.decay * p["average"][i] + (1 - a.decay) * p["p"][i];
}

double mean_square(const std::vector<double>& x) {
  double sum = 0;
  for (double value : x) sum += value * value;
  return sum / static_cast<double>(x.size());
}

void adafactor(const AdafactorArgs& a, Problem& p) {
  std::vector<double>&w = p["p"], &g = p["g"], u(w.size());
  if (u.empty() || skipped(p)) return;
  const double blend = std::pow(static_cast<double>(a.step), a.decay_rate);
  const auto add = [&](double& moment, double value) { moment = (1 - blend) * moment + blend * (value + a.eps1); };
  const auto at = [&](int64_t t, int64_t i, int64_t j) { return static_cast<size_t>((t * a.R + i) * a.D + j); };
  for (size_t i = 0; p.has("v") && i < u.size(); ++i) add(p["v"][i], g[i] * g[i]), u[i] = g[i] / std::sqrt(p["v"][i]);
  for (int64_t t = 0; p.has("row") && t < a.T; ++t) {
    double* const row = p["row"].data() + t * a.R;
    double* const col = p["col"].data() + t * a.D;
    std::vector<double> rows(static_cast<size_t>(a.R)), columns(static_cast<size_t>(a.D));
    for (int64_t i = 0; i < a.R; ++i)
      for (int64_t j = 0; j < a.D; ++j) {
        const double square = g[at(t, i, j)] * g[at(t, i, j)];
        rows[static_cast<size_t>(i)] += square / static_cast<double>(a.D);
        columns[static_cast<size_t>(j)] += square / static_cast<double>(a.R);
      }
    double mean = 0;
    for (int64_t i = 0; i < a.R; ++i)
      add(row[i], rows[static_cast<size_t>(i)]), mean += row[i] / static_cast<double>(a.R);
    for (int64_t j = 0; j < a.D; ++j) add(col[j], columns[static_cast<size_t>(j)]);
    for (int64_t i = 0; i < a.R; ++i)
      for (int64_t j = 0; j < a.D; ++j) u[at(t, i, j)] = g[at(t, i, j)] / std::sqrt(row[i] / mean * col[j]);
  }
  const double rate = a.lr * (a.scale != 0 ? std::max(a.eps2, std::sqrt(mean_square(w))) : 1);
  const double clip = std::max(1.0, std::sqrt(mean_square(u)) / a.clip);
  for (size_t i = 0; i < u.size(); ++i) {
    double step = rate * u[i] / clip;
    if (p.has("m")) step = p["m"][i] = a.beta1 * p["m"][i] + (1 - a.beta1) * step;
    w[i] -= a.weight_decay * rate * w[i] + step;
  }
}

// The norm of the gradients of update `step` is a number, or null, or not finite.
void end_by_norm(Case& c, int64_t step) {
  if (step == 2) c.without("norm");
  if (step == 3) c.fill([](Problem& p) { p["norm"][0] = NAN; });
  if (step == 100) c.fill([](Problem& p) { p["norm"][0] = -INFINITY; });
}

// Blocks of rows and of elements, long rows and tall matrices, experts, nothing.
void add_adafactor(Table& table, DType dtype) {
  const int64_t shapes[][3] = {{1, 0, 5}, {1, 1, 7}, {1, 65, 300}, {3, 400, 70}, {2, 5, 20000}, {1, 9000, 3}};
  for (const auto& [T, R, D] : shapes)
    for (const bool factored : {true, false})
      for (int64_t step : {1, 2, 3, 50, 100}) {
        const bool first = step == 2;  // without clipping, scale and the rest then
        Case& c = table
                      .add(AdafactorArgs{.dtype = dtype,
                                         .T = T,
                                         .R = R,
                                         .D = D,
                                         .step = step,
                                         .lr = 1e-2,
                                         .decay_rate = -0.8,
                                         .eps1 = 1e-30,
                                         .eps2 = step == 1 ? 1e-3 : 5,
                                         .clip = first ? 3 : 0.2,
                                         .beta1 = 0.9,
                                         .weight_decay = first ? 0 : 0.1,
                                         .scale = first ? 0.0 : 1.0})
                      .fill([=](Problem& p) {
                        for (const char* name : {"row", "col", "v"})
                          if (p.has(name))
                            for (double& v : p[name]) v = v * v + 0.01;
                      })
                      .tolerance(4);
        for (const char* name : factored ? std::vector<const char*>{"v"} : std::vector<const char*>{"row", "col"})
          c.without(name);
        if (first) c.without("m");
        end_by_norm(c, step);
      }
}

void add_optimizers(Table& table, DType dtype) {
  for (int64_t size : {0, 1, 7, 777, 40001})
    for (int64_t step : {1, 2, 3, 50, 100}) {
      Case& adamw = table
                        .add(AdamwArgs{.dtype = dtype,
                                       .size = size,
                                       .step = step,
                                       .lr = 1e-2,
                                       .beta1 = 0.9,
                                       .beta2 = 0.999,
                                       .eps = 1e-8,
                                       .weight_decay = 0.1})
                        .fill([](Problem& p) {
                          for (double& v : p["v"]) v *= v;
                        })
                        .tolerance(2);
      end_by_norm(adamw, step);
      const SgdArgs sgd{.dtype = dtype, .size = size, .step = step, .lr = 0.05, .momentum = 0, .weight_decay = 0.1};
      end_by_norm(table.add(sgd).without("buffer"), step);
      SgdArgs with_momentum = sgd;
      with_momentum.momentum = 0.9;
      Case& c = table.add(with_momentum);
      if (step == 1)  // whatever was in the buffer
        c.fill([](Problem& p) { std::fill(p["buffer"].begin(), p["buffer"].end(), NAN); });
      end_by_norm(c, step);
      end_by_norm(table.add(LionArgs{.dtype = dtype,
                                     .size = size,
                                     .step = step,
                                     .lr = 1e-2,
                                     .beta1 = 0.9,
                                     .beta2 = 0.99,
                                     .weight_decay = step == 1 ? 0 : 0.1}),
                  step);
      table.add(EmaArgs{.dtype = dtype, .size = size, .step = step, .decay = step == 1 ? 0 : 0.9});
    }
}

// At the size of the experts of a model, as the benchmark times them.
void add_of_model(Table& table) {
  const ModelSizes& s = table.sizes;
  const int64_t weights = s.E * 3 * s.H * s.D;
  const auto bytes = [&](const auto& args) -> Case& {
    return table.add(args).timed("bytes", 0).tolerance(33, 16).without_differences();
  };
  const Fill squares = [](Problem& p) {
    for (const char* name : {"v", "row", "col"})
      if (p.has(name))
        for (double& v : p[name]) v = v * v + 0.01;
  };
  bytes(
      AdamwArgs{.dtype = DType::f32, .size = weights, .step = 1, .lr = 1e-5, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-9})
      .fill(squares)
      .without("norm");
  bytes(SgdArgs{.dtype = DType::f32, .size = weights, .step = 2, .lr = 1e-5, .momentum = 0.9}).without("norm");
  bytes(LionArgs{.dtype = DType::f32, .size = weights, .step = 2, .lr = 1e-5, .beta1 = 0.9, .beta2 = 0.99})
      .without("norm");
  bytes(EmaArgs{.dtype = DType::f32, .size = weights, .step = 2, .decay = 0.999});
  bytes(AdafactorArgs{.dtype = DType::f32,
                      .T = s.E,
                      .R = 3 * s.H,
                      .D = s.D,
                      .step = 1,
                      .lr = 1e-5,
                      .decay_rate = -0.8,
                      .eps1 = 1e-30,
                      .eps2 = 1e-3,
                      .clip = 1,
                      .beta1 = 0.9,
                      .scale = 1})
      .fill(squares)
      .without("v")
      .without("norm");
}

}  // namespace

void optimizers(Table& table) {
  table.loop(adamw), table.loop(sgd), table.loop(lion), table.loop(ema), table.loop(adafactor);
  for (DType dtype : kReals) add_optimizers(table, dtype), add_adafactor(table, dtype);
  add_of_model(table);
}

}  // namespace st_moe::test

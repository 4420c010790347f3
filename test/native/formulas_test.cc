#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "core/formulas.h"

// The float32 formulas against the C library in double precision, over a dense sweep of each one's range.
namespace {

using st_moe::Precision;

int failures = 0;

void expect(bool ok, const char* what, double got, double bound) {
  if (ok) return;
  ++failures;
  std::printf("FAIL %s: %.9g, bound %.9g\n", what, got, bound);
}

double ulp_of(double value) {
  const float magnitude = std::fabs(static_cast<float>(value));
  return static_cast<double>(std::nextafter(magnitude, std::numeric_limits<float>::infinity())) - magnitude;
}

// The largest error of f on [low, high], divided by scale(x, wanted).
template <class F, class Wanted, class ScaleBy>
void sweep(const char* name, double low, double high, double bound, F f, Wanted wanted, ScaleBy scale_by) {
  double worst = 0;
  const int steps = 2000000;
  for (int i = 0; i <= steps; ++i) {
    const float x = static_cast<float>(low + (high - low) * i / steps);
    const double want = wanted(static_cast<double>(x));
    const double error = std::fabs(static_cast<double>(f(x)) - want) / scale_by(static_cast<double>(x), want);
    if (!(error <= worst)) worst = error;
  }
  std::printf("%-24s [%g, %g]  %.3g\n", name, low, high, worst);
  expect(worst <= bound, name, worst, bound);
}

double cdf(double z) {
  return 0.5 * std::erfc(-z * std::sqrt(0.5));
}
double pdf(double z) {
  return std::exp(-0.5 * z * z) / std::sqrt(2 * std::acos(-1.0));
}

void sweeps() {
  const auto ulp = [](double, double want) { return ulp_of(want); };
  const auto absolute = [](double, double) { return 1.0; };
  const auto by_x = [](double x, double) { return std::fmax(std::fabs(x), 1e-30); };
  const auto relative = [](double, double want) { return std::fabs(want) + 1e-37; };
  const auto exp_f = [](float x) { return st_moe::exp_of(x); };
  const auto exp_d = [](double x) { return std::exp(x); };
  sweep("exp (ulp)", -87.3, 88.7, 1.5, exp_f, exp_d, ulp);
  sweep("exp (ulp)", -1, 1, 1.5, exp_f, exp_d, ulp);
  sweep("exp, subnormal (ulp)", -104.5, -87.3, 1.5, exp_f, exp_d, ulp);
  const auto tanh_f = [](float x) { return st_moe::tanh_of(x); };
  const auto tanh_d = [](double x) { return std::tanh(x); };
  sweep("tanh (ulp)", -10, 10, 2, tanh_f, tanh_d, ulp);
  sweep("tanh (ulp)", -1e-3, 1e-3, 2, tanh_f, tanh_d, ulp);
  sweep(
      "sigmoid (relative)", -87, 20, 3e-7, [](float x) { return st_moe::sigmoid(x); },
      [](double x) { return 1 / (1 + std::exp(-x)); }, relative);
  sweep(
      "sigmoid_grad (relative)", -80, 80, 4e-7, [](float x) { return st_moe::sigmoid_grad(x); },
      [](double x) { return 1 / (2 + std::exp(x) + std::exp(-x)); }, relative);
  sweep(
      "silu_grad", -100, 100, 3e-7, [](float x) { return st_moe::silu_grad(x); },
      [](double x) { return (1 + x / (1 + std::exp(x))) / (1 + std::exp(-x)); }, absolute);
  sweep(
      "gelu (relative)", -5, -1e-3, 4e-6, [](float x) { return st_moe::gelu(x); }, [](double x) { return x * cdf(x); },
      relative);
  sweep(
      "gelu (over |z|)", -15, 15, 1.4e-7, [](float x) { return st_moe::gelu(x); }, [](double x) { return x * cdf(x); },
      by_x);
  sweep(
      "gelu_grad", -15, 15, 1.6e-7, [](float x) { return st_moe::gelu_grad(x); },
      [](double x) { return cdf(x) + x * pdf(x); }, absolute);
}

// Of all positive numbers, by their bits.
void sweep_logarithms() {
  double log = 0, log1p = 0;
  for (uint32_t bits = 1; bits < 0x7f800000u; bits += 1009) {
    float x;
    std::memcpy(&x, &bits, 4);
    const double want = std::log(static_cast<double>(x)), error = static_cast<double>(st_moe::log_of(x)) - want;
    log = std::fmax(log, std::fabs(error) / ulp_of(want));
    if (x > 1) continue;
    const double above = std::log1p(static_cast<double>(x));
    log1p = std::fmax(log1p, std::fabs(static_cast<double>(st_moe::log1p_of_fraction(x)) - above) / ulp_of(above));
  }
  expect(log < 1, "log (ulp)", log, 1);
  expect(log1p < 1, "log1p (ulp)", log1p, 1);
  sweep(
      "log near 1 (ulp)", 0.7, 1.5, 1, [](float x) { return st_moe::log_of(x); }, [](double x) { return std::log(x); },
      [](double, double want) { return ulp_of(want); });
}

// Against the C library, in double; its results that are no numbers, infinite or 0 exactly.
void sweep_pow() {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  double worst = 0;
  const auto compare = [&](float x, float y) {
    const double want = std::pow(static_cast<double>(x), static_cast<double>(y));
    const float got = st_moe::pow_of(x, y), rounded = static_cast<float>(want);
    const bool is_number = std::isfinite(rounded) && rounded != 0;
    if (is_number) worst = std::fmax(worst, std::fabs(static_cast<double>(got) - want) / ulp_of(want));
    const bool is_same =
        std::isnan(rounded) ? std::isnan(got) : got == rounded && std::signbit(got) == std::signbit(rounded);
    if (!is_number && !is_same) std::printf("pow(%a, %a): %a, not %a\n", x, y, got, rounded);
    expect(is_number || is_same, "pow", static_cast<double>(got), want);
  };
  const float special[] = {0.0f, 1e-45f, 1e-5f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 0x1p23f + 1, 0x1p24f, 1e38f, inf, nan};
  for (const float x : special)
    for (const float y : special)
      for (const float sign : {1.0f, -1.0f}) {
        compare(x, sign * y);
        compare(-x, sign * y);
      }
  for (int i = 0; i < 3000; ++i)
    for (int j = -300; j <= 300; ++j) {
      const float x = std::ldexp(1.0f + static_cast<float>(i) / 3000, i % 41 - 20);
      compare(j % 3 == 0 ? -x : x, static_cast<float>(j) / static_cast<float>(1 << i % 5));
    }
  std::printf("%-24s %.3g\n", "pow (ulp)", worst);
  expect(worst < 0.502, "pow (ulp)", worst, 0.502);
}

// Values over |z| and slopes of the functions that have a form for bf16.
template <Precision precision>
void sweep_slopes(const char* of, double bound) {
  const auto check = [&](const char* name, double limit, auto f, auto value, auto slope) {
    std::printf("%s, over |z| and the slope:\n", of);
    sweep(
        name, -limit, limit, bound, [=](float x) { return f(x).value; }, value,
        [](double x, double) { return std::fmax(std::fabs(x), 1e-30); });
    sweep(name, -limit, limit, bound, [=](float x) { return f(x).slope; }, slope, [](double, double) { return 1.0; });
  };
  check(
      "gelu_with_slope", 15, [](float x) { return st_moe::gelu_with_slope<precision>(x); },
      [](double x) { return x * cdf(x); }, [](double x) { return cdf(x) + x * pdf(x); });
  check(
      "silu_with_slope", 100, [](float x) { return st_moe::silu_with_slope<precision>(x); },
      [](double x) { return x / (1 + std::exp(-x)); },
      [](double x) { return (1 + x / (1 + std::exp(x))) / (1 + std::exp(-x)); });
  const auto tanh_argument = [](double x) { return std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); };
  check(
      "gelu_tanh_with_slope", 20, [](float x) { return st_moe::gelu_tanh_with_slope<precision>(x); },
      [=](double x) { return x / 2 * (1 + std::tanh(tanh_argument(x))); },
      [=](double x) {
        const double t = std::tanh(tanh_argument(x));
        return (1 + t) / 2 + x / 2 * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
      });
}

// Relative to the value, as rounding to bf16 is: where values are small too.
void sweep_bf16() {
  constexpr Precision bf16 = Precision::bf16;
  const auto relative = [](double, double want) { return std::fabs(want) + 1e-37; };
  sweep(
      "exp2_bf16 (relative)", -126, 127, 7.6e-5, [](float x) { return st_moe::exp2_bf16(x); },
      [](double x) { return std::exp2(x); }, relative);
  sweep(
      "exp2_bf16 of 0 and less", -382, -126, 2e-38, [](float x) { return st_moe::exp2_bf16(x); },
      [](double) { return 0.0; }, [](double, double) { return 1.0; });
  sweep(
      "bf16: gelu (relative)", -6, 15, 1.3e-4, [](float x) { return st_moe::gelu_with_slope<bf16>(x).value; },
      [](double x) { return x * cdf(x); }, relative);
  sweep(
      "bf16: silu (relative)", -80, 20, 1e-4, [](float x) { return st_moe::silu_with_slope<bf16>(x).value; },
      [](double x) { return x / (1 + std::exp(-x)); }, relative);
}

template <class T>
bool like(T got, T want) {
  return std::isnan(want) ? std::isnan(got) : got == want;
}

template <Precision precision, class T>
void slope_limits(const char* type) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto check = [&](const char* name, auto f) {
    const auto same = [&](T z, T value, T slope) {
      const st_moe::ValueAndSlope<T> got = f(z);
      std::printf(like(got.value, value) && like(got.slope, slope) ? "" : "%s of %g: ", type, static_cast<double>(z));
      expect(like(got.value, value), name, static_cast<double>(got.value), static_cast<double>(value));
      expect(like(got.slope, slope), name, static_cast<double>(got.slope), static_cast<double>(slope));
    };
    same(inf, inf, 1);
    same(-inf, 0, 0);
    for (const T z : {nan, -nan}) same(z, nan, nan);
  };
  check("gelu_with_slope", [](T z) { return st_moe::gelu_with_slope<precision>(z); });
  check("silu_with_slope", [](T z) { return st_moe::silu_with_slope<precision>(z); });
  check("gelu_tanh_with_slope", [](T z) { return st_moe::gelu_tanh_with_slope<precision>(z); });
}

template <class T>
void limits(const char* type) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto same = [&](const char* what, T got, T want) {
    const bool ok = like(got, want);
    if (!ok) std::printf("%s: ", type);
    expect(ok, what, static_cast<double>(got), static_cast<double>(want));
  };
  same("exp(inf)", st_moe::exp_of(inf), inf);
  same("exp(-inf)", st_moe::exp_of(-inf), 0);
  same("exp(1000)", st_moe::exp_of(T(1000)), inf);
  same("exp(-1000)", st_moe::exp_of(T(-1000)), 0);
  same("exp(0)", st_moe::exp_of(T(0)), 1);
  same("log(0)", st_moe::log_of(T(0)), -inf);
  same("log(-0)", st_moe::log_of(T(-0.0)), -inf);
  same("log(1)", st_moe::log_of(T(1)), 0);
  same("log(inf)", st_moe::log_of(inf), inf);
  for (const T x : {T(-1), -inf, nan}) same("log of no positive number", st_moe::log_of(x), nan);
  same("softplus(inf)", st_moe::softplus(inf), inf);
  same("softplus(-inf)", st_moe::softplus(-inf), 0);
  same("tanh(inf)", st_moe::tanh_of(inf), 1);
  same("tanh(-inf)", st_moe::tanh_of(-inf), -1);
  same("sigmoid(inf)", st_moe::sigmoid(inf), 1);
  same("sigmoid(-inf)", st_moe::sigmoid(-inf), 0);
  same("silu(inf)", st_moe::silu(inf), inf);
  same("silu(-inf)", st_moe::silu(-inf), 0);
  same("silu_grad(inf)", st_moe::silu_grad(inf), 1);
  same("silu_grad(-inf)", st_moe::silu_grad(-inf), 0);
  same("gelu(inf)", st_moe::gelu(inf), inf);
  same("gelu(-inf)", st_moe::gelu(-inf), 0);
  same("gelu_grad(inf)", st_moe::gelu_grad(inf), 1);
  same("gelu_grad(-inf)", st_moe::gelu_grad(-inf), 0);
  for (const T got :
       {st_moe::exp_of(nan), st_moe::tanh_of(nan), st_moe::sigmoid(nan), st_moe::silu(nan), st_moe::silu_grad(nan),
        st_moe::sigmoid_grad(nan), st_moe::gelu(nan), st_moe::gelu_grad(nan), st_moe::softplus(nan)})
    same("of NaN", got, nan);
  same("relu of NaN", st_moe::relu(nan), nan);
  for (int i = -900; i <= 900; ++i) {
    const T z = T(i) / T(100);
    const st_moe::ValueAndSlope<T> at = st_moe::gelu_with_slope(z);
    same("gelu_with_slope value", at.value, st_moe::gelu(z));
    same("gelu_with_slope slope", at.slope, st_moe::gelu_grad(z));
  }
  expect(!st_moe::routed(T(0.5), T(0.1), T(0.2), T(1e-9)) && st_moe::routed(T(0.49), T(0.1), T(0.2), T(1e-9)), "routed",
         0, 0);
  expect(st_moe::routed(T(0.99), T(0.1), T(0), T(1e-9)), "routed with threshold 0", 0, 0);
  for (const T threshold : {T(0), T(0.2)})
    expect(!st_moe::routed(T(0), T(0), threshold, T(1e-9)), "a gate of 0 is never routed", 0, 0);
  expect(std::fabs(st_moe::gumbel(T(0)) + T(std::log(20 * std::log(10.0)))) < T(1e-6), "gumbel(0)", 0, 0);
}

}  // namespace

int main() {
  sweeps();
  sweep_logarithms();
  sweep_pow();
  sweep_slopes<Precision::full>("full", 4e-7);
  sweep_slopes<Precision::bf16>("bf16", 8e-5);
  sweep_bf16();
  limits<float>("float");
  limits<double>("double");
  slope_limits<Precision::full, float>("float");
  slope_limits<Precision::full, double>("double");
  slope_limits<Precision::bf16, float>("bf16");
  std::printf(failures ? "%d failures\n" : "formulas: ok\n", failures);
  return failures != 0;
}

#include <algorithm>
#include <limits>

#include "core/convert.h"
#include "core/philox.h"
#include "variants.h"

// Creation, copies, element-wise ops and reductions against plain loops.
using namespace st_moe;
using namespace st_moe::test;

namespace {

const int64_t kSizes[] = {0, 1, 2, 3, 5, 31, 64, 100, 1027, 16384, 16385, 70001};

void test_fill() {
  for (int64_t n : kSizes) {
    std::vector<float> f(n);
    run_op(
        "full f32", {output(f)}, [&](auto& ops, auto& ctx) { return ops.full(ctx, {f.data(), DType::f32, n, 0.1}); },
        [&](auto what) { expect(std::count(f.begin(), f.end(), 0.1f) == n, what); });
    std::vector<int32_t> i(n);
    run_op(
        "full i32", {output(i)}, [&](auto& ops, auto& ctx) { return ops.full(ctx, {i.data(), DType::i32, n, -3e9}); },
        [&](auto what) { expect(std::count(i.begin(), i.end(), INT32_MIN) == n, what); });
    std::vector<uint16_t> b(n);
    run_op(
        "full bf16", {output(b)}, [&](auto& ops, auto& ctx) { return ops.full(ctx, {b.data(), DType::bf16, n, 1.5}); },
        [&](auto what) { expect(std::count(b.begin(), b.end(), 0x3fc0) == n, what); });
  }
}

template <class T>
void test_uniform() {
  for (int64_t n : kSizes) {
    std::vector<T> y(n);
    const RandomArgs args{y.data(), dtype_of<T>(), n, Distribution::uniform, -1.5, 2.5, 42, 7};
    run_op(
        "uniform", {output(y)}, [&](auto& ops, auto& ctx) { return ops.random(ctx, args); },
        [&](auto what) {
          for (int64_t i = 0; i < n; ++i) {
            const double u = sizeof(T) == 4 ? static_cast<double>(uniform24(philox_word(42, 7, i)))
                                            : uniform53(philox_word(42, 7, 2 * i), philox_word(42, 7, 2 * i + 1));
            expect(y[i] == static_cast<T>(std::fma(4.0, u, -1.5)), what, static_cast<double>(y[i]), u);
          }
        });
  }
  std::vector<T> y(300000);
  const T b = std::nextafter(T(1), T(2));
  const RandomArgs narrow{y.data(), dtype_of<T>(), 300000, Distribution::uniform, 1.0, static_cast<double>(b), 1, 1};
  run_op(
      "uniform below b", {output(y)}, [&](auto& ops, auto& ctx) { return ops.random(ctx, narrow); },
      [&](auto what) { expect(std::count(y.begin(), y.end(), T(1)) == 300000, what); });
}

template <class T>
void test_normal() {
  std::vector<T> y(200001), prefix(1001);
  RandomArgs args{y.data(), dtype_of<T>(), 200001, Distribution::normal, 0.5, 2, 3, 4};
  run_op(
      "normal", {output(y)}, [&](auto& ops, auto& ctx) { return ops.random(ctx, args); },
      [&](auto what) {
        double sums[4] = {};
        for (T v : y)
          for (int p = 0; p < 4; ++p) sums[p] += std::pow((static_cast<double>(v) - 0.5) / 2, p + 1) / 200001;
        expect(std::fabs(sums[0]) < 0.01 && std::fabs(sums[1] - 1) < 0.02 && std::fabs(sums[2]) < 0.05 &&
                   std::fabs(sums[3] - 3) < 0.1,
               what + ": moments", sums[0], sums[3]);
      });
  args.out = prefix.data();
  args.size = 1001;
  run_op(
      "normal", {output(prefix)}, [&](auto& ops, auto& ctx) { return ops.random(ctx, args); },
      [&](auto what) {
        expect(std::memcmp(prefix.data(), y.data(), 1001 * sizeof(T)) == 0, what + ": independent of the size");
      });
}

// Every pair of dtypes, by way of double where that is exact.
void test_convert() {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> values{0,    -0.0,         1,     -2.5, 65504, 65520, 1e-7, 6e-8, 3e38,
                             -3e9, 2147483647.0, 1e300, inf,  -inf,  nan};
  for (double v : normals<double>(40000, 1)) values.push_back(v * 100);
  const int64_t n = static_cast<int64_t>(values.size());
  const auto read = [](DType dtype, const void* data, int64_t i) -> double {
    switch (dtype) {
      case DType::f32: return static_cast<const float*>(data)[i];
      case DType::f64: return static_cast<const double*>(data)[i];
      case DType::bf16: return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
      case DType::f16: return f16_to_float(static_cast<const uint16_t*>(data)[i]);
      default: return static_cast<const int32_t*>(data)[i];
    }
  };
  for (int in = 0; in < kDTypeCount; ++in)
    for (int out = 0; out < kDTypeCount; ++out) {
      std::vector<double> source(n), result(n);  // room for any dtype
      const OpTable& first = variants().back().op_table();
      const DType in_dtype = static_cast<DType>(in), out_dtype = static_cast<DType>(out);
      first.convert(Context{1, nullptr}, {values.data(), source.data(), DType::f64, in_dtype, n});
      const Output bytes{result.data(), n * dtype_size(out_dtype)};
      const std::string name = std::string("convert ") + dtype_name(in_dtype) + " to " + dtype_name(out_dtype);
      run_op(
          name, {bytes},
          [&](auto& ops, auto& ctx) {
            return ops.convert(ctx, {source.data(), result.data(), in_dtype, out_dtype, n});
          },
          [&](auto what) {
            for (int64_t i = 0; i < n; ++i) {
              const double from = read(in_dtype, source.data(), i), got = read(out_dtype, result.data(), i);
              double want = from;
              if (out_dtype == DType::f32) want = static_cast<float>(from);
              if (out_dtype == DType::bf16) want = bf16_to_float(float_to_bf16(static_cast<float>(from)));
              if (out_dtype == DType::f16) want = f16_to_float(float_to_f16(static_cast<float>(from)));
              if (out_dtype == DType::i32)
                want = std::isnan(from) ? 0 : std::trunc(std::fmin(std::fmax(from, -2147483648.0), 2147483647.0));
              expect(std::isnan(want) ? std::isnan(got) : got == want, what, got, want);
            }
          });
    }
}

template <class T>
void copy_case(DType dtype, std::vector<int64_t> shape, std::vector<int> order, int64_t offset) {
  StridedCopyArgs args{};
  args.rank = static_cast<int32_t>(shape.size());
  args.dtype = dtype;
  int64_t size = 1;
  for (int64_t s : shape) size *= s;
  std::vector<T> in(size + offset), out(size + 2);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<T>(i * 7 + 1);
  int64_t stride = 1;
  for (int d = args.rank - 1; d >= 0; --d) {
    args.shape[d] = shape[d];
    args.in_strides[d] = stride;
    stride *= shape[d];
  }
  stride = 1;
  for (int d = args.rank - 1; d >= 0; --d) {  // out has its dimensions in `order`
    args.out_strides[order[d]] = stride;
    stride *= shape[order[d]];
  }
  args.in = in.data();
  args.out = out.data();
  args.in_offset = offset;
  args.out_offset = 1;
  run_op(
      "strided_copy", {output(out)}, [&](auto& ops, auto& ctx) { return ops.strided_copy(ctx, args); },
      [&](auto what) {
        bool same = true;
        for (int64_t i = 0; i < size; ++i) {
          int64_t rest = i, from = offset, to = 1;
          for (int d = args.rank - 1; d >= 0; --d) {
            from += rest % shape[d] * args.in_strides[d];
            to += rest % shape[d] * args.out_strides[d];
            rest /= shape[d];
          }
          same = same && out[to] == in[from];
        }
        T untouched;
        std::memset(&untouched, 0xff, sizeof untouched);
        expect(same && out[0] == untouched && out[size + 1] == untouched, what);
      });
}

void test_strided_copy() {
  const std::vector<std::pair<std::vector<int64_t>, std::vector<int>>> cases{
      {{}, {}},
      {{5}, {0}},
      {{100003}, {0}},
      {{0, 3}, {1, 0}},
      {{1, 1}, {1, 0}},
      {{33, 65}, {1, 0}},
      {{300, 257}, {1, 0}},
      {{2, 3, 4}, {2, 0, 1}},
      {{2, 3, 4, 5}, {0, 2, 1, 3}},
      {{3, 40, 50}, {2, 1, 0}},
      {{7, 1, 9, 11}, {3, 2, 1, 0}},
      {{64, 1, 64}, {0, 1, 2}},
      {{70000, 2}, {1, 0}},
      {{2, 70000}, {1, 0}},
      {{2, 2, 2, 2, 2, 2, 2, 2}, {7, 5, 3, 1, 6, 4, 2, 0}}};
  for (const auto& [shape, order] : cases) {
    copy_case<uint16_t>(DType::bf16, shape, order, 0);
    copy_case<uint32_t>(DType::i32, shape, order, 3);
    copy_case<uint64_t>(DType::f64, shape, order, 5);
  }
}

double unary_reference(UnaryKind kind, double x) {
  switch (kind) {
    case UnaryKind::neg: return -x;
    case UnaryKind::exp: return std::exp(x);
    case UnaryKind::log: return std::log(x);
    case UnaryKind::sqrt: return std::sqrt(x);
    case UnaryKind::abs: return std::fabs(x);
    case UnaryKind::square: return x * x;
    case UnaryKind::relu: return x > 0 ? x : 0;
    case UnaryKind::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case UnaryKind::silu: return x / (1 + std::exp(-x));
    case UnaryKind::sigmoid: return 1 / (1 + std::exp(-x));
    case UnaryKind::tanh: return std::tanh(x);
  }
  return 0;
}

template <class T>
void test_unary() {
  for (int k = 0; k < kUnaryKindCount; ++k)
    for (int64_t n : kSizes) {
      const UnaryKind kind = static_cast<UnaryKind>(k);
      std::vector<T> x = normals<T>(n, 5), dy = normals<T>(n, 6), y(n), dx(n);
      if (kind == UnaryKind::log || kind == UnaryKind::sqrt)
        for (T& v : x) v = std::fabs(v) + T(0.125);
      std::vector<double> want(n), slope(n);
      for (int64_t i = 0; i < n; ++i) {
        const double at = static_cast<double>(x[i]), h = 1e-4;
        const auto f = [&](double v) { return unary_reference(kind, v); };
        want[i] = f(at);
        // Fourth order; its own error is 1e-11 or so.
        slope[i] =
            static_cast<double>(dy[i]) * (8 * (f(at + h) - f(at - h)) - (f(at + 2 * h) - f(at - 2 * h))) / (12 * h);
        if ((kind == UnaryKind::relu || kind == UnaryKind::abs) && std::fabs(at) < 3 * h)
          slope[i] = static_cast<double>(dy[i]) * (at > 0 ? 1 : at < 0 ? (kind == UnaryKind::relu ? 0 : -1) : 0);
      }
      const std::string name = "unary " + std::to_string(k);
      run_op(
          name, {output(y)},
          [&](auto& ops, auto& ctx) { return ops.unary(ctx, {x.data(), y.data(), dtype_of<T>(), n, kind}); },
          [&](auto what) { expect_close(y, want, what); });
      run_op(
          name + " backward", {output(dx)},
          [&](auto& ops, auto& ctx) {
            return ops.unary_backward(ctx, {x.data(), dy.data(), dx.data(), dtype_of<T>(), n, kind});
          },
          [&](auto what) { expect_close(dx, slope, what, sizeof(T) == 4 ? 2 : 5e4); });
    }
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> x{nan, 1, inf, -inf}, y(4);
  for (int k = 0; k < kUnaryKindCount; ++k)
    run_op(
        "unary of NaN", {output(y)},
        [&](auto& ops, auto& ctx) {
          return ops.unary(ctx, {x.data(), y.data(), dtype_of<T>(), 4, static_cast<UnaryKind>(k)});
        },
        [&](auto what) { expect(std::isnan(y[0]) && !std::isnan(y[1]), what); });
  // Where relu and abs have a corner they have slope 0; a NaN stays one, and relu selects.
  std::vector<T> corner{0, T(-0.0), 1, -1, nan}, upstream{3, 3, 3, inf, 3}, dx(5);
  const auto backward = [&](UnaryKind kind, const std::vector<T>& want) {
    run_op(
        "corner of unary " + std::to_string(static_cast<int>(kind)), {output(dx)},
        [&](auto& ops, auto& ctx) {
          return ops.unary_backward(ctx, {corner.data(), upstream.data(), dx.data(), dtype_of<T>(), 5, kind});
        },
        [&](auto what) {
          for (size_t i = 0; i < 5; ++i)
            expect(dx[i] == want[i] || (std::isnan(dx[i]) && std::isnan(want[i])), what, dx[i], want[i]);
        });
  };
  backward(UnaryKind::relu, {0, 0, 3, 0, 3});
  backward(UnaryKind::abs, {0, 0, 3, -inf, nan});
}

template <class T>
T apply(BinaryKind kind, T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    const uint32_t x = static_cast<uint32_t>(a), y = static_cast<uint32_t>(b);
    return static_cast<T>(kind == BinaryKind::add ? x + y : kind == BinaryKind::sub ? x - y : x * y);
  } else {
    return kind == BinaryKind::add ? a + b : kind == BinaryKind::sub ? a - b : kind == BinaryKind::mul ? a * b : a / b;
  }
}

// a_dims and b_dims: 1 where the operand has the dimension, 0 where it is broadcast.
template <class T>
void binary_case(DType dtype, std::vector<int64_t> shape, std::vector<int> a_dims, std::vector<int> b_dims) {
  BinaryArgs args{};
  args.dtype = dtype;
  args.rank = static_cast<int32_t>(shape.size());
  int64_t size = 1, a_size = 1, b_size = 1;
  for (int d = args.rank - 1; d >= 0; --d) {
    args.shape[d] = shape[d];
    args.a_strides[d] = a_dims[d] ? a_size : 0;
    args.b_strides[d] = b_dims[d] ? b_size : 0;
    size *= shape[d];
    a_size *= a_dims[d] ? shape[d] : 1;
    b_size *= b_dims[d] ? shape[d] : 1;
  }
  std::vector<T> a(a_size), b(b_size), y(size);
  Source source(9);
  for (T& v : a) v = static_cast<T>(source.normal() * (std::is_integral_v<T> ? 1e9 : 1));
  for (T& v : b) v = static_cast<T>(source.normal() * (std::is_integral_v<T> ? 1e9 : 1));
  for (int k = 0; k < (std::is_integral_v<T> ? 3 : 4); ++k) {
    args.kind = static_cast<BinaryKind>(k);
    const auto verify = [&](const std::string& what) {
      bool same = true;
      for (int64_t i = 0; i < size; ++i) {
        int64_t rest = i, at_a = 0, at_b = 0;
        for (int d = args.rank - 1; d >= 0; --d) {
          at_a += rest % shape[d] * args.a_strides[d];
          at_b += rest % shape[d] * args.b_strides[d];
          rest /= shape[d];
        }
        same = same && y[i] == apply(args.kind, a[at_a], b[at_b]);
      }
      expect(same, what);
    };
    args.a = a.data();
    args.b = b.data();
    args.y = y.data();
    run_op("binary", {output(y)}, [&](auto& ops, auto& ctx) { return ops.binary(ctx, args); }, verify);
    if (a_size != size) continue;
    run_op(
        "binary in place", {output(y)},
        [&](auto& ops, auto& ctx) {
          std::copy(a.begin(), a.end(), y.begin());
          args.a = y.data();
          return ops.binary(ctx, args);
        },
        verify);
  }
}

template <class T>
void test_binary(DType dtype) {
  for (int64_t n : kSizes) binary_case<T>(dtype, {n}, {1}, {1});
  for (int64_t n : kSizes) binary_case<T>(dtype, {n}, {1}, {0});
  binary_case<T>(dtype, {}, {}, {});
  binary_case<T>(dtype, {1000}, {0}, {1});
  binary_case<T>(dtype, {1000}, {0}, {0});
  binary_case<T>(dtype, {130, 257}, {1, 1}, {0, 1});
  binary_case<T>(dtype, {130, 257}, {1, 1}, {1, 0});
  binary_case<T>(dtype, {130, 257}, {1, 0}, {0, 1});
  binary_case<T>(dtype, {3, 40000}, {1, 1}, {0, 1});
  binary_case<T>(dtype, {20000, 3}, {1, 1}, {1, 0});
  binary_case<T>(dtype, {5, 1, 7, 3}, {1, 1, 1, 1}, {1, 1, 0, 1});
  binary_case<T>(dtype, {4, 5, 6, 7}, {0, 1, 0, 1}, {1, 0, 1, 0});
  binary_case<T>(dtype, {4, 0, 6}, {1, 1, 1}, {1, 0, 1});
}

template <class T>
void test_reduce() {
  const int64_t shapes[][3] = {{1, 1, 1},      {1, 0, 1},     {3, 0, 5},     {0, 4, 2},    {5, 3, 1},
                               {1, 100001, 1}, {2, 70000, 1}, {1000, 33, 1}, {1, 1000, 7}, {1, 4097, 300},
                               {3, 130, 1025}, {100, 17, 19}, {1, 1, 9}};
  for (const auto& s : shapes) {
    const std::vector<T> x = normals<T>(s[0] * s[1] * s[2], 11, 0.1);
    std::vector<T> y(s[0] * s[2]);
    std::vector<double> want(s[0] * s[2]);
    for (int64_t o = 0; o < s[0]; ++o)
      for (int64_t a = 0; a < s[1]; ++a)
        for (int64_t i = 0; i < s[2]; ++i)
          want[o * s[2] + i] += 0.5 * static_cast<double>(x[(o * s[1] + a) * s[2] + i]);
    run_op(
        "reduce", {output(y)},
        [&](auto& ops, auto& ctx) {
          return ops.reduce(ctx, {x.data(), y.data(), dtype_of<T>(), s[0], s[1], s[2], 0.5});
        },
        [&](auto what) { expect_close(y, want, what, sizeof(T) == 4 ? 1 : 5); });
  }
  for (int64_t n : kSizes) {
    const std::vector<T> x = normals<T>(n, 12);
    std::vector<T> y(n), want(n);
    std::vector<double> squares(1);
    long double exact = 0;
    for (int64_t i = 0; i < n; ++i) {
      exact += static_cast<long double>(x[i]) * static_cast<long double>(x[i]);
      want[i] = x[i] * T(0.3);
    }
    const std::vector<double> sum{static_cast<double>(exact)};
    run_op(
        "sum_squares", {output(squares)},
        [&](auto& ops, auto& ctx) { return ops.sum_squares(ctx, {x.data(), squares.data(), dtype_of<T>(), n, 1.0}); },
        [&](auto what) { expect_close(squares, sum, what); });
    const std::vector<double> scaled{static_cast<double>(exact) * 0x1p-1000};
    run_op(
        "sum_squares", {output(squares)},
        [&](auto& ops, auto& ctx) {
          return ops.sum_squares(ctx, {x.data(), squares.data(), dtype_of<T>(), n, 0x1p-500});
        },
        [&](auto what) { expect_close(squares, scaled, what + ", scaled"); });
    run_op(
        "scale", {output(y)},
        [&](auto& ops, auto& ctx) {
          std::copy(x.begin(), x.end(), y.begin());
          return ops.scale(ctx, {y.data(), dtype_of<T>(), n, 0.3});
        },
        [&](auto what) { expect(y == want, what); });
  }
}

template <class T>
void test_dropout() {
  for (int64_t n : kSizes)
    for (double p : {0.0, 0.25, 1.0}) {
      const std::vector<T> x = normals<T>(n, 13);
      std::vector<T> y(n), want(n);
      for (int64_t i = 0; i < n; ++i)
        want[i] = static_cast<double>(uniform24(philox_word(8, 9, i))) >= p ? x[i] * static_cast<T>(1 / (1 - p)) : T(0);
      run_op(
          "dropout", {output(y)},
          [&](auto& ops, auto& ctx) { return ops.dropout(ctx, {x.data(), y.data(), dtype_of<T>(), n, p, 8, 9}); },
          [&](auto what) { expect(y == want, what); });
    }
  // An element stays where its draw is p, and goes where p is more by less than the step between draws.
  const std::vector<T> x{1};
  std::vector<T> y(1);
  const double drawn = static_cast<double>(uniform24(philox_word(8, 9, 0)));
  for (double p : {drawn, drawn + 0x1p-26})
    run_op(
        "dropout at the draw", {output(y)},
        [&](auto& ops, auto& ctx) { return ops.dropout(ctx, {x.data(), y.data(), dtype_of<T>(), 1, p, 8, 9}); },
        [&](auto what) { expect((y[0] != 0) == (p == drawn), what, y[0], p - drawn); });
}

template <class T>
void test_topk() {
  const int64_t shapes[][3] = {{0, 4, 2}, {3, 1, 1}, {300, 16, 2}, {50, 33, 33}, {7, 1000, 8}, {4, 5, 0}};
  for (const auto& s : shapes) {
    const int64_t rows = s[0], E = s[1], K = s[2];
    std::vector<T> x = normals<T>(rows * E, 14), value(rows * K), dx(rows * E), dvalue = normals<T>(rows * K, 15);
    for (T& v : x) v = std::round(v * 4) / 4;  // many ties
    for (int64_t i = 0; i < rows * E; i += 97) x[i] = std::numeric_limits<T>::quiet_NaN();
    std::vector<int32_t> index(rows * K);
    run_op(
        "topk", {output(value), output(index)},
        [&](auto& ops, auto& ctx) {
          return ops.topk(ctx, {x.data(), value.data(), index.data(), dtype_of<T>(), rows, E, K});
        },
        [&](auto what) {
          for (int64_t t = 0; t < rows; ++t) {
            std::vector<int32_t> order(E);
            for (int64_t e = 0; e < E; ++e) order[e] = static_cast<int32_t>(e);
            const T* row = x.data() + t * E;
            std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
              if (std::isnan(row[a]) || std::isnan(row[b])) return std::isnan(row[a]) && !std::isnan(row[b]);
              return row[a] > row[b];
            });
            for (int64_t k = 0; k < K; ++k) {
              const T v = value[t * K + k], w = row[order[k]];
              expect(index[t * K + k] == order[k] && (v == w || (std::isnan(v) && std::isnan(w))), what,
                     index[t * K + k], order[k]);
            }
          }
        });
    run_op(
        "topk_backward", {output(dx)},
        [&](auto& ops, auto& ctx) {
          return ops.topk_backward(ctx, {dvalue.data(), index.data(), dx.data(), dtype_of<T>(), rows, E, K});
        },
        [&](auto what) {
          std::vector<T> want(rows * E);
          for (int64_t t = 0; t < rows; ++t)
            for (int64_t k = 0; k < K; ++k) want[t * E + index[t * K + k]] = dvalue[t * K + k];
          expect(dx == want, what);
        });
  }
}

}  // namespace

int main() {
  test_fill();
  test_uniform<float>();
  test_uniform<double>();
  test_normal<float>();
  test_normal<double>();
  test_convert();
  test_strided_copy();
  test_unary<float>();
  test_unary<double>();
  test_binary<float>(DType::f32);
  test_binary<double>(DType::f64);
  test_binary<int32_t>(DType::i32);
  run_error("div i32", ErrorCode::dtype, "i32", [](auto& ops, auto& ctx) {
    int32_t v = 1;
    BinaryArgs args{&v, &v, &v, DType::i32, BinaryKind::div, 1, {1}, {1}, {1}};
    return ops.binary(ctx, args);
  });
  test_reduce<float>();
  test_reduce<double>();
  test_dropout<float>();
  test_dropout<double>();
  test_topk<float>();
  test_topk<double>();
  return report("ops");
}

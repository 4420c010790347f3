// Problems of a GEMM with their results in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"
#include "core/convert.h"
#include "gemms.h"

namespace st_moe {
using cpu::GemmProblem;

template <class T>
constexpr DType dtype_of = sizeof(T) == 4 ? DType::f32 : DType::f64;

inline double rounded(double x, DType compute) {
  if (compute == DType::bf16) return bf16_to_float(float_to_bf16(static_cast<float>(x)));
  if (compute == DType::f16) return f16_to_float(float_to_f16(static_cast<float>(x)));
  return x;
}

// A value in the 16 bits of a type.
inline uint16_t low_bits(double x, DType compute) {
  return compute == DType::bf16 ? float_to_bf16(static_cast<float>(x)) : float_to_f16(static_cast<float>(x));
}

// A matrix [rows, cols] in a buffer without slack, so that a sanitizer sees any read outside.
template <class T>
struct Operand {
  std::vector<T> data;
  std::vector<uint16_t> low;  // the same in 16 bits, or empty
  std::vector<int32_t> rows;
  int64_t row_stride = 1, col_stride = 1;

  Operand(TestRandom& random, int64_t m, int64_t n, bool transposed, bool gathered, DType compute = dtype_of<T>,
          bool low_transposed = true) {
    const bool has_low = dtype_size(compute) == 2 && (low_transposed || !transposed) && random.below(2);
    const int64_t stored = gathered ? m + 3 : m, padding = has_low && !transposed ? cpu::kLowPadding : 1;
    const int64_t inner = transposed ? stored : n, outer = transposed ? n : stored;
    const int64_t padded = (inner + padding - 1) / padding * padding, stride = padded + random.below(4);
    (transposed ? col_stride : row_stride) = stride;
    data.resize(outer && inner ? static_cast<size_t>((outer - 1) * stride + padded) : 0);
    for (size_t i = 0; i < data.size(); ++i)
      if (padding == 1 || static_cast<int64_t>(i) % stride < inner) data[i] = static_cast<T>(random.real());
    for (T x : data)
      if (has_low) low.push_back(low_bits(static_cast<double>(x), compute));
    for (int64_t i = 0; gathered && i < m; ++i) rows.push_back(static_cast<int32_t>(random.below(stored)));
  }
  cpu::MatrixView<T> view() const {
    const T* from = low.empty() ? data.data() : reinterpret_cast<const T*>(low.data());
    return {from, row_stride, col_stride, rows.empty() ? nullptr : rows.data(), !low.empty()};
  }
  T at(int64_t i, int64_t j) const {
    const int64_t row = rows.empty() ? i : rows[static_cast<size_t>(i)];
    return data[static_cast<size_t>(row * row_stride + j * col_stride)];
  }
};

template <class T>
struct Case {
  int64_t M, N, K, c_stride;
  Operand<T> a, b;
  std::vector<T> bias, initial;
  DType compute;
  bool accumulate, stream;
  std::vector<double> want;  // as C, gaps included

  Case(TestRandom& random, int64_t m, int64_t n, int64_t k, DType compute)
      : M(m),
        N(n),
        K(k),
        c_stride(n + random.below(3)),
        a(random, m, k, random.below(2), random.below(2), compute),
        b(random, k, n, random.below(2), random.below(2), compute, false),
        compute(compute),
        accumulate(random.below(2)),
        stream(random.below(2)) {
    if (random.below(2)) bias.resize(static_cast<size_t>(N));
    for (T& x : bias) x = static_cast<T>(random.real());
    initial.resize(M > 0 ? static_cast<size_t>((M - 1) * c_stride + N) : 0);
    for (T& x : initial) x = static_cast<T>(random.real());
    want.assign(initial.begin(), initial.end());
    for (int64_t i = 0; i < M; ++i)
      for (int64_t j = 0; j < N; ++j) {
        double& c = want[static_cast<size_t>(i * c_stride + j)];
        double value = bias.empty() ? 0 : static_cast<double>(bias[static_cast<size_t>(j)]);
        for (int64_t q = 0; q < K; ++q) value += rounded(a.at(i, q), compute) * rounded(b.at(q, j), compute);
        c = accumulate ? c + value : value;
      }
  }
  GemmProblem<T> problem(std::vector<T>& c) const {
    c = initial;
    GemmProblem<T> p{};
    p.M = M, p.N = N, p.K = K;
    p.a = a.view(), p.b = b.view();
    p.c = c.data(), p.c_stride = c_stride;
    p.bias = bias.empty() ? nullptr : bias.data();
    p.accumulate = accumulate, p.stream = stream;
    return p;
  }
};

}  // namespace st_moe

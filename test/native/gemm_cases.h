// Problems of a GEMM with their results in float64.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"
#include "core/blocks.h"
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

// A value in the 16 bits of a type, and back.
inline uint16_t low_bits(double x, DType type) {
  return type == DType::bf16 ? float_to_bf16(static_cast<float>(x)) : float_to_f16(static_cast<float>(x));
}
inline float low_value(uint16_t bits, DType type) {
  return type == DType::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

// A matrix [rows, cols] in a buffer without slack, so that a sanitizer sees any read outside.
template <class T>
struct Operand {
  std::vector<T> data;
  DType type;
  std::vector<uint16_t> low;   // the same in the 16 bits of the type, or empty
  std::vector<int8_t> levels;  // the same in blocks, with their scales, or empty
  std::vector<uint16_t> scales;
  std::vector<int32_t> rows;
  int64_t row_stride = 1, col_stride = 1;

  // `low_padding`: of rows in 16 bits. Rows of blocks have no gaps, and are not gathered.
  Operand(TestRandom& random, int64_t m, int64_t n, bool transposed, bool gathered, DType type = dtype_of<T>,
          int64_t low_padding = 1)
      : type(type) {
    const bool has_low = dtype_size(type) == 2, blocked = is_blocked(type);
    gathered = gathered && !blocked;
    const int64_t stored = gathered ? m + 3 : m, padding = has_low && !transposed ? low_padding : 1;
    const int64_t inner = transposed ? stored : n, outer = transposed ? n : stored;
    const int64_t padded = (inner + padding - 1) / padding * padding, stride = padded + (blocked ? 0 : random.below(4));
    (transposed ? col_stride : row_stride) = stride;
    data.resize(outer && inner ? static_cast<size_t>((outer - 1) * stride + padded) : 0);
    for (size_t i = 0; i < data.size(); ++i)
      if (padding == 1 || static_cast<int64_t>(i) % stride < inner) data[i] = static_cast<T>(random.real());
    for (T& x : data)
      if (has_low)
        low.push_back(low_bits(static_cast<double>(x), type)), x = static_cast<T>(low_value(low.back(), type));
    if (blocked) make_blocks(outer, inner);
    for (int64_t i = 0; gathered && i < m; ++i) rows.push_back(static_cast<int32_t>(random.below(stored)));
  }
  cpu::MatrixView<T> view() const {
    const T* from = is_blocked(type) ? reinterpret_cast<const T*>(levels.data())
                    : low.empty()    ? data.data()
                                     : reinterpret_cast<const T*>(low.data());
    return {from, row_stride, col_stride, rows.empty() ? nullptr : rows.data(), type, scales.data()};
  }
  T at(int64_t i, int64_t j) const {
    const int64_t row = rows.empty() ? i : rows[static_cast<size_t>(i)];
    return data[static_cast<size_t>(row * row_stride + j * col_stride)];
  }

 private:
  void make_blocks(int64_t outer, int64_t inner) {
    levels.resize(data.size());
    for (int64_t row = 0; row < outer; ++row)
      for (int64_t at = 0; at < inner; at += kBlockElements) {
        const int64_t count = std::min(kBlockElements, inner - at);
        T* x = data.data() + row * inner + at;
        int8_t* q = levels.data() + row * inner + at;
        scales.push_back(quantize_block(
            count, [&](int64_t i) { return static_cast<float>(x[i]); },
            [&](int64_t i, int8_t level) { q[i] = level; }));
        for (int64_t i = 0; i < count; ++i)
          x[i] = static_cast<T>(static_cast<float>(q[i]) * f16_to_float(scales.back()));
      }
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
        a(random, m, k, random.below(2), random.below(2), random.below(2) ? compute_type(compute) : dtype_of<T>,
          cpu::kLowPadding),
        b(random, k, n, random.below(2), random.below(2), stored_type(random)),
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
  static DType compute_type(DType compute) { return dtype_size(compute) == 2 ? compute : dtype_of<T>; }
  static DType stored_type(TestRandom& random) {
    const DType types[] = {DType::f32, DType::f32, DType::bf16, DType::f16, DType::int8};
    return sizeof(T) == 4 ? types[random.below(5)] : DType::f64;
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

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "gemm_cases.h"

using namespace st_moe;
using cpu::Gemm;

namespace {

void run(const Gemm& gemm, int threads, const GemmProblem<float>* problems, int64_t count, DType compute) {
  gemm.f32({threads, gemm.stream}, problems, count, compute);
}
void run(const Gemm& gemm, int threads, const GemmProblem<double>* problems, int64_t count, DType compute) {
  gemm.f64({threads, gemm.stream}, problems, count, compute);
}
void run_serial(const Gemm& gemm, const GemmProblem<float>& problem) {
  gemm.serial_f32(problem);
}
void run_serial(const Gemm& gemm, const GemmProblem<double>& problem) {
  gemm.serial_f64(problem);
}

// Of sums of two bf16 each part is rounded, and the product of the second parts is missing.
template <class T>
double tolerance(DType compute) {
  return compute == kBf16x3 ? 3 * 0x1p-18 : sizeof(T) == 4 ? 1e-6 : 4e-15;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Packed ahead of time or on the way: the same bits.
void test_packed(const Gemm& gemm, const std::vector<Case<float>>& cases, const std::vector<std::vector<float>>& want) {
  for (size_t i = 0; i < cases.size(); ++i) {
    if (!cases[i].b.view().plain()) continue;  // none stored in fewer bits
    std::vector<float> c;
    GemmProblem<float> p = cases[i].problem(c);
    const std::vector<float> packed = gemm.packed_b(p, cases[i].compute);
    if (packed.empty()) continue;
    p.packed_b = packed.data();
    p.b.data = nullptr;
    run(gemm, 2, &p, 1, cases[i].compute);
    check(same_bits(c, want[i]), "%s M %lld N %lld K %lld: packed B changes bits", gemm.isa, (long long)p.M,
          (long long)p.N, (long long)p.K);
  }
}
void test_packed(const Gemm&, const std::vector<Case<double>>&, const std::vector<std::vector<double>>&) {}

// C in 16 bits: the float32 sums, rounded once.
void test_low_c(const Gemm& gemm, const std::vector<Case<float>>& cases) {
  for (const Case<float>& x : cases) {
    if (dtype_size(x.compute) != 2) return;
    std::vector<float> sums;
    GemmProblem<float> p = x.problem(sums);
    p.accumulate = p.stream = false;
    run(gemm, 1, &p, 1, x.compute);
    for (int threads = 1; threads <= 2; ++threads) {
      std::vector<uint16_t> c(sums.size(), 0x1234);
      p.c = reinterpret_cast<float*>(c.data()), p.low_c = true;
      run(gemm, threads, &p, 1, x.compute);
      int64_t bad = 0;
      for (size_t i = 0; i < c.size(); ++i) {
        const bool gap = static_cast<int64_t>(i) % x.c_stride >= x.N;
        bad += c[i] != (gap ? 0x1234 : low_bits(static_cast<double>(sums[i]), x.compute));
      }
      check(bad == 0, "%s %s M %lld N %lld K %lld: %lld elements of C in 16 bits differ", gemm.isa,
            dtype_name(x.compute), (long long)x.M, (long long)x.N, (long long)x.K, (long long)bad);
    }
  }
}
void test_low_c(const Gemm&, const std::vector<Case<double>>&) {}

// Without instructions that make bf16x3 faster, it is float32.
void test_sums(const Gemm& gemm, const std::vector<Case<float>>& cases, const std::vector<std::vector<float>>& got) {
  if (cases[0].compute != kBf16x3) return;
  const auto* bf16 = static_cast<const cpu::Bf16Gemm*>(gemm.stream);
  const bool faster = bf16 && bf16->sums;
  for (size_t i = 0; i < cases.size(); ++i) {
    std::vector<float> c;
    const GemmProblem<float> p = cases[i].problem(c);
    run(gemm, 2, &p, 1, DType::f32);
    if (!faster || p.M * p.N * p.K > 1000)  // a few sums may agree by chance
      check(same_bits(c, got[i]) != faster, "%s: bf16x3 is %s", gemm.isa, faster ? "float32" : "not float32");
  }
}
void test_sums(const Gemm&, const std::vector<Case<double>>&, const std::vector<std::vector<double>>&) {}

// Returns the results.
template <class T>
std::vector<std::vector<T>> test_batch(const Gemm& gemm, const std::vector<Case<T>>& cases) {
  std::vector<std::vector<T>> first;
  for (int threads : {1, 2, 3, 64}) {
    std::vector<std::vector<T>> c(cases.size());
    std::vector<GemmProblem<T>> problems;
    for (size_t i = 0; i < cases.size(); ++i) problems.push_back(cases[i].problem(c[i]));
    run(gemm, threads, problems.data(), static_cast<int64_t>(problems.size()), cases[0].compute);
    if (threads == 1) first = c;
    for (size_t i = 0; i < cases.size(); ++i) {
      const Case<T>& x = cases[i];
      const double error = relative_error(c[i].data(), x.want.data(), static_cast<int64_t>(c[i].size()));
      check(error < tolerance<T>(x.compute), "%s %s M %lld N %lld K %lld (A %s%s, B %s%s): error %.2e", gemm.isa,
            dtype_name(x.compute), (long long)x.M, (long long)x.N, (long long)x.K, x.a.row_stride == 1 ? "T" : "N",
            x.a.rows.empty() ? "" : "g", x.b.row_stride == 1 ? "T" : "N", x.b.rows.empty() ? "" : "g", error);
      check(same_bits(c[i], first[i]), "%s M %lld N %lld K %lld: %d threads change bits", gemm.isa, (long long)x.M,
            (long long)x.N, (long long)x.K, threads);
    }
  }
  test_packed(gemm, cases, first);
  test_low_c(gemm, cases);
  test_sums(gemm, cases, first);
  if (cases[0].compute == dtype_of<T>) {
    std::vector<T> c;
    run_serial(gemm, cases[0].problem(c));
    check(same_bits(c, first[0]), "%s: gemm_serial differs from gemm", gemm.isa);
  }
  return first;
}

// All instruction sets. The emulated instructions give the bits of the processor's, if it has them.
template <class T>
void test_batches(const std::vector<Gemm>& gemms, const std::vector<Case<T>>& cases) {
  std::vector<std::vector<T>> amx;
  for (const Gemm& gemm : gemms) {
    const std::string name = gemm.isa;
    const std::vector<std::vector<T>> results = test_batch(gemm, cases);
    if (name == "amx") amx = results;
    for (size_t i = 0; name == "amx_emulated" && i < amx.size(); ++i)
      check(same_bits(results[i], amx[i]), "M %lld N %lld K %lld: emulated AMX has other bits", (long long)cases[i].M,
            (long long)cases[i].N, (long long)cases[i].K);
  }
}

template <class T>
void test_shapes(const std::vector<Gemm>& gemms, DType compute, int rounds) {
  TestRandom random{sizeof(T)};
  const auto size = [&](int64_t medium) { return random.below(3) ? random.below(36) : random.below(medium); };
  for (int round = 0; round < rounds; ++round) {
    std::vector<Case<T>> cases;
    for (int64_t i = 1 + random.below(3); i > 0; --i)
      cases.emplace_back(random, size(120), size(150), random.below(4) ? size(100) : random.below(600), compute);
    test_batches(gemms, cases);
  }
  // enough work for several threads, blocks of rows, blocks of k; few rows, and a B that is not in a cache
  const int64_t large[][3] = {{700, 20, 70},    {40, 500, 300},  {351, 65, 257},  {20, 900, 40},
                              {130, 130, 1025}, {4, 2100, 130},  {13, 1100, 261}, {1, 1030, 500},
                              {3, 2060, 137},   {16, 1500, 190}, {335, 150, 513}, {9, 1029, 263}};
  for (const auto& s : large) {
    std::vector<Case<T>> cases;
    cases.emplace_back(random, s[0], s[1], s[2], compute);
    test_batches(gemms, cases);
  }
}

// The bits of an element do not depend on where the matrix ends: a GEMM of fewer rows and columns is a part of a
// larger.
void test_part(const Gemm& gemm, DType compute) {
  TestRandom random{5};
  const int64_t M = 75, N = 70, K = 2100;
  Operand<float> a(random, M, K, false, false), b(random, K, N, true, false);
  const auto product = [&](int64_t rows, int64_t cols) {
    std::vector<float> c(static_cast<size_t>(M * N), 0.5f);
    GemmProblem<float> p{};
    p.M = rows, p.N = cols, p.K = K;
    p.a = a.view(), p.b = b.view();
    p.c = c.data(), p.c_stride = N, p.accumulate = true;
    run(gemm, 2, &p, 1, compute);
    return c;
  };
  const std::vector<float> whole = product(M, N);
  const int64_t parts[][2] = {{M, 33}, {64, N}, {47, 48}, {33, 17}, {20, 10}};
  for (const auto& [rows, cols] : parts) {
    const std::vector<float> part = product(rows, cols);
    bool same = true;
    for (int64_t i = 0; i < rows; ++i)
      same = same && std::memcmp(&part[static_cast<size_t>(i * N)], &whole[static_cast<size_t>(i * N)],
                                 static_cast<size_t>(cols) * sizeof(float)) == 0;
    check(same, "%s %s: %lld x %lld of %lld x %lld has other bits", gemm.isa, dtype_name(compute), (long long)rows,
          (long long)cols, (long long)M, (long long)N);
  }
}

// Rows that are packed because they crowd into some sets of the cache have the bits of rows that are read in place.
template <class T>
void test_crowded(const Gemm& gemm, DType compute) {
  TestRandom random{13};
  const int64_t M = 100, N = 70, K = 700, crowding = 10920 / static_cast<int64_t>(sizeof(T));  // twelve are 128 KiB
  const Operand<T> near(random, M, K, false, false), b(random, K, N, true, false);
  std::vector<T> far(static_cast<size_t>(M * crowding)), want;
  for (int64_t i = 0; i < M; ++i)
    for (int64_t k = 0; k < K; ++k) far[static_cast<size_t>(i * crowding + k)] = near.at(i, k);
  for (const cpu::MatrixView<T>& a : {near.view(), cpu::MatrixView<T>{far.data(), crowding, 1}}) {
    std::vector<T> c(static_cast<size_t>(M * N));
    GemmProblem<T> p{};
    p.M = M, p.N = N, p.K = K;
    p.a = a, p.b = b.view();
    p.c = c.data(), p.c_stride = N;
    run(gemm, 1, &p, 1, compute);
    if (want.empty()) want = c;
    check(same_bits(c, want), "%s %s: rows in the same sets have other bits", gemm.isa, dtype_name(compute));
  }
}

// A NaN in a row of A, or in rows that a gather omits, does not spread.
template <class T>
void test_nan(const Gemm& gemm, DType compute) {
  TestRandom random{7};
  const int64_t M = 37, N = 41, K = 300, bad = 12;
  Operand<T> a(random, M, K, false, false), b(random, K, N, true, false);
  for (int64_t k = 0; k < K; ++k)
    a.data[static_cast<size_t>(bad * a.row_stride + k)] = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> c(static_cast<size_t>(M * N));
  GemmProblem<T> p{};
  p.M = M, p.N = N, p.K = K;
  p.a = a.view(), p.b = b.view();
  p.c = c.data(), p.c_stride = N;
  run(gemm, 2, &p, 1, compute);
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j)
      check(std::isnan(c[static_cast<size_t>(i * N + j)]) == (i == bad), "%s: NaN at row %lld", gemm.isa, (long long)i);
}

// Values that an earlier GEMM left in scratch memory do not reach the next, whose rows are padded to whole vectors.
template <class T>
void test_scratch(const Gemm& gemm, DType compute) {
  constexpr int64_t N = 2100, stride = 80;
  TestRandom random{11};
  const auto filled = [&](int64_t rows) {
    std::vector<T> data(static_cast<size_t>(rows * stride));
    for (T& x : data) x = static_cast<T>(random.real());
    return data;
  };
  const std::vector<T> a = filled(40), b = filled(N), nan(a.size(), std::numeric_limits<T>::quiet_NaN());
  for (const int64_t M : {1, 3, 16, 40})
    for (const int64_t K : {5, 13, 65}) {
      std::vector<T> c(static_cast<size_t>(M * N));
      GemmProblem<T> p{};
      p.M = M, p.N = N, p.c = c.data(), p.c_stride = N;
      p.b = {b.data(), 1, stride};
      p.a = {nan.data(), stride, 1};
      for (const int64_t lanes : {2, 4, 8, 16}) {  // as many whole vectors, of whatever length
        p.K = (K + lanes - 1) / lanes * lanes;
        run(gemm, 1, &p, 1, compute);
      }
      p.K = K;
      p.a.data = a.data();
      run(gemm, 1, &p, 1, compute);
      int64_t bad = 0;
      for (const T value : c) bad += !std::isfinite(value);
      check(bad == 0, "%s M %lld K %lld: %lld NaN from scratch memory", gemm.isa, (long long)M, (long long)K,
            (long long)bad);
    }
}

// Subnormal operands and results are 0, and only while a GEMM runs: of a subnormal number times one that makes it
// normal, and of a normal one times one that makes it subnormal.
template <class T>
void test_subnormal(const Gemm& gemm, DType compute) {
#if defined(__SSE__)
  const T least = std::numeric_limits<T>::min(), tiny = least / 8;
  for (const auto& [from, factor] : {std::pair(tiny, T(1024)), std::pair(least, T(0.125))})
    for (const int64_t M : {1, 3, 40}) {
      constexpr int64_t N = 33;
      std::vector<T> a(static_cast<size_t>(2 * M)), b(2 * N, T(1)), c(static_cast<size_t>(M * N));
      std::fill_n(b.begin(), N, factor);
      for (int64_t i = 0; i < M; ++i) a[static_cast<size_t>(2 * i)] = from, a[static_cast<size_t>(2 * i + 1)] = T(2);
      GemmProblem<T> p{};
      p.M = M, p.N = N, p.c = c.data(), p.c_stride = N;
      p.a = {a.data(), 2, 1}, p.b = {b.data(), N, 1};
      for (const int64_t K : {1, 2}) {
        p.K = K;
        run(gemm, 2, &p, 1, compute);
        bool right = true;
        for (const T value : c) right &= value == (K == 1 ? T(0) : T(2));
        check(right, "%s M %lld K %lld: %g · %g is not 0", gemm.isa, (long long)M, (long long)K, double(from),
              double(factor));
      }
    }
  const volatile T after = tiny;
  check(after * T(1) != T(0), "%s: the caller's arithmetic has subnormal numbers", gemm.isa);
#endif
}

}  // namespace

int main() {
  const std::vector<Gemm> gemms = cpu::gemms();
  test_shapes<float>(gemms, DType::f32, 200);
  test_shapes<float>(gemms, DType::bf16, 100);
  test_shapes<float>(gemms, DType::f16, 40);
  test_shapes<float>(gemms, kBf16x3, 40);
  test_shapes<double>(gemms, DType::f64, 200);
  for (const Gemm& gemm : gemms) {
    for (DType compute : {DType::f32, DType::bf16, DType::f16, kBf16x3}) {
      test_nan<float>(gemm, compute);
      test_crowded<float>(gemm, compute);
      test_scratch<float>(gemm, compute);
      test_subnormal<float>(gemm, compute);
      test_part(gemm, compute);
    }
    test_nan<double>(gemm, DType::f64);
    test_crowded<double>(gemm, DType::f64);
    test_scratch<double>(gemm, DType::f64);
    test_subnormal<double>(gemm, DType::f64);
  }
  return check_result();
}

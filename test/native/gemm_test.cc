#define ST_MOE_ISA baseline
#include "cpu/gemm.h"

#include <cstring>
#include <limits>
#include <vector>

#include "check.h"

// The problems of the other instruction sets have the same layout.
#if defined(__x86_64__)
namespace st_moe::cpu {
namespace avx2 {
template <class T>
struct GemmProblem;
template <class T>
void gemm(const Context& ctx, const GemmProblem<T>* problems, int64_t count, DType compute);
template <class T>
void gemm_serial(const GemmProblem<T>& problem);
}  // namespace avx2
namespace avx512 {
template <class T>
struct GemmProblem;
template <class T>
void gemm(const Context& ctx, const GemmProblem<T>* problems, int64_t count, DType compute);
template <class T>
void gemm_serial(const GemmProblem<T>& problem);
}  // namespace avx512
}  // namespace st_moe::cpu
#endif

using namespace st_moe;
namespace cpu = st_moe::cpu;
using cpu::baseline::GemmProblem;

namespace {

enum class Isa { baseline, avx2, avx512 };
const char* const kIsaNames[] = {"baseline", "avx2", "avx512"};

bool supported(Isa isa) {
  if (isa == Isa::baseline) return true;
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  return isa == Isa::avx2 || (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
#else
  return false;
#endif
}

template <class T>
constexpr DType dtype_of = sizeof(T) == 4 ? DType::f32 : DType::f64;

template <class T>
void run(Isa isa, int threads, const GemmProblem<T>* problems, int64_t count) {
  const Context ctx{threads, nullptr};
  if (isa == Isa::baseline) return cpu::baseline::gemm(ctx, problems, count, dtype_of<T>);
#if defined(__x86_64__)
  if (isa == Isa::avx2)
    return cpu::avx2::gemm(ctx, reinterpret_cast<const cpu::avx2::GemmProblem<T>*>(problems), count, dtype_of<T>);
  cpu::avx512::gemm(ctx, reinterpret_cast<const cpu::avx512::GemmProblem<T>*>(problems), count, dtype_of<T>);
#endif
}

template <class T>
void run_serial(Isa isa, const GemmProblem<T>& problem) {
  if (isa == Isa::baseline) return cpu::baseline::gemm_serial(problem);
#if defined(__x86_64__)
  if (isa == Isa::avx2) return cpu::avx2::gemm_serial(reinterpret_cast<const cpu::avx2::GemmProblem<T>&>(problem));
  cpu::avx512::gemm_serial(reinterpret_cast<const cpu::avx512::GemmProblem<T>&>(problem));
#endif
}

// A matrix [rows, cols] in a buffer without slack, so that a sanitizer sees any read outside.
template <class T>
struct Operand {
  std::vector<T> data;
  std::vector<int32_t> rows;
  int64_t row_stride = 1, col_stride = 1;

  Operand(TestRandom& random, int64_t m, int64_t n, bool transposed, bool gathered) {
    const int64_t stored = gathered ? m + 3 : m;
    const int64_t inner = transposed ? stored : n, outer = transposed ? n : stored, stride = inner + random.below(4);
    (transposed ? col_stride : row_stride) = stride;
    data.resize(outer && inner ? static_cast<size_t>((outer - 1) * stride + inner) : 0);
    for (T& x : data) x = static_cast<T>(random.real());
    for (int64_t i = 0; gathered && i < m; ++i) rows.push_back(static_cast<int32_t>(random.below(stored)));
  }
  cpu::baseline::MatrixView<T> view() const {
    return {data.data(), row_stride, col_stride, rows.empty() ? nullptr : rows.data()};
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
  bool accumulate;
  std::vector<double> want;  // as C, gaps included

  Case(TestRandom& random, int64_t m, int64_t n, int64_t k)
      : M(m),
        N(n),
        K(k),
        c_stride(n + random.below(3)),
        a(random, m, k, random.below(2), random.below(2)),
        b(random, k, n, random.below(2), random.below(2)),
        accumulate(random.below(2)) {
    if (random.below(2)) bias.resize(static_cast<size_t>(N));
    for (T& x : bias) x = static_cast<T>(random.real());
    initial.resize(M > 0 ? static_cast<size_t>((M - 1) * c_stride + N) : 0);
    for (T& x : initial) x = static_cast<T>(random.real());
    want.assign(initial.begin(), initial.end());
    for (int64_t i = 0; i < M; ++i)
      for (int64_t j = 0; j < N; ++j) {
        double& c = want[static_cast<size_t>(i * c_stride + j)];
        double value = bias.empty() ? 0 : static_cast<double>(bias[static_cast<size_t>(j)]);
        for (int64_t q = 0; q < K; ++q) value += static_cast<double>(a.at(i, q)) * static_cast<double>(b.at(q, j));
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
    p.accumulate = accumulate;
    return p;
  }
};

template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 6e-7 : 4e-15;

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
void test_batch(Isa isa, const std::vector<Case<T>>& cases) {
  std::vector<std::vector<T>> first;
  for (int threads = 1; threads <= 3; ++threads) {
    std::vector<std::vector<T>> c(cases.size());
    std::vector<GemmProblem<T>> problems;
    for (size_t i = 0; i < cases.size(); ++i) problems.push_back(cases[i].problem(c[i]));
    run(isa, threads, problems.data(), static_cast<int64_t>(problems.size()));
    if (threads == 1) first = c;
    for (size_t i = 0; i < cases.size(); ++i) {
      const Case<T>& x = cases[i];
      const double error = relative_error(c[i].data(), x.want.data(), static_cast<int64_t>(c[i].size()));
      check(error < kTolerance<T>, "%s f%d M %lld N %lld K %lld (A %s%s, B %s%s): error %.2e", kIsaNames[int(isa)],
            int(sizeof(T)) * 8, (long long)x.M, (long long)x.N, (long long)x.K, x.a.row_stride == 1 ? "T" : "N",
            x.a.rows.empty() ? "" : "g", x.b.row_stride == 1 ? "T" : "N", x.b.rows.empty() ? "" : "g", error);
      check(same_bits(c[i], first[i]), "%s M %lld N %lld K %lld: %d threads change bits", kIsaNames[int(isa)],
            (long long)x.M, (long long)x.N, (long long)x.K, threads);
    }
  }
  std::vector<T> c;
  run_serial(isa, cases[0].problem(c));
  check(same_bits(c, first[0]), "%s: gemm_serial differs from gemm", kIsaNames[int(isa)]);
}

template <class T>
void test_shapes(const std::vector<Isa>& isas) {
  TestRandom random{sizeof(T)};
  const auto size = [&](int64_t medium) { return random.below(3) ? random.below(36) : random.below(medium); };
  for (int round = 0; round < 200; ++round) {
    std::vector<Case<T>> cases;
    for (int64_t i = 1 + random.below(3); i > 0; --i)
      cases.emplace_back(random, size(120), size(150), random.below(4) ? size(100) : random.below(600));
    for (Isa isa : isas) test_batch(isa, cases);
  }
  // enough work for several threads, blocks of rows, blocks of k
  const int64_t large[][3] = {{700, 20, 70}, {40, 500, 300}, {351, 65, 257}, {20, 900, 40}, {130, 130, 513}};
  for (const auto& s : large) {
    std::vector<Case<T>> cases;
    cases.emplace_back(random, s[0], s[1], s[2]);
    for (Isa isa : isas) test_batch(isa, cases);
  }
}

// A NaN in a row of A, and in what a gather leaves out, stays there.
template <class T>
void test_nan(Isa isa) {
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
  run(isa, 2, &p, 1);
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j)
      check(std::isnan(c[static_cast<size_t>(i * N + j)]) == (i == bad), "%s: NaN at row %lld", kIsaNames[int(isa)],
            (long long)i);
}

}  // namespace

int main() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (supported(isa)) {
      isas.push_back(isa);
    } else {
      std::printf("skipped: %s (not supported by this machine)\n", kIsaNames[int(isa)]);
    }
  }
  test_shapes<float>(isas);
  test_shapes<double>(isas);
  for (Isa isa : isas) {
    test_nan<float>(isa);
    test_nan<double>(isa);
  }
  return check_result();
}

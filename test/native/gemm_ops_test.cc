// linear, matmul and grouped_gemm against plain loops in double.
#include <functional>
#include <vector>

#include "check.h"
#include "core/backend.h"

using namespace st_moe;

namespace {

const Context kContext{2, nullptr};

std::vector<double> numbers(TestRandom& random, int64_t n) {
  std::vector<double> x(static_cast<size_t>(n));
  for (double& value : x) value = random.real();
  return x;
}

using Element = std::function<double(int64_t, int64_t)>;

// [M, N] = Σ_k a(i, k) b(k, j)
std::vector<double> product(int64_t M, int64_t N, int64_t K, const Element& a, const Element& b) {
  std::vector<double> c(static_cast<size_t>(M * N));
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j)
      for (int64_t k = 0; k < K; ++k) c[static_cast<size_t>(i * N + j)] += a(i, k) * b(k, j);
  return c;
}

void expect(const char* what, const Status& status, const double* got, const std::vector<double>& want) {
  check(status.code == ErrorCode::none, "%s: %s", what, status.text);
  const double error = relative_error(got, want.data(), static_cast<int64_t>(want.size()));
  check(error < 1e-14, "%s: error %.2e", what, error);
}

void test_linear(int64_t T, int64_t I, int64_t O) {
  TestRandom random{1};
  const auto x = numbers(random, T * I), w = numbers(random, O * I), bias = numbers(random, O),
             dy = numbers(random, T * O);
  std::vector<double> y(static_cast<size_t>(T * O)), dx(x.size(), 9), dw(w.size(), 9), dbias(bias.size(), 9);
  auto want = product(
      T, O, I, [&](int64_t t, int64_t i) { return x[t * I + i]; }, [&](int64_t i, int64_t o) { return w[o * I + i]; });
  for (size_t i = 0; i < want.size(); ++i) want[i] += bias[i % O];
  const OpTable& ops = cpu_backend().ops;
  Status status = ops.linear(kContext, {x.data(), w.data(), bias.data(), y.data(), DType::f64, DType::f64, T, I, O});
  expect("linear", status, y.data(), want);
  status = ops.linear_backward(
      kContext, {dy.data(), x.data(), w.data(), dx.data(), dw.data(), dbias.data(), DType::f64, DType::f64, T, I, O});
  const auto dy_at = [&](int64_t t, int64_t o) { return dy[t * O + o]; };
  expect("dx", status, dx.data(), product(T, I, O, dy_at, [&](int64_t o, int64_t i) { return w[o * I + i]; }));
  expect("dw", status, dw.data(),
         product(
             O, I, T, [&](int64_t o, int64_t t) { return dy_at(t, o); },
             [&](int64_t t, int64_t i) { return x[t * I + i]; }));
  expect("dbias", status, dbias.data(), product(1, O, T, [](int64_t, int64_t) { return 1.0; }, dy_at));
}

void test_matmul(bool transpose_a, bool transpose_b, bool broadcast_a, bool broadcast_b) {
  TestRandom random{2};
  const int64_t batch = 3, M = 19, N = 37, K = 23;
  const auto a = numbers(random, batch * M * K), b = numbers(random, batch * K * N);
  std::vector<double> y(static_cast<size_t>(batch * M * N));
  const int64_t a_stride = broadcast_a ? 0 : M * K, b_stride = broadcast_b ? 0 : K * N;
  const Status status = cpu_backend().ops.matmul(kContext, {a.data(), b.data(), y.data(), DType::f64, batch, M, N, K,
                                                            a_stride, b_stride, transpose_a, transpose_b});
  for (int64_t i = 0; i < batch; ++i)
    expect("matmul", status, y.data() + i * M * N,
           product(
               M, N, K, [&](int64_t m, int64_t k) { return a[i * a_stride + (transpose_a ? k * M + m : m * K + k)]; },
               [&](int64_t k, int64_t n) { return b[i * b_stride + (transpose_b ? n * K + k : k * N + n)]; }));
}

void test_grouped() {
  TestRandom random{3};
  const int64_t G = 5, I = 21, O = 34;
  const int32_t sizes[G] = {3, 0, 40, 1, 0};
  const int64_t R = 44;
  const auto x = numbers(random, R * I), w = numbers(random, G * O * I), dy = numbers(random, R * O);
  std::vector<double> y(static_cast<size_t>(R * O)), dx(x.size(), 9), dw(w.size(), 9);
  const OpTable& ops = cpu_backend().ops;
  Status forward =
      ops.grouped_gemm(kContext, {x.data(), w.data(), sizes, nullptr, y.data(), DType::f64, DType::f64, R, G, I, O});
  Status backward = ops.grouped_gemm_backward(kContext, {dy.data(), x.data(), w.data(), sizes, nullptr, dx.data(),
                                                         dw.data(), DType::f64, DType::f64, R, G, I, O});
  int64_t row = 0;
  for (int64_t g = 0; g < G; ++g) {
    const int64_t n = sizes[g];
    const auto x_at = [&](int64_t r, int64_t i) { return x[(row + r) * I + i]; };
    const auto dy_at = [&](int64_t r, int64_t o) { return dy[(row + r) * O + o]; };
    const auto w_at = [&](int64_t o, int64_t i) { return w[(g * O + o) * I + i]; };
    expect("grouped y", forward, y.data() + row * O,
           product(n, O, I, x_at, [&](int64_t i, int64_t o) { return w_at(o, i); }));
    expect("grouped dx", backward, dx.data() + row * I, product(n, I, O, dy_at, w_at));
    expect("grouped dw", backward, dw.data() + g * O * I,
           product(O, I, n, [&](int64_t o, int64_t r) { return dy_at(r, o); }, x_at));
    row += n;
  }
  const int32_t negative[2] = {-1, 45}, wrong[2] = {3, 40};
  for (const int32_t* bad : {negative, wrong}) {
    forward =
        ops.grouped_gemm(kContext, {x.data(), w.data(), bad, nullptr, y.data(), DType::f64, DType::f64, R, 2, I, O});
    backward = ops.grouped_gemm_backward(kContext, {dy.data(), x.data(), w.data(), bad, nullptr, dx.data(), nullptr,
                                                    DType::f64, DType::f64, R, 2, I, O});
    check(forward.code == ErrorCode::shape && backward.code == ErrorCode::shape, "wrong group sizes must be an error");
  }
}

}  // namespace

int main() {
  test_linear(150, 70, 33);
  test_linear(1, 9, 130);
  test_linear(0, 4, 6);
  for (int bits = 0; bits < 16; ++bits) test_matmul(bits & 1, bits & 2, bits & 4, bits & 8);
  test_grouped();
  return check_result();
}

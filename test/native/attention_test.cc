#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "core/backend.h"

using namespace st_moe;

namespace {

template <class T>
constexpr DType kDType = sizeof(T) == 4 ? DType::f32 : DType::f64;

struct Shape {
  int64_t B, Nq, Nk, heads, d;
  bool causal;
};

template <class T>
std::vector<T> numbers(TestRandom& random, int64_t n) {
  std::vector<T> x(static_cast<size_t>(n));
  for (T& value : x) value = static_cast<T>(random.real());
  return x;
}

template <class T>
struct Tensors {
  std::vector<T> q, k, v, dy, y, lse, dq, dk, dv;

  Tensors(const Shape& s, TestRandom& random) {
    const int64_t queries = s.B * s.Nq * s.heads * s.d, keys = s.B * s.Nk * s.heads * s.d;
    q = numbers<T>(random, queries), dy = numbers<T>(random, queries);
    k = numbers<T>(random, keys), v = numbers<T>(random, keys);
    y.resize(q.size()), dq.resize(q.size()), dk.resize(k.size()), dv.resize(k.size());
    lse.resize(static_cast<size_t>(s.B * s.heads * s.Nq));
  }
};

constexpr double kScale = 1.7;

template <class T>
void run(const Shape& s, Tensors<T>& t, int threads) {
  const Context ctx{threads, nullptr};
  AttentionArgs forward{t.q.data(), t.k.data(), t.v.data(), t.y.data(), t.lse.data(), kDType<T>, s.B,
                        s.Nq,       s.Nk,       s.heads,    s.d,        kScale,       s.causal};
  Status status = cpu_backend().ops.attention(ctx, forward);
  check(status.code == ErrorCode::none, "attention: %s", status.text);
  AttentionBackwardArgs backward{t.dy.data(), t.q.data(),  t.k.data(),  t.v.data(), t.y.data(), t.lse.data(),
                                 t.dq.data(), t.dk.data(), t.dv.data(), kDType<T>,  s.B,        s.Nq,
                                 s.Nk,        s.heads,     s.d,         kScale,     s.causal};
  status = cpu_backend().ops.attention_backward(ctx, backward);
  check(status.code == ErrorCode::none, "attention_backward: %s", status.text);
}

// Plain loops in double: fills the results of `want` from its inputs.
void reference(const Shape& s, Tensors<double>& t) {
  const auto at = [&](int64_t b, int64_t n, int64_t i, int64_t h, int64_t c) {
    return static_cast<size_t>(((b * n + i) * s.heads + h) * s.d + c);
  };
  std::fill(t.y.begin(), t.y.end(), 0), std::fill(t.dq.begin(), t.dq.end(), 0);
  std::fill(t.dk.begin(), t.dk.end(), 0), std::fill(t.dv.begin(), t.dv.end(), 0);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.Nq; ++i) {
        const int64_t seen = s.causal ? i + s.Nk - s.Nq + 1 : s.Nk;
        std::vector<double> p(static_cast<size_t>(seen)), dp(p);
        double largest = -INFINITY, sum = 0, delta = 0;
        for (int64_t j = 0; j < seen; ++j) {
          double score = 0;
          for (int64_t c = 0; c < s.d; ++c) {
            score += t.q[at(b, s.Nq, i, h, c)] * t.k[at(b, s.Nk, j, h, c)];
            dp[j] += t.dy[at(b, s.Nq, i, h, c)] * t.v[at(b, s.Nk, j, h, c)];
          }
          p[j] = score * kScale;
          largest = std::fmax(largest, p[j]);
        }
        for (double& x : p) sum += x = std::exp(x - largest);
        t.lse[static_cast<size_t>((b * s.heads + h) * s.Nq + i)] = seen ? largest + std::log(sum) : -INFINITY;
        for (int64_t j = 0; j < seen; ++j) delta += (p[j] /= sum) * dp[j];
        for (int64_t j = 0; j < seen; ++j)
          for (int64_t c = 0; c < s.d; ++c) {
            const double ds = p[j] * (dp[j] - delta) * kScale;
            t.y[at(b, s.Nq, i, h, c)] += p[j] * t.v[at(b, s.Nk, j, h, c)];
            t.dq[at(b, s.Nq, i, h, c)] += ds * t.k[at(b, s.Nk, j, h, c)];
            t.dk[at(b, s.Nk, j, h, c)] += ds * t.q[at(b, s.Nq, i, h, c)];
            t.dv[at(b, s.Nk, j, h, c)] += p[j] * t.dy[at(b, s.Nq, i, h, c)];
          }
      }
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
void test_shape(const Shape& s) {
  TestRandom random{11};
  Tensors<T> got(s, random);
  run(s, got, 1);
  Tensors<double> want(s, random);
  want.q.assign(got.q.begin(), got.q.end()), want.k.assign(got.k.begin(), got.k.end());
  want.v.assign(got.v.begin(), got.v.end()), want.dy.assign(got.dy.begin(), got.dy.end());
  reference(s, want);
  const double tolerance = sizeof(T) == 4 ? 2e-6 : 2e-14;
  const auto compare = [&](const char* name, const std::vector<T>& a, const std::vector<double>& b) {
    const double error = relative_error(a.data(), b.data(), static_cast<int64_t>(a.size()));
    check(error < tolerance, "f%d Nq %lld Nk %lld d %lld causal %d: %s error %.2e", int(sizeof(T)) * 8, (long long)s.Nq,
          (long long)s.Nk, (long long)s.d, s.causal, name, error);
  };
  compare("y", got.y, want.y), compare("dq", got.dq, want.dq), compare("dk", got.dk, want.dk);
  compare("dv", got.dv, want.dv);
  if (s.Nk > 0) compare("lse", got.lse, want.lse);
  Tensors<T> again = got;
  for (int threads = 2; threads <= 3; ++threads) {
    run(s, again, threads);
    check(same_bits(again.y, got.y) && same_bits(again.dq, got.dq) && same_bits(again.dk, got.dk) &&
              same_bits(again.dv, got.dv) && same_bits(again.lse, got.lse),
          "%d threads change bits", threads);
  }
}

// Under the causal mask a NaN in a late token reaches no earlier one, forward or backward.
void test_causal_nan() {
  const Shape s{1, 100, 100, 2, 8, true};
  TestRandom random{5};
  Tensors<float> t(s, random);
  const int64_t bad = 77, width = s.heads * s.d;
  for (auto* x : {&t.k, &t.v})
    for (int64_t c = 0; c < width; ++c)
      (*x)[static_cast<size_t>(bad * width + c)] = std::numeric_limits<float>::quiet_NaN();
  run(s, t, 2);
  for (int64_t i = 0; i < s.Nq; ++i)
    for (int64_t c = 0; c < width; ++c) {
      const size_t at = static_cast<size_t>(i * width + c);
      check(std::isnan(t.y[at]) == (i >= bad), "y of query %lld", (long long)i);
      check(std::isnan(t.dq[at]) == (i >= bad), "dq of query %lld", (long long)i);
    }

  Tensors<float> u(s, random);
  const int64_t query = 20;
  for (int64_t c = 0; c < width; ++c)
    u.dy[static_cast<size_t>(query * width + c)] = std::numeric_limits<float>::quiet_NaN();
  run(s, u, 2);
  for (int64_t j = 0; j < s.Nk; ++j)
    check(std::isnan(u.dv[static_cast<size_t>(j * width)]) == (j <= query), "dv of key %lld", (long long)j);
}

void test_errors() {
  float x[8] = {};
  const AttentionArgs args{x, x, x, x, x, DType::f32, 1, 3, 2, 1, 1, 1, 1};
  check(cpu_backend().ops.attention(Context{1, nullptr}, args).code == ErrorCode::shape, "causal with Nk < Nq");
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {2, 5, 5, 2, 8, true},    {1, 130, 130, 3, 16, true}, {2, 70, 200, 1, 20, true},  {1, 64, 64, 1, 64, false},
      {2, 65, 33, 2, 7, false}, {1, 1, 300, 2, 32, true},   {1, 129, 1, 1, 4, false},   {1, 4, 0, 2, 8, false},
      {2, 0, 5, 1, 8, false},   {0, 4, 4, 2, 8, true},      {1, 33, 300, 1, 40, false},
  };
  for (const Shape& shape : shapes) {
    test_shape<float>(shape);
    test_shape<double>(shape);
  }
  test_causal_nan();
  test_errors();
  return check_result();
}

#pragma once
#include <cmath>

#include "core/formulas.h"
#include "cpu/kernel.h"
#include "cpu/simd.h"

// Differentiable top-k by coordinate descent, as in CoLT5 (Ainslie et al., arXiv 2303.09752): the scores c sum to about
// k' = min(9K/8, E), which is not rounded. With eps = 0.1 and b_0 = −s:
//   a_i = eps · (log k' − logsumexp((s + b_{i−1}) / eps)),  b_i = −relu(s + a_i),  i = 1 … 20
//   c = exp((s + a_20 + b_20) / eps)
namespace st_moe::cpu::ST_MOE_ISA {

constexpr int kSoftTopkIterations = 20;

// One row of E scores. `work` [E] is the caller's scratch memory.
template <class T>
class SoftTopk {
 public:
  SoftTopk(int64_t E, int64_t K, T* work)
      : E_(E), log_k_(log_of(min_of(T(K) * T(1.125), static_cast<T>(E)))), work_(work) {}

  void forward(const T* __restrict s, T* __restrict c) {
    descend(s);
    const T a = a_[kSoftTopkIterations];
    for (int64_t e = 0; e < E_; ++e) c[e] = exp_of((s[e] + a + minus_relu(s[e] + a)) / kEps);
  }

  // ds = gradient of <dc, c>, through all iterations; relu'(0) = 0. db [E] is scratch.
  void backward(const T* __restrict s, const T* __restrict dc, T* __restrict ds, T* __restrict db) {
    descend(s);
    // If b_20 = −(s + a_20), the paths of s and a_20 into c cancel exactly; omitting both keeps the gradient of
    // saturated scores exactly 0.
    T a = a_[kSoftTopkIterations], da = 0;
    for (int64_t e = 0; e < E_; ++e) {
      const T shifted = s[e] + a;
      ds[e] = shifted > 0 ? T(0) : dc[e] * exp_of(shifted / kEps) / kEps;
      da += ds[e];
    }
    // b_0 = −s makes a_1 a constant, so nothing flows beyond it.
    for (int i = kSoftTopkIterations; i > 1; --i) {
      const T lse = log_k_ - a / kEps;
      a = a_[i - 1];
      for (int64_t e = 0; e < E_; ++e) db[e] = -da * exp_of((s[e] + minus_relu(s[e] + a)) / kEps - lse);
      da = 0;
      for (int64_t e = 0; e < E_; ++e) {
        if (s[e] + a > 0)
          da -= db[e];  // and ds gets db − db
        else
          ds[e] += db[e];
      }
    }
  }

 private:
  static constexpr T kEps = T(0.1);

  static T minus_relu(T x) { return x > 0 ? -x : T(0); }

  void descend(const T* __restrict s) {
    T* __restrict work = work_;
    for (int64_t e = 0; e < E_; ++e) work[e] = 0;
    for (int i = 1; i <= kSoftTopkIterations; ++i) {
      T largest = work[0];
      for (int64_t e = 0; e < E_; ++e) largest = max_of(largest, work[e]);
      for (int64_t e = 0; e < E_; ++e) work[e] = exp_of(work[e] - largest);
      const T a = a_[i] = kEps * (log_k_ - (largest + log_of(sum(work, E_))));
      for (int64_t e = 0; e < E_; ++e) work[e] = (s[e] + minus_relu(s[e] + a)) / kEps;
    }
  }

  int64_t E_;
  T log_k_;
  T* work_;
  T a_[kSoftTopkIterations + 1];  // the first is not used
};

}  // namespace st_moe::cpu::ST_MOE_ISA

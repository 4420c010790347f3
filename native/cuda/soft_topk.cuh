#pragma once
#include <cmath>

#include "core/formulas.h"
#include "cuda/kernel.cuh"

// Differentiable top-k by coordinate descent, as in CoLT5 (Ainslie et al., arXiv 2303.09752): the scores c sum to about
// k' = min(9K/8, E), which is not rounded. With eps = 0.1 and b_0 = −s:
//   a_i = eps · (log k' − logsumexp((s + b_{i−1}) / eps)),  b_i = −relu(s + a_i),  i = 1 … 20
//   c = exp((s + a_20 + b_20) / eps)
// b_i and c depend only on s and the scalar a_i, so a row needs no memory beyond the twenty scalars.
namespace st_moe::cuda {

constexpr int kSoftTopkIterations = 20;

// One warp per row of E scores. Lane l reads and writes only the entries l, l + 32, ….
template <class T>
struct SoftTopk {
  int64_t E;
  T log_k;
  int lane;

  __device__ SoftTopk(int64_t experts, int64_t K, int lane_of_row)
      : E(experts),
        log_k(std::log(T(K) * T(1.125) < static_cast<T>(experts) ? T(K) * T(1.125) : static_cast<T>(experts))),
        lane(lane_of_row) {}

  // c of an entry, given a_20
  __device__ static T score(T s, T a) { return exp_of((s + a + minus_relu(s + a)) / eps()); }

  // Returns a_20. all: a_1 … a_20 at their indices, or null.
  __device__ T descend(const T* s, T* all) const {
    T a = eps() * (log_k - std::log(static_cast<T>(E)));  // s + b_0 = 0
    if (all) all[1] = a;
    for (int i = 2; i <= kSoftTopkIterations; ++i) {
      T largest = -static_cast<T>(INFINITY), total = 0;
      for (int64_t e = lane; e < E; e += kWarp) largest = Max{}(largest, exponent(s[e], a));
      largest = warp_reduce(largest, Max{});
      for (int64_t e = lane; e < E; e += kWarp) total += exp_of(exponent(s[e], a) - largest);
      a = eps() * (log_k - (largest + std::log(warp_reduce(total, Sum{}))));
      if (all) all[i] = a;
    }
    return a;
  }

  // d [E]: in, the gradient of c; out, that of s, through all iterations; relu'(0) = 0. a [21] as above.
  __device__ void backward(const T* s, const T* all, T* d) const {
    // If b_20 = −(s + a_20), the paths of s and a_20 into c cancel exactly; omitting both keeps the gradient of
    // saturated scores exactly 0.
    T a = all[kSoftTopkIterations], da = 0;
    for (int64_t e = lane; e < E; e += kWarp) {
      const T shifted = s[e] + a;
      d[e] = shifted > 0 ? T(0) : d[e] * exp_of(shifted / eps()) / eps();
      da += d[e];
    }
    da = warp_reduce(da, Sum{});
    // b_0 = −s makes a_1 a constant, so nothing flows beyond it.
    for (int i = kSoftTopkIterations; i > 1; --i) {
      const T lse = log_k - a / eps();
      a = all[i - 1];
      T next = 0;
      for (int64_t e = lane; e < E; e += kWarp) {
        const T db = -da * exp_of(exponent(s[e], a) - lse);
        if (s[e] + a > 0)
          next -= db;  // and d gets db − db
        else
          d[e] += db;
      }
      da = warp_reduce(next, Sum{});
    }
  }

 private:
  __device__ static constexpr T eps() { return T(0.1); }
  __device__ static T minus_relu(T x) { return x > 0 ? -x : T(0); }
  __device__ static T exponent(T s, T a) { return (s + minus_relu(s + a)) / eps(); }
};

}  // namespace st_moe::cuda

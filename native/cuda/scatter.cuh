#pragma once
#include "cuda/row_lanes.cuh"
#include "cuda/search.cuh"
#include "cuda/sort.cuh"
#include "cuda/vector.cuh"

// Sums of rows by key: every row of the result has one owner, which adds its terms in their order.
namespace st_moe::cuda {

// The key of a term; negative ones are last and belong to no row.
template <class KeyOf>
struct TermKey {
  KeyOf key_of;
  int32_t* keys;   // [terms]
  int64_t* order;  // [terms]
  int32_t last;

  __device__ void operator()(int64_t t) const {
    const int32_t key = key_of(t);
    keys[t] = key < 0 ? last : key;
    order[t] = t;
  }
};

// Row v of group r of y, in the order of the terms.
template <class T, int N>
struct ScatterRow {
  const T* x;            // [R, terms, D]
  const int32_t* keys;   // [terms], sorted
  const int64_t* order;  // [terms]: the term of each key
  T* y;                  // [R, V, D]
  int64_t terms, V, D;

  template <class Lanes>
  __device__ void operator()(int64_t row, Lanes lanes) const {
    const int64_t r = row / V, v = row - r * V;
    const int64_t begin = lower_bound(keys, terms, v), end = lower_bound(keys, terms, v + 1);
    for (int64_t j = lanes.lane() * N; j < D; j += Lanes::size * N) {
      Vector<T, N> sum{};
#pragma unroll 8
      for (int64_t i = begin; i < end; ++i) {
        const Vector<T, N> term = load<N>(x + (r * terms + order[i]) * D + j);
        for (int c = 0; c < N; ++c) sum[c] += term[c];
      }
      store(y + row * D + j, sum);
    }
  }
};

// y [R, V, D] = Σ of the rows of x [R, terms, D] whose key is v. key_of(t), a functor of plain data, is below V.
template <class T, class KeyOf>
void scatter_rows(const Context& ctx, int64_t R, int64_t terms, int64_t V, int64_t D, KeyOf key_of, const T* x, T* y) {
  constexpr int64_t warp_width = 64;  // frequent keys need long sums: few columns per thread
  const Scratch<int32_t> keys(ctx, 2 * terms);
  const Scratch<int64_t> order(ctx, 2 * terms);
  const int32_t last = V < INT32_MAX ? static_cast<int32_t>(V) : INT32_MAX;
  elementwise(ctx, terms, TermKey<KeyOf>{key_of, keys.get(), order.get(), last});
  if (R == 0 || V == 0 || D == 0) return;
  const int64_t half = sort_by_key(ctx, terms, int64_t{last} + 1, keys.get(), order.get()) * terms;
  dispatch_width<vector_width<T>>(D, aligned(x, y), [&](auto n) {
    const ScatterRow<T, n> row{x, keys.get() + half, order.get() + half, y, terms, V, D};
    for_rows(ctx, R * V, D, row, warp_width * n);
  });
}

}  // namespace st_moe::cuda

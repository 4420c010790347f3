#pragma once
#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/kernel.cuh"

// Accesses to memory of 128 bits. Kernels are templates of the number N of values that a thread takes at once; N = 1
// serves rows and pointers that are not aligned.
namespace st_moe::cuda {

constexpr int kAccess = 16;  // bytes

// As many values as one access has of the smallest of the types.
template <class... T>
constexpr int vector_width = kAccess / static_cast<int>(std::min({sizeof(T)...}));

// Values side by side in memory.
template <class T, int N>
struct alignas(N * sizeof(T) < kAccess ? N * sizeof(T) : kAccess) Vector {
  T value[N];

  __device__ T& operator[](int i) { return value[i]; }
  __device__ const T& operator[](int i) const { return value[i]; }
};

template <int N, class T>
__device__ static inline Vector<T, N> load(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

// By intrinsics, since nvcc splits an assignment into stores of one value in some loops.
template <class T, int N>
__device__ static inline void store(T* to, const Vector<T, N>& values) {
  if constexpr (sizeof values < 8) {
    *reinterpret_cast<Vector<T, N>*>(to) = values;
  } else {
    using Access = std::conditional_t<sizeof values == 8, float2, float4>;
    Access accesses[sizeof values / sizeof(Access)];
    memcpy(accesses, &values, sizeof values);
    for (int i = 0; i < int{sizeof values / sizeof(Access)}; ++i)
      __stwb(reinterpret_cast<Access*>(to) + i, accesses[i]);
  }
}

template <class... T>
bool aligned(const T*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % kAccess == 0) && ...);
}

template <int N>
using Width = std::integral_constant<int, N>;

// f(Width<0>{}) to f(Width<N - 1>{}), each a copy of its own in the code.
template <int N, class F>
__device__ static inline void unrolled(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) { (f(Width<i>{}), ...); }(std::make_integer_sequence<int, N>{});
}

// Calls f with the first of the widths that values of rows of `columns` can be taken at a time, or with 1.
template <int N, int... Narrower, class F>
void dispatch_width(int64_t columns, bool aligned, F&& f) {
  if (aligned && columns % N == 0) return f(Width<N>{});
  if constexpr (sizeof...(Narrower) > 0) return dispatch_width<Narrower...>(columns, aligned, f);
  f(Width<1>{});
}

// ---- element-wise

template <int N, class F>
__global__ void __launch_bounds__(kBlock, half_resident(kBlock)) vectors_kernel(int64_t vectors, int64_t size, F f) {
  const int64_t first = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, threads = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1
  for (int64_t v = first; v < vectors; v += threads) f(Width<N>{}, v * N);
#pragma unroll 1
  for (int64_t i = vectors * N + first; i < size; i += threads) f(Width<1>{}, i);
}

// One launch of f(Width<n>{}, i) for the n elements from i on, which together are [0, size); n is N, or 1 at the end
// and without alignment.
template <int N, class F>
void for_vectors(const Context& ctx, int64_t size, bool aligned, F f) {
  if (size <= 0) return;
  const int64_t vectors = aligned ? size / N : 0;
  launch(ctx, vectors_kernel<N, F>, grid_for(max_of(vectors, size - vectors * N)), kBlock, 0, vectors, size, f);
}

}  // namespace st_moe::cuda

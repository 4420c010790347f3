#pragma once
#include "cuda/vector.cuh"

namespace st_moe::cuda {

constexpr int64_t kChunk = 4096;  // elements of one tensor that a block takes at a time

// Items of a batch, as many as the arguments of a kernel can hold. An item has a `size`, in chunks of `kPer`.
template <class Item, int64_t kPer = kChunk>
struct Items {
  static constexpr int kMost = 4000 / (sizeof(Item) + sizeof(int64_t));
  Item item[kMost];
  int64_t ends[kMost];  // chunks up to and including those of an item
  int count = 0;

  __host__ __device__ int64_t chunks() const { return count ? ends[count - 1] : 0; }

  // Calls f(item, chunk, begin, end) for the chunks of this block.
  template <class F>
  __device__ void for_chunks(F f) const {
    for (int64_t chunk = blockIdx.x; chunk < chunks(); chunk += gridDim.x) {
      int own = 0;
      while (ends[own] <= chunk) ++own;
      const int64_t begin = (chunk - (own ? ends[own - 1] : 0)) * kPer;
      f(item[own], chunk, begin, min_of(item[own].size, begin + kPer));
    }
  }
};

// Calls f(Width<n>{}, i) for the threads' elements of [begin, end); n is N, or 1 at the end and without alignment.
template <int N, class F>
__device__ static inline void for_elements(int64_t begin, int64_t end, bool aligned, F f) {
  const int64_t tail = aligned ? begin + (end - begin) / N * N : begin;
#pragma unroll 1
  for (int64_t i = begin + threadIdx.x * N; i < tail; i += kBlock * N) f(Width<N>{}, i);
#pragma unroll 1
  for (int64_t i = tail + threadIdx.x; i < end; i += kBlock) f(Width<1>{}, i);
}

// Calls run(items) for the items of dtype T that are wanted, `make(args)` each, in as few parts as possible.
template <class T, class Args, class Make, class Run, class Wanted>
void in_parts(const Batch<Args>& batch, Make make, Run run, Wanted wanted) {
  Items<decltype(make(batch.items[0]))> items;
  for (int64_t i = 0; i < batch.count; ++i) {
    const Args& args = batch.items[i];
    if (dtype_size(args.dtype) != sizeof(T) || args.size == 0 || !wanted(args)) continue;
    if (items.count == items.kMost) {
      run(items);
      items.count = 0;
    }
    items.ends[items.count] = items.chunks() + ceil_div(args.size, kChunk);
    items.item[items.count++] = make(args);
  }
  if (items.count) run(items);
}
template <class T, class Args, class Make, class Run>
void in_parts(const Batch<Args>& batch, Make make, Run run) {
  in_parts<T>(batch, make, run, [](const Args&) { return true; });
}

}  // namespace st_moe::cuda

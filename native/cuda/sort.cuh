#pragma once
#include "cuda/kernel.cuh"

// A stable sort of positions 0 … count − 1 by small integer keys: radix passes of 8 bits, each with a histogram for
// each tile of keys, a scan over tiles, and a placement that keeps the order of equal keys.
namespace st_moe::cuda {

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;  // a thread of a block for each digit
constexpr int64_t kSortTile = 2048;                       // keys of a block
constexpr int kSortWarps = kBlock / kWarp;
static_assert(kDigits == kBlock);

struct SortPass {
  const int32_t* keys_in;  // [count], ≥ 0
  const int64_t* order_in;
  int32_t* keys_out;
  int64_t* order_out;
  int64_t* starts;  // [kDigits, tiles]: of each digit, keys in the tile; after the scan, keys in the tiles before it
  int64_t* totals;  // [kDigits]
  int64_t count, tiles;
  int shift;

  __device__ int digit(int32_t key) const { return key >> shift & (kDigits - 1); }
};

static __global__ void __launch_bounds__(kBlock) sort_histogram_kernel(SortPass pass) {
  __shared__ int32_t counts[kDigits];
  for (int64_t tile = blockIdx.x; tile < pass.tiles; tile += gridDim.x) {
    counts[threadIdx.x] = 0;
    __syncthreads();
    const int64_t begin = tile * kSortTile, end = begin + kSortTile < pass.count ? begin + kSortTile : pass.count;
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) atomicAdd(&counts[pass.digit(pass.keys_in[i])], 1);
    __syncthreads();
    pass.starts[threadIdx.x * pass.tiles + tile] = counts[threadIdx.x];
  }
}

// One warp per digit.
static __global__ void __launch_bounds__(kBlock) sort_scan_kernel(SortPass pass) {
  const int lane = threadIdx.x % kWarp;
  for (int digit = blockIdx.x * kSortWarps + threadIdx.x / kWarp; digit < kDigits; digit += gridDim.x * kSortWarps) {
    int64_t* starts = pass.starts + digit * pass.tiles;
    int64_t before = 0;
    for (int64_t first = 0; first < pass.tiles; first += kWarp) {
      const int64_t tile = first + lane, count = tile < pass.tiles ? starts[tile] : 0, scanned = warp_scan(count);
      if (tile < pass.tiles) starts[tile] = before + scanned - count;
      before += __shfl_sync(kAllLanes, scanned, kWarp - 1);
    }
    if (lane == 0) pass.totals[digit] = before;
  }
}

static __global__ void __launch_bounds__(kBlock) sort_place_kernel(SortPass pass) {
  __shared__ int64_t next[kDigits];  // the index of the next key of each digit
  __shared__ int32_t in_warp[kSortWarps][kDigits];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t digit_start = block_exclusive_scan(pass.totals[threadIdx.x]);
  for (int w = 0; w < kSortWarps; ++w) in_warp[w][threadIdx.x] = 0;
  for (int64_t tile = blockIdx.x; tile < pass.tiles; tile += gridDim.x) {
    const int64_t begin = tile * kSortTile, end = begin + kSortTile < pass.count ? begin + kSortTile : pass.count;
    next[threadIdx.x] = digit_start + pass.starts[threadIdx.x * pass.tiles + tile];
    for (int64_t first = begin; first < end; first += kBlock) {
      __syncthreads();
      const int64_t i = first + threadIdx.x;
      const int32_t key = i < end ? pass.keys_in[i] : 0;
      const int digit = i < end ? pass.digit(key) : kDigits;
      const unsigned peers = __match_any_sync(kAllLanes, digit), lower = peers & ((1u << lane) - 1);
      if (i < end && lower == 0) in_warp[warp][digit] = __popc(peers);
      __syncthreads();
      if (i < end) {
        int64_t to = next[digit] + __popc(lower);
        for (int w = 0; w < warp; ++w) to += in_warp[w][digit];
        pass.keys_out[to] = key;
        pass.order_out[to] = pass.order_in[i];
      }
      __syncthreads();
      for (int w = 0; w < kSortWarps; ++w) {
        next[threadIdx.x] += in_warp[w][threadIdx.x];
        in_warp[w][threadIdx.x] = 0;
      }
    }
  }
}

// keys and order [2, count]: the first halves are sorted together by keys in [0, limit). Returns the half with the
// result.
static inline int sort_by_key(const Context& ctx, int64_t count, int64_t limit, int32_t* keys, int64_t* order) {
  const int64_t tiles = ceil_div(count, kSortTile);
  const Scratch<int64_t> starts(ctx, kDigits * tiles), totals(ctx, kDigits);
  int half = 0;
  if (count == 0) return half;
  for (int shift = 0; shift == 0 || (limit - 1) >> shift > 0; shift += kDigitBits, half = 1 - half) {
    const int64_t from = half * count, to = count - from;
    const SortPass pass{keys + from,  order + from, keys + to, order + to, starts.get(),
                        totals.get(), count,        tiles,     shift};
    launch(ctx, sort_histogram_kernel, grid_for(tiles, 1), kBlock, 0, pass);
    launch(ctx, sort_scan_kernel, grid_for(tiles < kDigits / kSortWarps ? tiles : kDigits / kSortWarps, 1), kBlock, 0,
           pass);
    launch(ctx, sort_place_kernel, grid_for(tiles, 1), kBlock, 0, pass);
  }
  return half;
}

}  // namespace st_moe::cuda

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <vector>

// Kernels with a mistake that a GPU may or may not show. `simt_mistakes <name>` must not end well in some order of
// threads (SIMT_ORDER), and `simt_mistakes none` must in every one. Those from same_value to past_shared_memory may
// give correct results: a sanitizer has to detect them.
namespace {

enum class Mistake {
  none,
  missing_barrier,
  missing_warp_barrier,
  off_by_one,
  wrong_mask,
  early_return,
  divergent_barrier,
  past_the_end,
  not_initialised,
  missing_wait,
  same_value,
  read_past_the_end,
  past_shared_memory,
  neighbour_block,
  blocks_same_value,
  distant_block,
  lost_update,
  missing_fence,
  too_much_shared,
};

const char* const kNames[] = {
    "none",          "missing_barrier",   "missing_warp_barrier", "off_by_one",      "wrong_mask",
    "early_return",  "divergent_barrier", "past_the_end",         "not_initialised", "missing_wait",
    "same_value",    "read_past_the_end", "past_shared_memory",   "neighbour_block", "blocks_same_value",
    "distant_block", "lost_update",       "missing_fence",        "too_much_shared",
};

constexpr unsigned kAll = 0xffffffffu;

// in [n] → out [n], exclusive sums; one block.
template <Mistake mistake>
__global__ void scan_kernel(const int* in, int* out, int n) {
  __shared__ int warp_sum[32], previous[256];
  const int i = static_cast<int>(threadIdx.x), lane = i % 32, warp = i / 32;
  if (mistake == Mistake::early_return && i >= n) return;
  const int mine = i < n ? in[i] : 0;
  if (mistake == Mistake::read_past_the_end) static_cast<void>(*const_cast<const volatile int*>(in + i));
  int sum = mine;
  for (int step = 1; step < 32; step *= 2) {
    const unsigned mask = mistake == Mistake::wrong_mask ? 0x0000ffffu : kAll;
    const int below = __shfl_up_sync(mask, sum, step);
    if (mistake == Mistake::off_by_one ? lane > step : lane >= step) sum += below;
  }
  if (mistake == Mistake::same_value) warp_sum[warp] = __shfl_sync(kAll, sum, 31);
  if (mistake != Mistake::same_value && lane == 31) warp_sum[warp] = sum;
  if (mistake == Mistake::divergent_barrier) {
    if (warp == 0) __syncthreads();
  } else if (mistake != Mistake::missing_barrier) {
    __syncthreads();
  }
  for (int w = 0; w < warp; ++w) sum += warp_sum[w];
  previous[i] = sum;
  if (mistake == Mistake::past_shared_memory && i + 1 == static_cast<int>(blockDim.x)) previous[i + 1] = 0;
  if (mistake != Mistake::missing_warp_barrier) __syncwarp();
  const int exclusive = lane > 0 ? previous[i - 1] : sum - mine;
  if (mistake == Mistake::not_initialised && i == 7) return;
  if (i < n) out[i] = exclusive;
  if (mistake == Mistake::past_the_end && i == 0) out[n] = 0;
}

// The same by blocks of one warp, each with its own 32. A block reads the total of the one before it, which nothing
// says has run; all of them write one value to one address, or only the first and the last; they count themselves
// without an atomic addition; the last to come reads what they have written, after an atomic addition, but without a
// fence.
constexpr int kBlocks = 8;
__device__ int totals[kBlocks], arrived;

template <Mistake mistake>
__global__ void blocks_kernel(const int* in, int* out, int n) {
  const int lane = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x), i = block * 32 + lane;
  if (mistake == Mistake::blocks_same_value && lane == 0) out[0] = 0;
  if (mistake == Mistake::distant_block && lane == 0 && block == kBlocks - 1) out[0] = 0;
  int before = 0;
  if (mistake != Mistake::neighbour_block)
    for (int j = 0; j < block * 32; ++j) before += in[j];
  if (mistake == Mistake::neighbour_block && block > 0) before = totals[block - 1];
  int own = 0;
  for (int j = block * 32; j < i && j < n; ++j) own += in[j];
  if (i < n) out[i] = before + own;
  if (mistake == Mistake::neighbour_block && lane == 31) totals[block] = before + own + (i < n ? in[i] : 0);
  if (mistake == Mistake::missing_fence && lane == 0) {
    totals[block] = block;
    if (atomicAdd(&arrived, 1) + 1 == kBlocks)
      for (int b = 0; b < kBlocks; ++b)
        if (totals[b] != b) out[0] = -1;
  }
}

// Blocks that run at once lose additions of each other.
template <Mistake mistake>
__global__ void count_kernel(const int* in, int* out, int n) {
  constexpr int kAdditions = 5000;
  volatile int* count = &totals[0];
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kAdditions; ++i) {
    const int before = *count;
    __nanosleep(100);
    *count = before + 1;
  }
  __threadfence();
  if (atomicAdd(&arrived, 1) + 1 < kBlocks) return;
  __threadfence();
  int sum = *count - kAdditions * kBlocks;
  for (int i = 0; i < n; sum += in[i++]) out[i] = sum;
}

using Kernel = void (*)(const int*, int*, int);

constexpr bool is_of_blocks(Mistake mistake) {
  return mistake >= Mistake::neighbour_block && mistake <= Mistake::missing_fence;
}

template <Mistake mistake>
constexpr Kernel kKernel = mistake == Mistake::lost_update ? count_kernel<mistake>
                           : is_of_blocks(mistake)         ? blocks_kernel<mistake>
                                                           : scan_kernel<mistake>;

template <size_t... I>
Kernel kernel_of(size_t mistake, std::index_sequence<I...>) {
  const Kernel kernels[] = {kKernel<static_cast<Mistake>(I)>...};
  return kernels[mistake];
}

// Whether the sums are right.
bool run(size_t mistake) {
  constexpr int n = 250, threads = 256;
  const auto which = static_cast<Mistake>(mistake);
  const bool of_blocks = is_of_blocks(which);
  const Kernel kernel = kernel_of(mistake, std::make_index_sequence<std::size(kNames)>());
  std::vector<int> sums(n);
  int *in = nullptr, *out = nullptr, *staging = nullptr;
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaMallocAsync(&in, n * sizeof(int), stream);
  cudaMallocAsync(&out, n * sizeof(int), stream);
  cudaMallocHost(&staging, n * sizeof(int));
  for (int i = 0; i < n; ++i) staging[i] = i % 7 + 1;
  cudaMemcpyAsync(in, staging, n * sizeof(int), cudaMemcpyHostToDevice, stream);
  cudaLaunchConfig_t config{};
  config.gridDim = of_blocks ? kBlocks : 1;
  config.blockDim = of_blocks ? threads / kBlocks : threads;
  config.dynamicSmemBytes = which == Mistake::too_much_shared ? 64 * 1024 : 0;  // and no cudaFuncSetAttribute
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, static_cast<const int*>(in), out, n);
  cudaMemcpyAsync(staging, out, n * sizeof(int), cudaMemcpyDeviceToHost, stream);
  if (which != Mistake::missing_wait) cudaStreamSynchronize(stream);
  std::memcpy(sums.data(), staging, n * sizeof(int));
  cudaFreeAsync(in, stream);
  cudaFreeAsync(out, stream);
  cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  cudaFreeHost(staging);
  int expected = 0;
  for (int i = 0; i < n; ++i) {
    if (sums[i] != expected) return false;
    expected += i % 7 + 1;
  }
  return true;
}

}  // namespace

int main(int count, char** words) {
  for (size_t i = 0; count == 2 && i < std::size(kNames); ++i) {
    if (std::strcmp(words[1], kNames[i]) != 0) continue;
    const bool right = run(i);
    std::printf("%s\n", right ? "right" : "wrong");
    return right ? 0 : 1;
  }
  std::fprintf(stderr, "usage: simt_mistakes <mistake>\n");
  return 2;
}

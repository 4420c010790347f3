#include <cuda_runtime.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "../../check.h"

// Blocks of a grid that work together: `simt_blocks_test`, with any SIMT_THREADS and SIMT_ORDER; `simt_blocks_test
// meet` needs as many OS threads as kMeeting, and does not end with fewer.
namespace {

constexpr int kBlocks = 100, kThreads = 64, kMeeting = 4;

__global__ void meet_kernel(unsigned* arrived, unsigned* out) {
  if (threadIdx.x == 0) {
    atomicAdd(arrived, 1u);
    while (atomicAdd(arrived, 0u) < gridDim.x) __nanosleep(100);
  }
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = atomicAdd(arrived, 0u);
}

// in [kBlocks, kThreads] → out [kBlocks]: sums of the rows up to this one. A block adds its own to what the block with
// the ticket before it has left.
__global__ void chain_kernel(const int* in, int* out, unsigned* tickets, unsigned* done) {
  __shared__ int row;
  if (threadIdx.x == 0) row = static_cast<int>(atomicAdd(tickets, 1u));
  __syncthreads();
  int sum = in[row * kThreads + static_cast<int>(threadIdx.x)];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  __shared__ int of_warp[kThreads / 32];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  while (atomicAdd(done, 0u) < static_cast<unsigned>(row)) __nanosleep(100);
  __threadfence();
  out[row] = (row > 0 ? out[row - 1] : 0) + of_warp[0] + of_warp[1];
  __threadfence();
  atomicAdd(done, 1u);
}

// The last block to come adds up what all have left.
__global__ void last_kernel(const int* in, int* partial, int* out, unsigned* done, int* largest) {
  if (threadIdx.x != 0) return;
  int sum = 0;
  for (int i = 0; i < kThreads; ++i) sum += in[static_cast<int>(blockIdx.x) * kThreads + i];
  partial[blockIdx.x] = sum;
  atomicMax(largest, sum);
  __threadfence();
  if (atomicAdd(done, 1u) + 1 < gridDim.x) return;
  __threadfence();
  int all = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) all += partial[i];
  *out = all;
}

__global__ void add_kernel(int* sum, int* swaps) {
  atomicAdd(sum, 1);
  for (int old = atomicAdd(swaps, 0), seen; (seen = atomicCAS(swaps, old, old + 1)) != old;) old = seen;
}

// Memory of the device, filled with a value.
template <class T>
class Values {
 public:
  Values(std::vector<T> values, cudaStream_t stream) : values_(std::move(values)), stream_(stream) {
    cudaMallocAsync(&data_, bytes(), stream_);
    cudaMemcpyAsync(data_, values_.data(), bytes(), cudaMemcpyHostToDevice, stream_);
  }
  ~Values() { cudaFreeAsync(data_, stream_); }
  operator T*() const { return data_; }
  const std::vector<T>& read() {
    cudaMemcpyAsync(values_.data(), data_, bytes(), cudaMemcpyDeviceToHost, stream_);
    return values_;
  }

 private:
  size_t bytes() const { return values_.size() * sizeof(T); }
  std::vector<T> values_;
  cudaStream_t stream_;
  T* data_ = nullptr;
};

template <class... Params, class... Args>
void launch(cudaStream_t stream, int blocks, int threads, void (*kernel)(Params...), Args... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = static_cast<unsigned>(threads);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, args...) == cudaSuccess, "launch");
}

void test_meet(cudaStream_t stream) {
  Values<unsigned> arrived({0}, stream), out(std::vector<unsigned>(kMeeting), stream);
  launch(stream, kMeeting, 32, meet_kernel, static_cast<unsigned*>(arrived), static_cast<unsigned*>(out));
  check(out.read() == std::vector<unsigned>(kMeeting, kMeeting), "blocks that wait for each other");
}

void test_together(cudaStream_t stream) {
  std::vector<int> numbers, sums;
  int sum = 0, most = 0;
  for (int row = 0; row < kBlocks; ++row) {
    const int before = sum;
    for (int i = 0; i < kThreads; ++i) sum += numbers.emplace_back((row * 7 + i) % 11);
    sums.push_back(sum);
    most = std::max(most, sum - before);
  }
  Values<int> in(numbers, stream), out(std::vector<int>(kBlocks), stream), partial(std::vector<int>(kBlocks), stream),
      total({0}, stream), largest({0}, stream), count({0}, stream), swaps({0}, stream);
  Values<unsigned> tickets({0}, stream), done({0}, stream), last({0}, stream);
  const int* rows = in;
  launch(stream, kBlocks, kThreads, chain_kernel, rows, static_cast<int*>(out), static_cast<unsigned*>(tickets),
         static_cast<unsigned*>(done));
  check(out.read() == sums, "a chain of blocks by tickets");
  launch(stream, kBlocks, kThreads, last_kernel, rows, static_cast<int*>(partial), static_cast<int*>(total),
         static_cast<unsigned*>(last), static_cast<int*>(largest));
  check(total.read()[0] == sum, "the last block sees what all blocks have written");
  check(largest.read()[0] == most, "the largest of all blocks");
  launch(stream, kBlocks, kThreads, add_kernel, static_cast<int*>(count), static_cast<int*>(swaps));
  check(count.read()[0] == kBlocks * kThreads, "atomic additions of all blocks, %d", count.read()[0]);
  check(swaps.read()[0] == kBlocks * kThreads, "compare-and-swap of all blocks, %d", swaps.read()[0]);
}

}  // namespace

int main(int count, char** words) {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  count == 2 && std::string(words[1]) == "meet" ? test_meet(stream) : test_together(stream);
  cudaStreamDestroy(stream);
  return check_result();
}

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "cuda/cublas_api.h"
#include "cuda_runtime.h"
#include "../../check.h"

// What the emulator counts, against counts by hand.
namespace {

constexpr int kSize = 4096, kBlock = 64;

// A thread reads one float and writes one: x[offset + stride · i], or the same for all.
__global__ void read_kernel(const float* x, float* y, int stride, int offset) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = x[offset + stride * i];
}

__global__ void copy_vectors_kernel(const float4* x, float4* y) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = x[i];
}

// Lanes of other warps and other rounds of a loop are other accesses.
__global__ void rounds_kernel(const float* x, float* y, int rounds) {
  float sum = 0;
  for (int i = 0; i < rounds; ++i) sum += x[i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)];
  y[threadIdx.x] = sum;
}

// Thread i reads 32 − i times.
__global__ void triangle_kernel(const float* x, float* y) {
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < 32; ++i) sum += x[i];
  y[threadIdx.x] = sum;
}

__global__ void add_kernel(const float* x, float* y) {
  y[threadIdx.x] += x[threadIdx.x];
}

__global__ void update_kernel(float* x) {
  x[threadIdx.x] = x[threadIdx.x] * 2;
}

__global__ void shared_kernel(float* y, int stride) {
  __shared__ float values[32 * 33];
  values[static_cast<int>(threadIdx.x) * stride] = 1;
  __syncthreads();
  y[threadIdx.x] = values[static_cast<int>(threadIdx.x) * stride];
  __syncthreads();
}

// The first threads divide once more. The square that is stored is no part of a sum.
__global__ void arithmetic_kernel(float* y, double* z, int rounds, int first) {
  const int i = static_cast<int>(threadIdx.x);
  float value = y[i];
  for (int n = 0; n < rounds; ++n) value = value * value + 3;
  if (i < first) value = 5 / value;
  y[i] = std::sqrt(value);
  const double square = z[i] * z[i];
  z[i] = square;
  z[i + kBlock] = square - 1;
}

class Counted {
 public:
  Counted() { setenv("SIMT_COUNTS", path_.c_str(), 1); }
  ~Counted() { std::remove(path_.c_str()); }

  template <class... Params, class... Args>
  std::map<std::string, double> launch(void (*kernel)(Params...), unsigned grid, unsigned block, Args... args) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...) == cudaSuccess, "launch");
    return last();
  }

  std::map<std::string, double> last() {
    cudaDeviceSynchronize();
    std::ifstream file(path_);
    std::string text;
    while (std::getline(file, text)) line_ = text;
    const std::string& line = line_;
    std::map<std::string, double> values;
    for (size_t at = 0; (at = line.find("\":", at)) != std::string::npos; at += 2) {
      const size_t begin = line.rfind('"', at - 1) + 1;
      values[line.substr(begin, at - begin)] = std::strtod(line.c_str() + at + 2, nullptr);
    }
    return values;
  }

  // Of the last line, as text.
  std::string reads() const {
    const size_t begin = line_.find("\"reads\":") + 8;
    return line_.substr(begin, line_.find("]]", begin) + 2 - begin);
  }

 private:
  std::string line_;
  std::string path_ = "counting_test." + std::to_string(getpid()) + ".json";
};

void expect(const char* what, const std::map<std::string, double>& got, const std::map<std::string, double>& wanted) {
  for (const auto& [name, value] : wanted) {
    const auto found = got.find(name);
    const double counted = found == got.end() ? -1 : found->second;
    check(counted == value, "%s: %s is %g, counted by hand %g", what, name.c_str(), counted, value);
  }
}

void test_global(Counted& counted, float* x, float* y) {
  expect(
      "a warp in order", counted.launch(read_kernel, 1, 32, x, y, 1, 0),
      {{"read", 128}, {"readSectors", 4}, {"readDistinct", 128}, {"write", 128}, {"writeSectors", 4}, {"longest", 1}});
  expect("from an odd place", counted.launch(read_kernel, 1, 32, x, y, 1, 1),
         {{"read", 128}, {"readSectors", 5}, {"readDistinct", 160}, {"writeSectors", 4}});
  expect("every eighth", counted.launch(read_kernel, 1, 32, x, y, 8, 0),
         {{"read", 128}, {"readSectors", 32}, {"readDistinct", 1024}, {"writeSectors", 4}});
  expect("all the same", counted.launch(read_kernel, 2, 64, x, y, 0, 7),
         {{"read", 16}, {"readSectors", 4}, {"readDistinct", 32}, {"write", 512}, {"writeSectors", 16}});
  expect("half a warp", counted.launch(read_kernel, 1, 48, x, y, 1, 0), {{"read", 192}, {"readSectors", 6}});
  expect("128 bits",
         counted.launch(copy_vectors_kernel, 2, 64, reinterpret_cast<float4*>(x), reinterpret_cast<float4*>(y)),
         {{"read", 2048}, {"readSectors", 64}, {"write", 2048}, {"writeSectors", 64}, {"writeDistinct", 2048}});
  expect("rounds", counted.launch(rounds_kernel, 1, 64, x, y, 5),
         {{"read", 1280}, {"readSectors", 40}, {"write", 256}, {"longest", 5}});
  expect("the longest thread", counted.launch(triangle_kernel, 2, 32, x, y), {{"longest", 32}});
  expect("in place", counted.launch(update_kernel, 1, 32, x),
         {{"read", 128}, {"write", 128}, {"readDistinct", 128}, {"writeDistinct", 128}, {"writeSectors", 4}});
}

// Distinct bytes and those of all accesses, for each allocation in the order of their memory.
void test_reads(Counted& counted, float* x, float* y) {
  const auto expect_reads = [&](const char* what, const char* wanted) {
    check(counted.reads() == wanted, "%s: %s, counted by hand %s", what, counted.reads().c_str(), wanted);
  };
  counted.launch(read_kernel, 2, 64, x, y, 0, 7);
  expect_reads("all the same", "[[32,128]]");
  counted.launch(read_kernel, kSize / kBlock, kBlock, x, y, 1, 0);
  expect_reads("several pages", "[[16384,16384]]");
  counted.launch(add_kernel, 1, 32, x, y);
  expect_reads("two allocations", "[[128,128],[128,128]]");
}

void test_shared(Counted& counted, float* y) {
  // A store and a load of a warp.
  for (const auto& [stride, wavefronts] : {std::pair{1, 2}, {2, 4}, {32, 64}, {33, 2}, {0, 2}})
    expect("shared memory", counted.launch(shared_kernel, 1, 32, y, stride),
           {{"wavefronts", wavefronts}, {"fewestWavefronts", 2}, {"barriers", 2}, {"read", 0}, {"write", 128}});
}

void test_arithmetic(Counted& counted, float* y, float* z) {
  expect("arithmetic", counted.launch(arithmetic_kernel, 3, kBlock, y, reinterpret_cast<double*>(z), 5, 7),
         {{"flops", 3 * (kBlock * (5 * 2 + 1 + 2) + 7)},
          {"issued", 3 * (kBlock * (5 + 1) + 7)},
          {"issued64", 3 * kBlock * 2}});
  expect("none", counted.launch(read_kernel, 1, 32, y, z, 1, 0), {{"flops", 0}, {"issued", 0}, {"issued64", 0}});
}

// Of a large launch some blocks run; what they do is scaled, but not what they share.
void test_some_blocks(Counted& counted) {
  constexpr unsigned kBlocks = 100000;
  float *x = nullptr, *y = nullptr;
  check(cudaMalloc(&x, 4096) == cudaSuccess && cudaMalloc(&y, size_t{kBlocks} * 1024) == cudaSuccess, "memory");
  setenv("SIMT_ENOUGH", "20000", 1);
  const auto counts = counted.launch(read_kernel, kBlocks, 256, x, y, 0, 5);
  unsetenv("SIMT_ENOUGH");
  expect("a large launch", counts,
         {{"blocks", kBlocks},
          {"blocksRun", 40},
          {"read", kBlocks * 32.0},
          {"readSectors", kBlocks * 8.0},
          {"readDistinct", 32},
          {"write", kBlocks * 1024.0},
          {"writeSectors", kBlocks * 32.0},
          {"writeDistinct", kBlocks * 1024.0}});
  cudaFree(x), cudaFree(y);
}

void test_gemm(Counted& counted, float* x, float* y) {
  cublasHandle_t handle;
  check(cublasCreate_v2(&handle) == CUBLAS_STATUS_SUCCESS, "cuBLAS");
  const float one = 1, zero = 0;
  const auto multiply = [&](const float* beta) {
    check(cublasGemmStridedBatchedEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, 4, 5, 6, &one, x, CUDA_R_32F, 4, 24, x,
                                     CUDA_R_32F, 6, 30, beta, y, CUDA_R_32F, 4, 20, 2, CUBLAS_COMPUTE_32F,
                                     CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS,
          "a GEMM");
    return counted.last();
  };
  expect("a GEMM", multiply(&zero),
         {{"m", 4}, {"n", 5}, {"k", 6}, {"count", 2}, {"flops", 480}, {"bytes", 2 * 4 * (24 + 30 + 20)}});
  expect("a GEMM that adds", multiply(&one), {{"bytes", 2 * 4 * (24 + 30 + 40)}});
  const auto result_of = [&](const char* most) {  // of a GEMM of zeros that may be too large to run
    const float before = 7, beta = 0;
    setenv("SIMT_ENOUGH_PRODUCTS", most, 1);
    check(cudaMemsetAsync(x, 0, 4096) == cudaSuccess &&
              cudaMemcpyAsync(y, &before, sizeof before, cudaMemcpyHostToDevice) == cudaSuccess,
          "memory");
    multiply(&beta);
    float after = 0;
    check(cudaMemcpyAsync(&after, y, sizeof after, cudaMemcpyDeviceToHost) == cudaSuccess, "memory");
    cudaDeviceSynchronize();
    unsetenv("SIMT_ENOUGH_PRODUCTS");
    return after;
  };
  check(result_of("240") == 0, "a GEMM of no more multiplications than the limit runs");
  check(result_of("239") == 7, "a GEMM of more multiplications is only counted");
  void** pointers = nullptr;  // two of each matrix
  check(cudaMalloc(&pointers, 6 * sizeof(void*)) == cudaSuccess, "memory");
  for (int i = 0; i < 6; ++i) pointers[i] = i < 4 ? x : y + 20 * (i - 4);
  const cublasOperation_t plain[2] = {CUBLAS_OP_N, CUBLAS_OP_N};
  const int m[2] = {4, 4}, n[2] = {5, 3}, k[2] = {6, 6}, single[2] = {1, 1};
  const float ones[2] = {1, 1}, zeros[2] = {0, 0};
  check(cublasGemmGroupedBatchedEx(handle, plain, plain, m, n, k, ones, pointers, CUDA_R_32F, m, pointers + 2,
                                   CUDA_R_32F, k, zeros, pointers + 4, CUDA_R_32F, m, 2, single,
                                   CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_SUCCESS,
        "a grouped GEMM");
  expect("a grouped GEMM", counted.last(), {{"groups", 2}, {"flops", 240 + 144}, {"bytes", 4 * (74 + 24 + 18 + 12)}});
  cudaFree(pointers);
  cublasDestroy_v2(handle);
}

}  // namespace

int main(int argc, char** argv) {
  Counted counted;
  float *x = nullptr, *y = nullptr;
  check(cudaMalloc(&x, kSize * 4) == cudaSuccess && cudaMalloc(&y, kSize * 4) == cudaSuccess, "memory");
  if (argc > 1 && argv[1] == std::string("arithmetic")) {
    if (counted.launch(read_kernel, 1, 32, x, y, 1, 0).count("flops") == 0) {
      std::puts("no plugin of GCC counts the arithmetic");
      return 77;
    }
    test_arithmetic(counted, x, y);
  } else {
    test_global(counted, x, y);
    test_reads(counted, x, y);
    test_shared(counted, y);
    test_gemm(counted, x, y);
    test_some_blocks(counted);
  }
  cudaFree(x), cudaFree(y);
  return check_result();
}

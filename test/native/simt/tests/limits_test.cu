#include <cuda_runtime.h>

#include <cstdlib>
#include <string>

#include "../../check.h"

// Shared memory: 48 KB including a kernel's own arrays, more if requested and supported by the architecture.
namespace {

__global__ void plain_kernel(unsigned char* out) {
  if (threadIdx.x == 0) out[0] = shared_memory[0];
}
__global__ void array_kernel(unsigned char* out) {
  __shared__ int own[10 * 1024];  // 40 KB
  own[threadIdx.x] = 1;
  if (threadIdx.x == 0) out[0] = static_cast<unsigned char>(own[0]);
}
template <class T>
__global__ void template_kernel(unsigned char* out) {
  __shared__ T own[1024];
  own[threadIdx.x] = 1;
  if (threadIdx.x == 0) out[0] = static_cast<unsigned char>(own[0]);
}

using Kernel = void (*)(unsigned char*);

cudaError_t launch(Kernel kernel, size_t dynamic_bytes) {
  static unsigned char* out = nullptr;
  if (!out) cudaMalloc(&out, 1);
  cudaLaunchConfig_t config{};
  config.gridDim = 1;
  config.blockDim = 32;
  config.dynamicSmemBytes = dynamic_bytes;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, out);
  return cudaGetLastError() == status ? status : cudaErrorUnknown;
}

cudaError_t allow(Kernel kernel, int bytes) {
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaGetLastError();
  return status;
}

}  // namespace

int main() {
  constexpr int kKilo = 1024;
  check(launch(plain_kernel, 48 * kKilo) == cudaSuccess, "48 KB");
  check(launch(plain_kernel, 48 * kKilo + 1) == cudaErrorInvalidValue, "more than 48 KB without asking");
  check(launch(array_kernel, 8 * kKilo) == cudaSuccess, "48 KB with an array");
  check(launch(array_kernel, 8 * kKilo + 1) == cudaErrorInvalidValue, "more than 48 KB with an array");
  check(launch(template_kernel<double>, 40 * kKilo) == cudaSuccess, "48 KB with an array of a template");
  check(launch(template_kernel<double>, 41 * kKilo) == cudaErrorInvalidValue, "more with that of a template");
  check(launch(template_kernel<float>, 44 * kKilo) == cudaSuccess, "the array of another type is smaller");
  const int limits[][2] = {{75, 64}, {80, 163}, {86, 99}, {87, 163}, {89, 99}, {90, 227}, {100, 227}, {120, 99}};
  for (const auto& [capability, kilobytes] : limits) {
    setenv("SIMT_CAPABILITY", std::to_string(capability).c_str(), 1);
    cudaDeviceProp properties;
    cudaGetDeviceProperties(&properties, 0);
    check(properties.sharedMemPerBlockOptin == size_t(kilobytes) * kKilo, "compute capability %d: what the device says",
          capability);
    check(allow(plain_kernel, kilobytes * kKilo) == cudaSuccess, "compute capability %d: as much as there is",
          capability);
    check(launch(plain_kernel, kilobytes * kKilo) == cudaSuccess, "compute capability %d: a launch with all there is",
          capability);
    check(allow(plain_kernel, kilobytes * kKilo + 1) == cudaErrorInvalidValue,
          "compute capability %d: more than there is", capability);
    check(allow(array_kernel, (kilobytes - 40) * kKilo + 1) == cudaErrorInvalidValue,
          "compute capability %d: with an array", capability);
  }
  return check_result();
}

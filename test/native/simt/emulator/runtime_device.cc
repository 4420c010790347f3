#include "emulator/runtime_device.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "emulator/engine.h"
#include "emulator/fault.h"
#include "emulator/symbols.h"

// The part of the runtime without streams and memory: errors, versions, and the GPUs.
namespace simt {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

}  // namespace

// CUDA 12.9 in a copy of the plugin whose name says so. SIMT_DRIVER_OLD=1: the driver runs no plugin of a later major
// version than its own.
static int runtime_version() {
  Dl_info file{};
  dladdr(reinterpret_cast<void*>(runtime_version), &file);
  return file.dli_fname && std::strstr(file.dli_fname, "cuda12") ? 12090 : 13000;
}

static int driver_version() {
  return is("SIMT_DRIVER", "missing") ? 0 : static_cast<int>(setting("SIMT_DRIVER", 13000));
}

cudaError_t driver() {
  const bool is_old = is("SIMT_DRIVER_OLD", "1") && driver_version() / 1000 < runtime_version() / 1000;
  if (driver_version() == 0 || is_old) return cudaErrorInsufficientDriver;
  return setting("SIMT_DEVICES", 1) > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

int64_t setting(const char* name, int64_t fallback) {
  const char* text = std::getenv(name);
  return text && *text ? std::strtoll(text, nullptr, 10) : fallback;
}

bool is(const char* name, const char* value) {
  const char* text = std::getenv(name);
  return text && std::strcmp(text, value) == 0;
}

bool Trigger::reached() {
  const char* text = std::getenv(name_);
  if (std::exchange(value_, text ? text : "") != value_) asked_ = 0;
  return !value_.empty() && ++asked_ >= std::strtoll(value_.c_str(), nullptr, 10);
}

size_t gpu_bytes() {
  return static_cast<size_t>(setting("SIMT_MEMORY_MB", 4096)) << 20;
}

}  // namespace simt

using namespace simt;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorStubLibrary: return "cudaErrorStubLibrary";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorInvalidDeviceFunction: return "cudaErrorInvalidDeviceFunction";
    case cudaErrorDevicesUnavailable: return "cudaErrorDevicesUnavailable";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnmatched: return "cudaErrorStreamCaptureUnmatched";
    default: return "unrecognized error code";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorDevicesUnavailable: return "CUDA-capable device(s) is/are busy or unavailable";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnmatched: return "capture was not initiated in this stream";
    default: return cudaGetErrorName(error);
  }
}

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version();
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = runtime_version();
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  const cudaError_t status = driver();
  *count = status == cudaSuccess ? static_cast<int>(setting("SIMT_DEVICES", 1)) : 0;
  return report(status);
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (driver() != cudaSuccess) return report(driver());
  if (device < 0 || device >= setting("SIMT_DEVICES", 1)) return report(cudaErrorInvalidDevice);
  if (device == setting("SIMT_UNAVAILABLE", -1)) return report(cudaErrorDevicesUnavailable);
  current_device = device;
  return report(usable());
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= setting("SIMT_DEVICES", 1)) return report(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated GPU");
  properties->major = static_cast<int>(setting("SIMT_CAPABILITY", 90)) / 10;
  properties->minor = static_cast<int>(setting("SIMT_CAPABILITY", 90)) % 10;
  properties->multiProcessorCount = 4;
  properties->warpSize = kLanes;
  properties->maxThreadsPerBlock = kMaxThreads;
  properties->sharedMemPerBlock = 48 * 1024;
  properties->sharedMemPerBlockOptin = shared_memory_optin();
  properties->totalGlobalMem = gpu_bytes();
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  if (const cudaError_t status = cudaGetDeviceProperties(&properties, device); status != cudaSuccess) return status;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
    case cudaDevAttrMemoryPoolsSupported: *value = static_cast<int>(setting("SIMT_POOLS", 1)); break;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)()) {
  if (setting("SIMT_CODE", 1) == 0) return report(cudaErrorNoKernelImageForDevice);
  *attributes = {};
  return cudaSuccess;
}

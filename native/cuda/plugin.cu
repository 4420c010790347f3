#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <string>

#include "core/abi.h"
#include "cuda/blas.h"
#include "cuda/blas_library.h"
#include "cuda/ops.h"
#include "cuda/stream.h"

namespace st_moe::cuda {
namespace {

constexpr const char* kName = "cuda";
constexpr int kOldestCapability = 75;  // kernels are compiled for this and newer ones

void answer(Probe* probe, const char* stage, const std::string& reason) {
  probe->device_count = 0;
  std::snprintf(probe->stage, sizeof probe->stage, "%s", stage);
  std::snprintf(probe->reason, sizeof probe->reason, "%s", reason.c_str());
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string driver_reason(cudaError_t status) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "no NVIDIA driver is installed (libcuda.so.1 is not found)";
  return std::string(cudaGetErrorString(status)) + ": the driver supports CUDA " + version_text(driver) +
         ", this plugin is built with CUDA " + version_text(runtime);
}

std::string device_reason() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return std::string("the driver sees no GPU") +
         (visible ? std::string(" (CUDA_VISIBLE_DEVICES is '") + visible + "')" : "");
}

void probe(Probe* probe) {
  *probe = {};
  try {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    cudaGetLastError();
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
      return answer(probe, "device", device_reason());
    if (status != cudaSuccess) return answer(probe, "driver", driver_reason(status));
    check(cudaSetDevice(0), "device");
    const BlasSearch& blas = find_blas();
    if (!blas.library) return answer(probe, "cublas", blas.reason);
    probe->device_count = count;
  } catch (const Error& error) {
    answer(probe, "device", error.what());
  } catch (const std::exception& error) {
    answer(probe, "plugin", error.what());
  }
}

template <class F>
Status guarded(F&& f) {
  ErrorCode code = ErrorCode::internal;
  char text[sizeof Status{}.text] = "unexpected exception";
  try {
    f();
    return Status{ErrorCode::none, {}};
  } catch (const Error& error) {
    code = error.code();
    std::snprintf(text, sizeof text, "%s", error.what());
  } catch (const std::bad_alloc&) {
    code = ErrorCode::out_of_memory;
    std::snprintf(text, sizeof text, "not enough memory");
  } catch (...) {
  }
  Status status{code, {}};
  std::memcpy(status.text, text, sizeof text);
  return status;
}

void* allocate(const Context& ctx, size_t bytes) {
  return stream_of(ctx).try_allocate(bytes);
}
void release(const Context& ctx, void* data, size_t bytes) {
  stream_of(ctx).release(data, bytes);
}
Status allocation_error(const Context& ctx) {
  return guarded([&] { stream_of(ctx).expect_memory_is_short(); });
}
int64_t held_bytes(const Context& ctx) {
  return static_cast<int64_t>(stream_of(ctx).held_bytes());
}
Status copy_in(const Context& ctx, void* to, const void* host, size_t bytes) {
  return guarded([&] { stream_of(ctx).copy_in(to, host, bytes); });
}
Status copy_out(const Context& ctx, void* host, const void* from, size_t bytes) {
  return guarded([&] { stream_of(ctx).copy_out(host, from, bytes); });
}

Status begin_capture(const Context& ctx) {
  return guarded([&] { stream_of(ctx).begin_capture(); });
}
void outside(const Context& ctx, bool on) {
  stream_of(ctx).set_outside(on);
}
Status end_capture(const Context& ctx, int32_t keep, void** step, size_t* bytes) {
  Status status{ErrorCode::none, {}};
  *step = stream_of(ctx).end_capture(keep, &status, bytes);
  return status;
}
Status replay(const Context& ctx, void* step, const StepArgs* args, int64_t count) {
  return guarded([&] { stream_of(ctx).replay(*static_cast<CapturedStep*>(step), args, count); });
}
void release_step(const Context& ctx, void* step) {
  stream_of(ctx).destroy_step(static_cast<CapturedStep*>(step));
}
constexpr CaptureTable kCaptureTable{
    .begin = begin_capture,
    .outside = outside,
    .end = end_capture,
    .replay = replay,
    .release = release_step,
};

struct Gpu {
  std::string name;
  Backend backend;
};

Gpu* make_gpu(int index) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "device");
  if (properties.major * 10 + properties.minor < kOldestCapability)
    fail(ErrorCode::backend_unavailable, "%s has compute capability %d.%d; %d.%d or newer is needed", properties.name,
         properties.major, properties.minor, kOldestCapability / 10, kOldestCapability % 10);
  auto* gpu = new Gpu{properties.name, {}};
  gpu->backend = {
      .name = kName,
      .variant = gpu->name.c_str(),
      .allocate = allocate,
      .release = release,
      .copy_in = copy_in,
      .copy_out = copy_out,
      .ops = op_table(),
      .held_bytes = held_bytes,
      .saved_values = saved_values,
      .capture = &kCaptureTable,
      .allocation_error = allocation_error,
      .prefers_slots = true,
  };
  return gpu;
}

// One per GPU, never freed, because environments of several threads share them.
const Backend* backend_of(int index) {
  static std::mutex mutex;
  static auto* const gpus = new std::map<int, Gpu*>;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = gpus->find(index);
  if (found == gpus->end()) found = gpus->emplace(index, make_gpu(index)).first;
  return &found->second->backend;
}

Status open(int32_t index, const Backend** backend, Context* context) {
  return guarded([&] {
    const Backend* gpu = backend_of(index);
    context->stream = new Stream(index);
    *backend = gpu;
  });
}

void close(const Backend*, Context* context) {
  delete static_cast<Stream*>(context->stream);
  context->stream = nullptr;
}

}  // namespace
}  // namespace st_moe::cuda

extern "C" __attribute__((visibility("default"))) const st_moe::Plugin* st_moe_plugin() {
  static const st_moe::Plugin plugin{
      .abi = st_moe::kBackendAbi,
      .name = st_moe::cuda::kName,
      .probe = st_moe::cuda::probe,
      .open = st_moe::cuda::open,
      .close = st_moe::cuda::close,
  };
  return &plugin;
}

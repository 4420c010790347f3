#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <vector>

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

// Of the kernel module, such as 580.65.06; empty where it does not say.
std::string module_version() {
  const char* path = "/proc/driver/nvidia/version";
#if defined(ST_MOE_SIMT)
  if (const char* given = std::getenv("SIMT_DRIVER_FILE")) path = given;
#endif
  std::ifstream file(path);
  for (std::string word; file >> word;)
    if (std::isdigit(static_cast<unsigned char>(word[0])) && word.find('.') != std::string::npos) return word;
  return "";
}

std::string driver_version() {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return "";
  const std::string module = module_version();
  return (module.empty() ? "" : module + ", ") + "CUDA " + version_text(driver);
}

std::string driver_reason(cudaError_t status) {
  const std::string driver = driver_version();
  if (driver.empty()) return "no NVIDIA driver is installed (libcuda.so.1 is not found)";
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  const char* needed = runtime >= 13000 ? "580" : "525";  // NVIDIA's table of CUDA's minor version compatibility
  return std::string(cudaGetErrorString(status)) + ": the driver is " + driver + ", this plugin is built with CUDA " +
         version_text(runtime) + ", which needs driver " + needed + " or newer";
}

std::string device_reason() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return std::string("the driver sees no GPU") +
         (visible ? std::string(" (CUDA_VISIBLE_DEVICES is '") + visible + "')" : "");
}

std::vector<std::string> lines_of(const char* text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

void probe(const char* folders, Probe* probe) {
  *probe = {};
  try {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    cudaGetLastError();
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
      return answer(probe, "device", device_reason());
    if (status != cudaSuccess) return answer(probe, "driver", driver_reason(status));
    if (const std::string fault = blas_fault(lines_of(folders)); !fault.empty()) return answer(probe, "cublas", fault);
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
void release(const Context& ctx, void* data, size_t) {
  stream_of(ctx).release(data);
}
Status allocation_error(const Context& ctx) {
  Status status = guarded([&] { stream_of(ctx).expect_memory_is_short(); });
  if (status.code == ErrorCode::none)
    std::snprintf(status.text, sizeof status.text, "%s", stream_of(ctx).memory().shortage().c_str());
  return status;
}
int64_t held_bytes(const Context& ctx) {
  return stream_of(ctx).held_bytes();
}
Status empty_cache(const Context& ctx) {
  return guarded([&] {
    stream_of(ctx).stream();  // makes the device current
    check(stream_of(ctx).trim(), "memory pool");
  });
}
void set_memory_limit(const Context& ctx, size_t bytes) {
  stream_of(ctx).set_memory_limit(bytes);
}
Status copy_in(const Context& ctx, void* to, const void* host, size_t bytes) {
  return guarded([&] { stream_of(ctx).copy_in(to, host, bytes); });
}
Status copy_out(const Context& ctx, void* host, const void* from, size_t bytes) {
  return guarded([&] { stream_of(ctx).copy_out(host, from, bytes); });
}
Status copy_across(const Context& target, void* to, const Context& source, const void* from, size_t bytes) {
  return guarded([&] { stream_of(target).copy_from(stream_of(source), to, from, bytes); });
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

// Opens no context.
cudaDeviceProp properties_of(int index) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "device");
  return properties;
}

void expect_usable(const cudaDeviceProp& properties, int index) {
  if (properties.major * 10 + properties.minor < kOldestCapability)
    fail(ErrorCode::backend_unavailable, "%s has compute capability %d.%d; %d.%d or newer is needed", properties.name,
         properties.major, properties.minor, kOldestCapability / 10, kOldestCapability % 10);
  int pools = 0;
  check(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, index), "device");
  if (!pools)
    fail(ErrorCode::backend_unavailable, "%s has no memory pools, which some virtual GPUs lack and this plugin needs",
         properties.name);
}

void describe(int32_t index, DeviceDescription* description) {
  *description = {};
  const auto write = [](auto& to, const std::string& text) { std::snprintf(to, sizeof to, "%s", text.c_str()); };
  try {
    write(description->driver, driver_version());
    const cudaDeviceProp properties = properties_of(index);
    write(description->variant, properties.name);
    description->bytes = static_cast<int64_t>(properties.totalGlobalMem);
    expect_usable(properties, index);
  } catch (const std::exception& error) {
    write(description->reason, error.what());
  }
}

__global__ void nothing_kernel() {}

// A plugin may have been built for other GPUs: then its first kernel would fail.
void expect_code(int index) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, nothing_kernel);
  if (status == cudaSuccess) return;
  cudaGetLastError();
  if (status != cudaErrorNoKernelImageForDevice && status != cudaErrorInvalidDeviceFunction) check(status, "device");
  const cudaDeviceProp properties = properties_of(index);
  fail(ErrorCode::backend_unavailable,
       "this plugin has no code for %s, whose compute capability is %d.%d. Install a newer st-moe-cuda, or in a clone "
       "run: "
       "npm run build:cuda",
       properties.name, properties.major, properties.minor);
}

Gpu* make_gpu(int index) {
  const cudaDeviceProp properties = properties_of(index);
  expect_usable(properties, index);
  auto* gpu = new Gpu{properties.name, {}};
  gpu->backend = {
      .name = kName,
      .variant = gpu->name.c_str(),
      .allocate = allocate,
      .release = release,
      .copy_in = copy_in,
      .copy_out = copy_out,
      .copy_across = copy_across,
      .ops = op_table(),
      .held_bytes = held_bytes,
      .empty_cache = empty_cache,
      .set_memory_limit = set_memory_limit,
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

// Another environment's freed memory may be all that is left.
void try_blas(Stream& stream) {
  try {
    blas_library();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::out_of_memory) throw;
    check(stream.trim(), "memory pool");
    blas_library();
  }
}

Status open(int32_t index, const Backend** backend, Context* context) {
  return guarded([&] {
    const Backend* gpu = backend_of(index);
    auto stream = std::make_unique<Stream>(index);  // makes the device current
    expect_code(index);
    try_blas(*stream);
    context->stream = stream.release();
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
      .describe = st_moe::cuda::describe,
      .open = st_moe::cuda::open,
      .close = st_moe::cuda::close,
  };
  return &plugin;
}

#pragma once
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "core/plugin.h"
#include "rounding.h"

// Runs an op on the CPU and on device 0 of the plugin that ST_MOE_CUDA_LIBRARY names, and compares every output.
namespace st_moe::test {

inline int failures = 0, checks = 0;

inline void expect(bool ok, const std::string& what) {
  ++checks;
  if (ok) return;
  if (++failures <= 50) std::printf("FAIL %s\n", what.c_str());
}

struct Device {
  const Plugin* plugin = nullptr;
  const Backend* backend = nullptr;
  Context ctx{1, nullptr};

  Device() {
    const char* path = std::getenv("ST_MOE_CUDA_LIBRARY");
    void* library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    const auto entry = library ? reinterpret_cast<PluginEntry>(dlsym(library, kPluginSymbol)) : nullptr;
    if (!entry) stop(path ? dlerror() : "ST_MOE_CUDA_LIBRARY is not set");
    plugin = entry();
    Probe probe{};
    plugin->probe(&probe);
    if (probe.device_count <= 0) stop(std::string(probe.stage) + ": " + probe.reason);
    const Status status = plugin->open(0, &backend, &ctx);
    if (status.code != ErrorCode::none) stop(status.text);
  }
  ~Device() { plugin->close(backend, &ctx); }

 private:
  [[noreturn]] static void stop(const std::string& reason) {
    std::printf("no device: %s\n", reason.c_str());
    std::exit(2);
  }
};

inline Device& device() {
  static auto& device = *new Device;  // not destroyed: at exit there may be no CUDA any more
  return device;
}

// The same numbers on both sides.
class Tensor {
 public:
  Tensor(DType dtype, int64_t size)
      : dtype(dtype), size(size), host(static_cast<size_t>(size) * dtype_size(dtype), '\xff') {
    on_device_ = device().backend->allocate(device().ctx, host.size());
    upload();
  }
  ~Tensor() { device().backend->release(device().ctx, on_device_, host.size()); }
  Tensor(const Tensor&) = delete;

  void upload() {
    const Status status = device().backend->copy_in(device().ctx, on_device_, host.data(), host.size());
    expect(status.code == ErrorCode::none, std::string("copy in: ") + status.text);
  }
  Status download(std::vector<char>& to) const {
    to.resize(host.size());
    return device().backend->copy_out(device().ctx, to.data(), on_device_, host.size());
  }

  void* at(bool cpu) { return size == 0 ? nullptr : cpu ? host.data() : on_device_; }
  int32_t* index_at(bool cpu) { return static_cast<int32_t*>(at(cpu)); }
  void set(int64_t i, double value) {
    if (dtype == DType::f32) reinterpret_cast<float*>(host.data())[i] = static_cast<float>(value);
    if (dtype == DType::f64) reinterpret_cast<double*>(host.data())[i] = value;
    if (dtype == DType::i32) reinterpret_cast<int32_t*>(host.data())[i] = static_cast<int32_t>(value);
  }
  double get(const std::vector<char>& from, int64_t i) const {
    if (dtype == DType::f32) return static_cast<double>(reinterpret_cast<const float*>(from.data())[i]);
    if (dtype == DType::f64) return reinterpret_cast<const double*>(from.data())[i];
    return reinterpret_cast<const int32_t*>(from.data())[i];
  }

  const DType dtype;
  const int64_t size;
  std::vector<char> host;

 private:
  void* on_device_;
};

class Source {  // reproducible
 public:
  double uniform() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state_ >> 11) * 0x1p-53;
  }
  double normal() { return (uniform() + uniform() + uniform() + uniform() - 2) * 1.7320508; }
  int64_t below(int64_t n) { return static_cast<int64_t>(uniform() * static_cast<double>(n)); }

 private:
  uint64_t state_ = 1;
};

inline Source source;

inline void fill_normal(Tensor& x, double shift = 0) {
  for (int64_t i = 0; i < x.size; ++i) x.set(i, static_cast<double>(static_cast<float>(source.normal() + shift)));
  x.upload();
}

inline void fill_index(Tensor& x, int64_t limit) {
  for (int64_t i = 0; i < x.size; ++i) x.set(i, static_cast<double>(source.below(limit)));
  x.upload();
}

inline void blank(const std::vector<Tensor*>& outputs) {
  for (Tensor* out : outputs) {
    std::fill(out->host.begin(), out->host.end(), '\xff');
    out->upload();
  }
}

// ‖got − want‖ / max(‖want‖, magnitude) over what is finite; infinity where one side alone has a NaN or an infinity.
inline double difference(const Tensor& want, const std::vector<char>& got, double magnitude = 0) {
  double error = 0, norm = 0;
  for (int64_t i = 0; i < want.size; ++i) {
    const double a = want.get(got, i), b = want.get(want.host, i);
    if (std::isfinite(a) && std::isfinite(b)) {
      error += (a - b) * (a - b), norm += b * b;
    } else if (!(a == b || (std::isnan(a) && std::isnan(b)))) {
      return INFINITY;
    }
  }
  norm = std::fmax(std::sqrt(norm), magnitude);
  return error == 0 ? 0 : std::sqrt(error) / (norm > 0 ? norm : 1);
}

// make(cpu) gives the arguments with pointers of that side. The device runs twice and must give the same bits.
template <class Args>
void compare(const std::string& name, Op<Args> OpTable::* op, const std::function<Args(bool)>& make,
             const std::vector<Tensor*>& outputs, double slack = 1, double magnitude = 0) {
  blank(outputs);
  const Status on_cpu = (cpu_backend().ops.*op)(Context{1, nullptr}, make(true));
  expect(on_cpu.code == ErrorCode::none, name + " on the CPU: " + on_cpu.text);
  std::vector<std::vector<char>> first(outputs.size());
  for (int run = 0; run < 2; ++run) {
    const Status status = (device().backend->ops.*op)(device().ctx, make(false));
    expect(status.code == ErrorCode::none, name + " on the device: " + status.text);
    for (size_t i = 0; i < outputs.size(); ++i) {
      std::vector<char> got;
      const Status copied = outputs[i]->download(got);
      expect(copied.code == ErrorCode::none, name + ": " + copied.text);
      if (run == 1) expect(got == first[i], name + ": same bits in output " + std::to_string(i));
      if (run == 1) continue;
      const double error = difference(*outputs[i], got, magnitude);
      char text[80];
      std::snprintf(text, sizeof text, ": output %zu differs by %.2g", i, error);
      expect(error <= slack * (outputs[i]->dtype == DType::f32 ? 1e-6 : 1e-13), name + text);
      first[i] = got;
    }
  }
}

// The op succeeds, and the next copy out reports what its kernels met.
template <class Args>
void expect_fault(const std::string& name, Op<Args> OpTable::* op, const std::function<Args(bool)>& make,
                  Tensor& output) {
  const Status status = (device().backend->ops.*op)(device().ctx, make(false));
  expect(status.code == ErrorCode::none, name + ": " + status.text);
  std::vector<char> got;
  expect(output.download(got).code == ErrorCode::option, name + ": the fault is reported");
  expect(output.download(got).code == ErrorCode::none, name + ": and only once");
}

inline int report(const char* name) {
  std::printf("%s: %d checks, %d failures\n", name, checks, failures);
  return failures != 0;
}

}  // namespace st_moe::test

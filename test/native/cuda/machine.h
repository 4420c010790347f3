#pragma once
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/plugin.h"

namespace st_moe::test {

// The first device of the plugin that ST_MOE_CUDA_LIBRARY names: a real one or the emulator's.
class Machine {
 public:
  Machine() {
    const char* path = std::getenv("ST_MOE_CUDA_LIBRARY");
    void* library = dlopen(path ? path : "", RTLD_NOW | RTLD_LOCAL);
    const auto entry = library ? reinterpret_cast<PluginEntry>(dlsym(library, kPluginSymbol)) : nullptr;
    if (!entry) stop(path ? dlerror() : "ST_MOE_CUDA_LIBRARY is not set");
    plugin_ = entry();
    Probe probe{};
    plugin_->probe("", &probe);
    if (probe.device_count <= 0) stop(std::string(probe.stage) + ": " + probe.reason);
    const Status status = plugin_->open(0, &backend_, &context);
    if (status.code != ErrorCode::none) stop(status.text);
  }
  ~Machine() { plugin_->close(backend_, &context); }

  const Backend& gpu() const { return *backend_; }
  Context context{1, nullptr};

 private:
  [[noreturn]] static void stop(const std::string& reason) {
    std::printf("no GPU: %s\n", reason.c_str());
    std::exit(2);
  }

  const Plugin* plugin_ = nullptr;
  const Backend* backend_ = nullptr;
};

inline Machine& machine() {
  static auto& instance = *new Machine;  // not destroyed: at exit there may be no CUDA any more
  return instance;
}

// What the emulator counts, and zeros on a real gpu.
struct Counters {
  int64_t launches, gemms, copies, allocations, synchronisations, live_allocations, live_bytes, graph_launches;
};
inline Counters counters() {
  static const auto count = [] {
    void* library = dlopen(std::getenv("ST_MOE_CUDA_LIBRARY"), RTLD_NOW | RTLD_LOCAL);  // held by the machine as well
    return reinterpret_cast<void (*)(Counters*)>(dlsym(library, "simt_counters"));
  }();
  Counters counters{};
  if (count) count(&counters);
  return counters;
}

}  // namespace st_moe::test

// A plugin of one device that has memory and no op: what the core asks of every backend, and no more. With
// ST_MOE_REMOTE its memory counts as a device's.
#include <cstdlib>
#include <cstring>

#include "core/abi.h"

namespace {

using namespace st_moe;

#if defined(ST_MOE_REMOTE)
constexpr const char* kName = "remote";
constexpr bool kHostMemory = false;
#else
constexpr const char* kName = "empty";
constexpr bool kHostMemory = true;
#endif

void* allocate(const Context&, size_t bytes) {
  constexpr size_t alignment = 64;
  return std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
}

void release(const Context&, void* data, size_t) {
  std::free(data);
}

Status copy(const Context&, void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
  return {};
}

const Backend kBackend{
    .name = kName,
    .variant = "a device without ops",
    .allocate = allocate,
    .release = release,
    .copy_in = copy,
    .copy_out = copy,
    .ops = {},
    .host_memory = kHostMemory,
};

void probe(const char*, Probe* probe) {
  *probe = {.device_count = 1, .stage = {}, .reason = {}};
}

void describe(int32_t, DeviceDescription* description) {
  *description = {};
  std::strcpy(description->variant, kBackend.variant);
}

Status open(int32_t, const Backend** backend, Context*) {
  *backend = &kBackend;
  return {};
}

void close(const Backend*, Context*) {}

}  // namespace

extern "C" __attribute__((visibility("default"))) const st_moe::Plugin* st_moe_plugin() {
  static const st_moe::Plugin plugin{
      .abi = st_moe::kBackendAbi,
      .name = kName,
      .probe = probe,
      .describe = describe,
      .open = open,
      .close = close,
  };
  return &plugin;
}

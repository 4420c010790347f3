#pragma once
#include <string>

#include "core/backend.h"

// Backends in shared libraries: their interface, and how they are loaded.
namespace st_moe {

struct Probe {           // whether a plugin can work on this machine
  int32_t device_count;  // 0: no; stage and reason say why
  char stage[16];        // "plugin", "abi", "driver", "device" or "cublas"
  char reason[2000];
};

// The value of the symbol `st_moe_plugin` of a shared library. The ABI number comes first and is checked first.
struct Plugin {
  uint32_t abi;                                                              // kBackendAbi
  void (*probe)(Probe* probe);                                               // opens driver and libraries; never throws
  Status (*open)(int32_t index, const Backend** backend, Context* context);  // a stream for one environment
  void (*close)(const Backend* backend, Context* context);                   // after its last tensor is gone
};
using PluginEntry = const Plugin* (*)();
constexpr const char* kPluginSymbol = "st_moe_plugin";

struct PluginLibrary {
  const Plugin* plugin;  // null if the probe failed
  Probe probe;
};

// Loads and probes a plugin, once per process and path. Never throws: the probe reports failures.
const PluginLibrary& load_plugin(const std::string& path);

}  // namespace st_moe

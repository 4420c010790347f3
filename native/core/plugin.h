#pragma once
#include <string>

#include "core/backend.h"

// Backends in shared libraries: what one gives, and how it is opened.
namespace st_moe {

struct Probe {           // what a plugin answers to "can you work here?"
  int32_t device_count;  // 0: no, and then stage and reason say why
  char stage[16];        // "plugin", "abi", "driver", "device" or "cublas"
  char reason[2000];
};

// What the symbol `st_moe_plugin` of a shared library gives. The ABI number comes first and is looked at first.
struct Plugin {
  uint32_t abi;                                                              // kBackendAbi
  void (*probe)(Probe* probe);                                               // opens driver and libraries; never throws
  Status (*open)(int32_t index, const Backend** backend, Context* context);  // a stream for one environment
  void (*close)(const Backend* backend, Context* context);                   // after its last tensor is gone
};
using PluginEntry = const Plugin* (*)();
constexpr const char* kPluginSymbol = "st_moe_plugin";

struct PluginLibrary {
  const Plugin* plugin;  // null where the probe failed
  Probe probe;
};

// Opens and probes a plugin, once a process for each path. Never throws: the probe says what failed.
const PluginLibrary& load_plugin(const std::string& path);

}  // namespace st_moe

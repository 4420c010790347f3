#pragma once
#include <string>

#include "core/backend.h"

// Backends in shared libraries: their interface, and how they are loaded.
namespace st_moe {

#define ST_MOE_STRUCTS "core/abi/plugin.inc"
#include "core/abi/declare.inc"
using PluginEntry = const Plugin* (*)();
constexpr const char* kPluginSymbol = "st_moe_plugin";

struct PluginLibrary {
  const Plugin* plugin;  // null if the probe failed
  Probe probe;
  std::string name;  // of its devices; empty if the file is no plugin of this build
};

// Loads and probes a plugin, once per process and path. Never throws: the probe reports failures.
// `folders`: see Plugin::probe.
const PluginLibrary& load_plugin(const std::string& path, const std::string& folders = "");

}  // namespace st_moe

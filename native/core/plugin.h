#pragma once
#include <string>

#include "core/backend.h"

namespace st_moe {

struct PluginLibrary {
  const Plugin* plugin;  // null where the probe failed
  Probe probe;
};

// Opens and probes a plugin, once a process for each path. Never throws: the probe says what failed.
const PluginLibrary& load_plugin(const std::string& path);

}  // namespace st_moe

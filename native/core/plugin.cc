#include "core/plugin.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include <cstdio>
#include <map>
#include <mutex>

#include "core/abi.h"

namespace st_moe {

static PluginLibrary failed(const char* stage, const std::string& reason) {
  PluginLibrary library{};
  std::snprintf(library.probe.stage, sizeof library.probe.stage, "%s", stage);
  std::snprintf(library.probe.reason, sizeof library.probe.reason, "%s", reason.c_str());
  return library;
}

#if defined(_WIN32)

static PluginLibrary open_library(const std::string& path, const std::string&) {
  return failed("plugin", path + ": there are no plugins for Windows");
}

#else

static std::string other_abi(const std::string& path, uint32_t abi) {
  char numbers[80];
  std::snprintf(numbers, sizeof numbers, " has ABI %08x, this addon has ABI %08x: they are of different builds", abi,
                kBackendAbi);
  return path + numbers;
}

static PluginLibrary open_library(const std::string& path, const std::string& folders) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* reason = dlerror();
    return failed("plugin", reason ? reason : path + " cannot be opened");
  }
  const auto entry = reinterpret_cast<PluginEntry>(dlsym(handle, kPluginSymbol));
  const Plugin* plugin = entry ? entry() : nullptr;
  if (!plugin) return failed("plugin", path + " is not an st-moe plugin: it has no " + kPluginSymbol);
  if (plugin->abi != kBackendAbi) return failed("abi", other_abi(path, plugin->abi));
  PluginLibrary library{plugin, {}, plugin->name};
  plugin->probe(folders.c_str(), &library.probe);
  if (library.probe.device_count <= 0) library.plugin = nullptr;
  return library;
}

#endif

const PluginLibrary& load_plugin(const std::string& path, const std::string& folders) {
  static std::mutex mutex;
  static auto* const libraries =
      new std::map<std::string, PluginLibrary>;  // never closed: its threads may still run at exit
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = libraries->find(path);
  if (found != libraries->end()) return found->second;
  return libraries->emplace(path, open_library(path, folders)).first->second;
}

}  // namespace st_moe

#include "binding/environment.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "binding/process_groups.h"
#include "core/plugin.h"

namespace st_moe {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::shape: return "SHAPE";
    case ErrorCode::dtype: return "DTYPE";
    case ErrorCode::device: return "DEVICE";
    case ErrorCode::disposed: return "DISPOSED";
    case ErrorCode::option: return "OPTION";
    case ErrorCode::out_of_memory: return "OUT_OF_MEMORY";
    case ErrorCode::unsupported: return "UNSUPPORTED";
    case ErrorCode::non_finite: return "NON_FINITE";
    case ErrorCode::backend_unavailable: return "BACKEND_UNAVAILABLE";
    case ErrorCode::device_fault: return "DEVICE_FAULT";
    case ErrorCode::peer_lost: return "PEER_LOST";
    case ErrorCode::timeout: return "TIMEOUT";
    case ErrorCode::process_group: return "PROCESS_GROUP";
    case ErrorCode::none:
    case ErrorCode::internal: break;
  }
  return "INTERNAL";
}

Environment::~Environment() {
  abandon_process_groups(this);
}

Environment::Environment(Napi::Env) {
  const Backend& cpu = cpu_backend();
  devices_.push_back(std::make_unique<Device>(&cpu, Context{std::min(cpu.usable_threads(), 256), nullptr}));
}

Device& Environment::device(int64_t index) {
  if (index < 0 || index >= static_cast<int64_t>(devices_.size()))
    fail(ErrorCode::device, "no device number %lld", static_cast<long long>(index));
  return *devices_[index];
}

int64_t Environment::open_device(const std::string& plugin_path, int32_t index) {
  const PluginLibrary& library = load_plugin(plugin_path);
  if (!library.plugin) fail(ErrorCode::backend_unavailable, "%s: %s", library.probe.stage, library.probe.reason);
  auto device = std::make_unique<Device>(nullptr, Context{threads(), nullptr});
  devices_.reserve(devices_.size() + 1);  // nothing may fail once it is open
  check(library.plugin->open(index, &device->backend, &device->context));
  device->plugin = library.plugin;
  devices_.push_back(std::move(device));
  return static_cast<int64_t>(devices_.size()) - 1;
}

void Environment::expect_capturable(const Device& device) const {
  if (!recording || &recording->device() == &device) return;
  fail(ErrorCode::unsupported, "a step that is captured must not compute on %s", device.backend->name);
}

bool Environment::records_ops() const {
  return async.is_recording() || (recording && recording->records_ops());
}

void Environment::record(RecordedOp op) {
  if (async.is_recording()) return async.record(std::move(op));
  recording->record(std::move(op));
}

void Environment::set_threads(int32_t threads) {
  for (auto& device : devices_) device->context.threads = threads;
}

std::vector<Device*> Environment::plugin_devices() const {
  std::vector<Device*> found;
  for (const auto& device : devices_)
    if (device->plugin) found.push_back(device.get());
  return found;
}

napi_value Environment::make_error(Napi::Env env, const char* op, const Error& error) {
  char text[kErrorText + 80];  // with the name of an op
  std::snprintf(text, sizeof text, "[%s] %s", op, error.what());
  if (error_factory.IsEmpty()) return Napi::Error::New(env, text).Value();
  return error_factory.Call(
      {Napi::String::New(env, code_name(error.code())), Napi::String::New(env, op), Napi::String::New(env, text)});
}

void Environment::raise(Napi::Env env, const char* op, const Error& error) noexcept {
  try {
    napi_throw(env, make_error(env, op, error));
  } catch (const Napi::Error& failure) {  // the environment ends
    failure.ThrowAsJavaScriptException();
  }
}

}  // namespace st_moe

#pragma once
#include <napi.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "binding/async_calls.h"
#include "core/capture.h"

namespace st_moe {

const char* code_name(ErrorCode code);  // the `code` of a MoeError

// The native state of one JavaScript environment (main thread or worker). Node deletes it when the environment ends.
class Environment {
 public:
  explicit Environment(Napi::Env env);  // throws Error(option) if ST_MOE_ISA is wrong
  ~Environment();
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  Device& device(int64_t index);                                       // 0 is the CPU; throws Error(device)
  int64_t open_device(const std::string& plugin_path, int32_t index);  // throws Error(backend_unavailable)
  void set_threads(int32_t threads);
  int32_t threads() const { return devices_[0]->context.threads; }

  // Throws Error(unsupported) if a step is being captured on another device: this op would not be part of it.
  void expect_capturable(const Device& device) const;

  bool records_ops() const;  // of an asynchronous call or a captured step: they run later
  void record(RecordedOp op);

  std::vector<Device*> plugin_devices() const;

  // A MoeError, or a plain Error before the loader has set the factory. Throws Napi::Error if the environment ends.
  napi_value make_error(Napi::Env env, const char* op, const Error& error);
  // Throws it to JavaScript. Does not allocate.
  void raise(Napi::Env env, const char* op, const Error& error) noexcept;
  Napi::FunctionReference error_factory;

 private:
  std::vector<std::unique_ptr<Device>> devices_;  // declared before the tensors, which release into them

 public:
  std::shared_ptr<Capture> recording;                    // the step that is being captured
  std::map<int64_t, std::shared_ptr<Capture>> captured;  // by the number that JavaScript holds
  TensorTable tensors;
  AsyncCalls async{*this};  // after all that its thread uses
};

}  // namespace st_moe

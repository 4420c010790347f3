#include <exception>
#include <new>

#include "binding/call.h"

namespace st_moe {

// Not by way of Napi::Function: its wrapper allocates where there are many arguments, and what that throws is no
// MoeError.
static napi_value call(napi_env env, napi_callback_info info) {
  Call::Arguments arguments;
  size_t count = arguments.size();
  void* data = nullptr;
  napi_get_cb_info(env, info, &count, arguments.data(), nullptr, &data);
  const auto& entry = *static_cast<const Entry*>(data);
  const auto raise = [&](const Error& error) { Environment::of(env).raise(env, entry.name, error); };
  try {
    Call call(env, entry.name, arguments);
    return entry.method(call);
  } catch (const Napi::Error& error) {  // what JavaScript has thrown, or its end
    error.ThrowAsJavaScriptException();
  } catch (const Error& error) {
    raise(error);
  } catch (const std::bad_alloc&) {
    raise(Error(ErrorCode::out_of_memory, "not enough memory"));
  } catch (const std::exception& error) {
    raise(Error(ErrorCode::internal, error.what()));
  }
  return nullptr;
}

static Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  for (const std::vector<Entry>* entries :
       {&kTensorEntries, &kNnEntries, &kMoeEntries, &kOptimEntries, &kCaptureEntries, &kLockEntries})
    for (const Entry& entry : *entries) {
      napi_value function = nullptr;
      napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, call, const_cast<Entry*>(&entry), &function);
      exports.Set(entry.name, function);
    }
  return exports;
}

}  // namespace st_moe

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  return st_moe::initialize(env, exports);
}
NODE_API_MODULE(st_moe, Init)

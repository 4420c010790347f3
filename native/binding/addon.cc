#include "binding/call.h"

namespace st_moe {

static Napi::Value call(const Napi::CallbackInfo& info) {
  const auto* entry = static_cast<const Entry*>(info.Data());
  Napi::Env env = info.Env();
  try {
    Call call(info, entry->name);
    return entry->method(call);
  } catch (const Error& error) {
    throw Environment::of(env).make_error(env, entry->name, error);
  } catch (const std::bad_alloc&) {
    throw Environment::of(env).make_error(env, entry->name, Error(ErrorCode::out_of_memory, "not enough memory"));
  }
}

static Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  for (const std::vector<Entry>* entries :
       {&kTensorEntries, &kNnEntries, &kMoeEntries, &kOptimEntries, &kCaptureEntries, &kLockEntries})
    for (const Entry& entry : *entries)
      exports.Set(entry.name, Napi::Function::New(env, call, entry.name, const_cast<Entry*>(&entry)));
  return exports;
}

}  // namespace st_moe

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  return st_moe::initialize(env, exports);
}
NODE_API_MODULE(st_moe, Init)

#include <exception>
#include <new>

#include "binding/op_call.h"

namespace st_moe {

// Not a Napi::Function, whose wrapper allocates for many arguments and throws no MoeError.
template <class Data, Napi::Value (*run)(Call&, const Data&), const char* (*name_of)(const Data&),
          Order (*order_of)(const Data&)>
static napi_value call(napi_env env, napi_callback_info info) {
  Call::Arguments arguments;
  size_t count = arguments.size();
  void* data = nullptr;
  napi_get_cb_info(env, info, &count, arguments.data(), nullptr, &data);
  const auto& target = *static_cast<const Data*>(data);
  const char* name = name_of(target);
  const auto raise = [&](const Error& error) {
    Environment::of(env).raise(env, error.op() ? error.op() : name, error);
  };
  try {
    Call call(env, name, arguments, order_of(target));
    return run(call, target);
  } catch (const Napi::Error& error) {  // thrown by JavaScript, or the environment ends
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

static Napi::Value call_entry(Call& call, const Entry& entry) {
  return entry.method(call);
}
static const char* entry_name(const Entry& entry) {
  return entry.name;
}
static Order entry_order(const Entry& entry) {
  return entry.order;
}
static const char* op_name(const OpInfo& op) {
  return op.js_name.c_str();
}
static Order op_order(const OpInfo&) {
  return Order::recorded;
}

static void add(Napi::Env env, Napi::Object exports, const char* name, napi_callback callback, const void* data) {
  napi_value function = nullptr;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, const_cast<void*>(data), &function);
  exports.Set(name, function);
}

static Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  try {
    env.SetInstanceData(new Environment(env));
  } catch (const Error& error) {  // lib/runtime/addon.ts makes a MoeError of it
    napi_throw_error(env, code_name(error.code()), error.what());
    return exports;
  }
  for (const auto* entries :
       {&kHandleEntries, &kTensorEntries, &kCaptureEntries, &kAsyncEntries, &kLockEntries, &kProcessGroupEntries})
    for (const Entry& entry : *entries)
      add(env, exports, entry.name, call<Entry, call_entry, entry_name, entry_order>, &entry);
  for (const OpInfo& op : declared_ops())
    if (!op.by_hand) add(env, exports, op.js_name.c_str(), call<OpInfo, call_op, op_name, op_order>, &op);
  return exports;
}

}  // namespace st_moe

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  return st_moe::initialize(env, exports);
}
NODE_API_MODULE(st_moe, Init)

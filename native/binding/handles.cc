#include <cstring>
#include <limits>

#include "binding/call.h"
#include "core/activation.h"
#include "core/binary.h"
#include "core/plugin.h"
#include "core/unary.h"

// The lifetime of tensors, copies from and to JavaScript and other devices, devices and threads.
namespace st_moe {

static Napi::Value set_error_factory(Call& c) {
  const Napi::Value make = c.value();
  if (!make.IsFunction()) fail(ErrorCode::option, "expected a function");
  c.environment.error_factory = Napi::Persistent(make.As<Napi::Function>());
  return c.env.Undefined();
}

static Napi::Value set_threads(Call& c) {
  c.environment.set_threads(static_cast<int32_t>(c.integer("threads", 1, 256)));
  return c.env.Undefined();
}

static Napi::Value get_threads(Call& c) {
  return Napi::Number::New(c.env, c.environment.threads());
}

static Napi::Value device_info(Call& c) {
  const Backend& backend = *c.device().backend;
  Napi::Object info = Napi::Object::New(c.env);
  info["name"] = backend.name;
  info["variant"] = backend.variant;
  info["hostMemory"] = backend.host_memory;
  info["prefersSlots"] = backend.prefers_slots;
  return info;
}

static Napi::Value bf16_dot_speed(Call& c) {
  return Napi::Number::New(c.env, cpu_backend().bf16_dot_speed);
}

static std::string path_of(Call& c) {
  Napi::Value value = c.value();
  if (!value.IsString()) fail(ErrorCode::option, "path must be a string");
  return value.As<Napi::String>().Utf8Value();
}

static Napi::Value probe_plugin(Call& c) {  // (path, folders, one a line) → { name, devices, stage, reason }
  const std::string path = path_of(c), folders = path_of(c);
  const PluginLibrary& library = load_plugin(path, folders);
  const Probe& probe = library.probe;
  Napi::Object answer = Napi::Object::New(c.env);
  answer["name"] = library.name;
  answer["devices"] = probe.device_count;
  answer["stage"] = probe.stage;
  answer["reason"] = probe.reason;
  return answer;
}

static Napi::Value describe_device(Call& c) {  // (path, index) → { variant, bytes, driver, reason }
  const PluginLibrary& library = load_plugin(path_of(c));
  const auto index = static_cast<int32_t>(c.integer("index", 0, 1 << 16));
  DeviceDescription description{};
  if (library.plugin && index < library.probe.device_count) library.plugin->describe(index, &description);
  Napi::Object answer = Napi::Object::New(c.env);
  answer["variant"] = description.variant;
  answer["bytes"] = static_cast<double>(description.bytes);
  answer["driver"] = description.driver;
  answer["reason"] = description.reason;
  return answer;
}

static Napi::Value open_device(Call& c) {  // (path, index) → device number
  const std::string path = path_of(c);
  const auto index = static_cast<int32_t>(c.integer("index", 0, 1 << 16));
  return Napi::Number::New(c.env, static_cast<double>(c.environment.open_device(path, index)));
}

static Napi::Value memory(Call& c) {
  Device& device = c.device();
  const auto lock = device.lock();
  const MemoryStats& stats = device.stats;
  Napi::Array values = Napi::Array::New(c.env, 4);
  values[0u] = static_cast<double>(stats.tensors);
  values[1u] = static_cast<double>(stats.bytes);
  values[2u] = static_cast<double>(stats.peak_bytes);
  values[3u] = static_cast<double>(device.backend->held_bytes ? device.backend->held_bytes(device.context) : 0);
  return values;
}

static Napi::Value reset_peak(Call& c) {
  MemoryStats& stats = c.device().stats;
  stats.peak_bytes = stats.bytes.load();
  return c.env.Undefined();
}

static Napi::Value empty_cache(Call& c) {
  Device& device = c.device();
  const auto lock = device.lock();
  if (device.backend->empty_cache) check(device.backend->empty_cache(device.context));
  return c.env.Undefined();
}

static Napi::Value trim_idle(Call& c) {  // (device) → milliseconds until the next call, or 0
  Device& device = c.device();
  return Napi::Number::New(c.env, device.backend->trim_idle ? device.backend->trim_idle(device.context) : 0);
}

static Napi::Value set_memory_limit(Call& c) {  // (device, bytes): 0 is no limit
  Device& device = c.device();
  const int64_t bytes = c.integer("bytes", 0, (int64_t{1} << 53) - 1);
  const size_t limit = bytes == 0 ? std::numeric_limits<size_t>::max() : static_cast<size_t>(bytes);
  if (!device.backend->set_memory_limit)
    fail(ErrorCode::unsupported, "the backend of %s has no limit of memory", device.backend->name);
  device.backend->set_memory_limit(device.context, limit);
  return c.env.Undefined();
}

// Handles from JavaScript: anything that is not a live handle is ignored or reported, never dereferenced.
static int64_t handle_of(Call& c) {
  return c.integer("handle", 0, (int64_t{1} << 53) - 1);
}

static Napi::Value retain(Call& c) {
  c.environment.tensors.retain(handle_of(c));
  return c.env.Undefined();
}

static Napi::Value release(Call& c) {
  c.environment.tensors.release(handle_of(c));
  return c.env.Undefined();
}

// Whether nobody else references the tensor or its memory, so that it may change in place.
static Napi::Value unique(Call& c) {
  const int64_t handle = handle_of(c);
  const Tensor& tensor = c.environment.tensors.get(handle);
  const bool is_own = tensor.storage.use_count() - tensor.storage->recorded == 1;
  return Napi::Boolean::New(c.env, c.environment.tensors.references(handle) == 1 && is_own);
}

static Napi::Value version(Call& c) {
  return Napi::Number::New(c.env, c.stored("tensor").storage->version());
}

static Napi::Value keep_packed(Call& c) {  // (tensor): it is a parameter
  c.stored("tensor").storage->keep_packed();
  return c.env.Undefined();
}

static Napi::TypedArray typed_array(const Napi::Value& value) {
  if (!value.IsTypedArray()) fail(ErrorCode::option, "data must be a typed array");
  auto array = value.As<Napi::TypedArray>();
  if (!array.ArrayBuffer().IsArrayBuffer()) fail(ErrorCode::option, "data must not be shared memory");
  if (array.ArrayBuffer().IsDetached()) fail(ErrorCode::option, "the buffer of data has been detached");
  return array;
}

static const void* bytes_of(const Napi::TypedArray& array) {
  return static_cast<const uint8_t*>(array.ArrayBuffer().Data()) + array.ByteOffset();
}

static void expect_no_capture(const Device& device, const char* what) {
  if (device.capture)
    fail(ErrorCode::unsupported, "%s while a step is captured: it would not be part of a replay", what);
}

static Napi::Value from_data(Call& c) {  // (data, dtype, shape, device)
  auto array = typed_array(c.value());
  const DType dtype = c.stored_dtype("dtype");
  const Shape shape = c.shape("shape");
  Device& device = c.device();
  expect_no_capture(device, "values of the host cannot be copied to the device");
  Tensor tensor = make_tensor(device, dtype, shape);
  const size_t bytes = tensor.bytes();
  if (array.ByteLength() != bytes)
    fail(ErrorCode::shape, "data has %zu bytes, the shape needs %zu", array.ByteLength(), bytes);
  if (device.plugin) c.environment.async.wait();  // its stream is not for two threads
  if (bytes) check(device.backend->copy_in(device.context, tensor.data(), bytes_of(array), bytes));
  if (device.plugin) tensor.storage->remember(bytes_of(array), dtype);
  return c.give(std::move(tensor));
}

static Napi::Value to_data(Call& c) {  // (tensor, data): fills data
  Tensor& tensor = c.stored("tensor");
  auto array = typed_array(c.value());
  const size_t bytes = tensor.bytes();
  if (array.ByteLength() != bytes)
    fail(ErrorCode::shape, "data has %zu bytes, the tensor %zu", array.ByteLength(), bytes);
  Device& device = *tensor.device;
  expect_no_capture(device, "values of the device cannot be read");
  if (device.plugin || tensor.storage->recorded != 0) c.wait();
  expect_values(*tensor.storage, "tensor");
  if (bytes) check(device.backend->copy_out(device.context, const_cast<void*>(bytes_of(array)), tensor.data(), bytes));
  return c.env.Undefined();
}

static Napi::Value to_device(Call& c) {  // (x, device): a copy there
  Tensor& x = c.stored("x");
  Device& device = c.device();
  for (const Device* end : {x.device, &device}) expect_no_capture(*end, "values cannot be copied");
  Tensor y = make_tensor(device, x.dtype, x.shape);
  if (x.storage->packed()) y.storage->keep_packed();
  const size_t bytes = x.bytes();
  if (bytes == 0) return c.give(std::move(y));
  if (x.device->plugin && x.device->plugin == device.plugin && device.backend->copy_across) {
    check(device.backend->copy_across(device.context, y.data(), x.device->context, x.data(), bytes));
  } else if (x.device->plugin && device.plugin) {
    const std::unique_ptr<uint8_t[]> host(new uint8_t[bytes]);
    check(x.device->backend->copy_out(x.device->context, host.get(), x.data(), bytes));
    check(device.backend->copy_in(device.context, y.data(), host.get(), bytes));
  } else if (x.device->plugin) {
    check(x.device->backend->copy_out(x.device->context, y.data(), x.data(), bytes));
  } else {
    check(device.backend->copy_in(device.context, y.data(), x.data(), bytes));
    if (device.plugin) y.storage->remember(x.data(), x.dtype);
  }
  return c.give(std::move(y));
}

static Shape shape_for(Call& c, const Tensor& x) {
  const Shape shape = c.shape("shape");
  if (shape_size(shape) != x.size)
    fail(ErrorCode::shape, "the new shape must keep %lld elements", static_cast<long long>(x.size));
  if (is_blocked(x.dtype) && (shape.empty() || shape[shape.size() - 1] != x.shape[x.shape.size() - 1]))
    fail(ErrorCode::shape, "the new shape must keep the rows of %s", dtype_name(x.dtype));
  return shape;
}

static Napi::Value reshape(Call& c) {  // (x, shape): shares memory
  Tensor y = c.stored("x");
  y.shape = shape_for(c, y);
  return c.give(std::move(y));
}

// (x, shape): takes ownership of x on success, and does not allocate if nobody else references x.
static Napi::Value reshape_owned(Call& c) {
  const int64_t handle = handle_of(c);
  TensorTable& tensors = c.environment.tensors;
  const Shape shape = shape_for(c, tensors.get(handle));
  if (tensors.references(handle) == 1) {
    tensors.get(handle).shape = shape;
    return Napi::Number::New(c.env, static_cast<double>(handle));
  }
  Tensor y = tensors.get(handle);
  y.shape = shape;
  Napi::Value result = c.give(std::move(y));
  tensors.release(handle);
  return result;
}

template <uint32_t count>
static Napi::Value strings(Call& c, const char* const (&names)[count]) {
  Napi::Array array = Napi::Array::New(c.env, count);
  for (uint32_t i = 0; i < count; ++i) array[i] = names[i];
  return array;
}

static Napi::Value unary_kinds(Call& c) {
  return strings(c, kUnaryKindNames);
}

static Napi::Value binary_kinds(Call& c) {
  return strings(c, kBinaryKindNames);
}

static Napi::Value activations(Call& c) {
  return strings(c, kActivationNames);
}

const std::vector<Entry> kHandleEntries = {
    {"setErrorFactory", set_error_factory, Order::free},
    {"setThreads", set_threads, Order::waiting},
    {"getThreads", get_threads, Order::free},
    {"deviceInfo", device_info, Order::free},
    {"bf16DotSpeed", bf16_dot_speed, Order::free},
    {"probePlugin", probe_plugin, Order::free},
    {"describeDevice", describe_device, Order::free},
    {"openDevice", open_device, Order::waiting},
    {"memory", memory, Order::free},
    {"resetPeak", reset_peak, Order::free},
    {"emptyCache", empty_cache, Order::free},
    {"trimIdle", trim_idle, Order::free},
    {"setMemoryLimit", set_memory_limit, Order::free},
    {"retain", retain, Order::free},
    {"release", release, Order::free},
    {"unique", unique, Order::recorded},
    {"version", version, Order::free},
    {"keepPacked", keep_packed, Order::recorded},
    {"fromData", from_data, Order::free},
    {"toData", to_data, Order::free},
    {"toDevice", to_device, Order::waiting},
    {"reshape", reshape, Order::free},
    {"reshapeOwned", reshape_owned, Order::free},
    {"unaryKinds", unary_kinds, Order::free},
    {"binaryKinds", binary_kinds, Order::free},
    {"activations", activations, Order::free},
};

}  // namespace st_moe

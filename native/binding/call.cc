#include "binding/call.h"

#include <cmath>
#include <string>

namespace st_moe {

static std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i) text += ", ";
    text += shape[i] < 0 ? "any" : std::to_string(shape[i]);
  }
  return text + "]";
}

Call::Call(Napi::Env env, const char* op, const Arguments& arguments, Order order)
    : env(env),
      op(op),
      environment(Environment::of(env)),
      is_recorded(order == Order::recorded && environment.records_ops()),
      arguments_(&arguments),
      needs_values_(order != Order::free && !is_recorded) {
  if (needs_values_) wait();
}

void Call::wait() {
  if (environment.async.is_recording()) fail(ErrorCode::unsupported, "an asynchronous call cannot wait for values");
  environment.async.wait();
}

// Reading a later argument may run JavaScript (a getter on an array of dimensions), which may release the tensor of an
// earlier argument, so the call retains its tensors.
Call::~Call() {
  for (size_t i = 0; i < held_count_; ++i) environment.tensors.release(held_[i]);
}

double Call::handle(const char* name) {
  if (numbers_) return numbers_[index_++];
  const Napi::Value value = this->value();
  if (!value.IsNumber()) fail(ErrorCode::option, "%s must be a tensor handle", name);
  return value.As<Napi::Number>().DoubleValue();
}

static void expect_elements(const char* name, DType dtype) {
  if (is_blocked(dtype))
    fail(
        ErrorCode::dtype,
        "%s must not be %s, which only weights of linear, groupedGemm and expertFfn may be; convert it with .to('f32')",
        name, dtype_name(dtype));
}

Tensor& Call::tensor(const char* name) {
  Tensor& tensor = stored(name);
  expect_elements(name, tensor.dtype);
  return tensor;
}

DType Call::dtype(const char* name) {
  const DType dtype = stored_dtype(name);
  expect_elements(name, dtype);
  return dtype;
}

Tensor& Call::stored(const char* name) {
  const double handle = this->handle(name);
  Tensor& tensor = live(name, handle);
  if (held_count_ == held_.size()) fail(ErrorCode::internal, "more than %zu tensors", held_.size());
  held_[held_count_] = static_cast<TensorTable::Handle>(handle);
  environment.tensors.retain(held_[held_count_++]);
  return tensor;
}

Tensor& Call::live(const char* name, double handle) {
  if (!(handle > 0 && handle < 0x1p53 && handle == std::floor(handle)))
    fail(ErrorCode::disposed, "%s is not a live tensor", name);
  const auto integer = static_cast<TensorTable::Handle>(handle);
  if (!environment.tensors.alive(integer)) fail(ErrorCode::disposed, "%s has been disposed", name);
  Tensor& tensor = environment.tensors.get(integer);
  if (device_ && device_ != tensor.device)
    fail(ErrorCode::device, "%s is on %s, the other tensors are on %s", name, tensor.device->backend->name,
         device_->backend->name);
  // Without memory, one that no recorded op uses is not made by this call or step.
  if (needs_values_ || (is_recorded && tensor.storage->recorded == 0)) expect_values(*tensor.storage, name);
  device_ = tensor.device;
  if (device_->capture) device_->capture->hold(tensor.storage);
  return tensor;
}

Tensor* Call::optional(const char* name) {
  bool absent = false;
  if (numbers_) {
    absent = numbers_[index_] == 0;
  } else {
    const Napi::Value value(env, arguments_->at(index_));
    absent = value.IsNull() || value.IsUndefined();
  }
  if (!absent) return &tensor(name);
  ++index_;
  return nullptr;
}

bool Call::absent() {
  const bool absent = !numbers_ && Napi::Value(env, arguments_->at(index_)).IsUndefined();
  index_ += absent;
  return absent;
}

double Call::number(const char* name) {
  if (numbers_) return numbers_[index_++];
  Napi::Value value = this->value();
  if (!value.IsNumber()) fail(ErrorCode::option, "%s must be a number", name);
  return value.As<Napi::Number>().DoubleValue();
}

int64_t Call::integer(const char* name, int64_t min, int64_t max) {
  const double value = number(name);
  if (!(value >= static_cast<double>(min) && value <= static_cast<double>(max) && value == std::floor(value)))
    fail(ErrorCode::option, "%s must be an integer from %lld to %lld, got %g", name, static_cast<long long>(min),
         static_cast<long long>(max), value);
  return static_cast<int64_t>(value);
}

bool Call::boolean(const char* name) {
  Napi::Value value = this->value();
  if (!value.IsBoolean()) fail(ErrorCode::option, "%s must be a boolean", name);
  return value.As<Napi::Boolean>().Value();
}

Napi::Float64Array Call::numbers(const char* name) {
  const Napi::Value value = this->value();
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array)
    fail(ErrorCode::option, "%s must be a Float64Array", name);
  return value.As<Napi::Float64Array>();
}

Shape Call::shape(const char* name) {
  Napi::Value value = this->value();
  if (!value.IsArray()) fail(ErrorCode::shape, "%s must be an array", name);
  Napi::Array array = value.As<Napi::Array>();
  if (array.Length() > kMaxRank)
    fail(ErrorCode::shape, "%s has at most %d dimensions, got %u", name, kMaxRank, array.Length());
  Shape shape;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    Napi::Value entry = array[i];
    const double n = entry.IsNumber() ? entry.As<Napi::Number>().DoubleValue() : -1;
    if (!(n >= 0 && n <= 0x1p46 && n == std::floor(n)))
      fail(ErrorCode::shape, "%s must hold non-negative integers", name);
    shape.push_back(static_cast<int64_t>(n));
  }
  return shape;
}

Shape Call::integers(const char* name, size_t count) {
  Shape values = shape(name);
  if (values.size() != count) fail(ErrorCode::shape, "%s must hold %zu numbers, got %zu", name, count, values.size());
  return values;
}

void Call::expect(const char* name, const Tensor& tensor, DType dtype, const Shape& shape) {
  if (tensor.dtype != dtype)
    fail(ErrorCode::dtype, "%s must be %s, got %s", name, dtype_name(dtype), dtype_name(tensor.dtype));
  bool same = tensor.shape.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = shape[i] < 0 || tensor.shape[i] == shape[i];
  if (!same)
    fail(ErrorCode::shape, "%s must be %s, got %s", name, text_of(shape).c_str(), text_of(tensor.shape).c_str());
}

void Call::expect_rank(const char* name, const Tensor& tensor, size_t rank) {
  if (tensor.shape.size() != rank)
    fail(ErrorCode::shape, "%s must have %zu dimensions, got %s", name, rank, text_of(tensor.shape).c_str());
}

void Call::expect_float(const char* name, const Tensor& tensor) {
  if (!is_float(tensor.dtype)) fail(ErrorCode::dtype, "%s must be f32 or f64, got %s", name, dtype_name(tensor.dtype));
}

void Call::expect_compute(const char* name, DType compute, DType dtype) {
  const bool low_precision = compute == DType::bf16 || compute == kBf16x3 || compute == DType::f16;
  if (compute != dtype && !(low_precision && dtype == DType::f32))
    fail(ErrorCode::dtype, "%s must be %s with %s, got %s", name,
         dtype == DType::f32 ? "f32, bf16, bf16x3 or f16" : "f64", dtype_name(dtype), dtype_name(compute));
}

void Call::run(const OpInfo& info, void* args, size_t size, int64_t count, std::span<const Operand> operands,
               Kept kept) {
  const Device& device = *operands[0].tensor->device;
  environment.expect_capturable(device);
  expect_op(*device.backend, info);
  for (const Operand& operand : operands) {
    Storage& storage = *operand.tensor->storage;
    if (operand.use == Use::updated) storage.note_change();
    if (is_recorded) continue;
    if (operand.use == Use::updated) storage.outdate_packed();
    *static_cast<const void**>(operand.at) = pointer_to(storage, operand.use);
  }
  if (is_recorded) return environment.record({op, info, args, size, count, operands, std::move(kept)});
  const GroupMemory memory(info, args);
  const Status status = info.run(device.backend->ops, device.context, args, count);
  if (memory.is_held())
    for (const Operand& operand : operands) operand.tensor->storage->abandon();
  check(status);
  for (const Operand& operand : operands) {
    Storage& storage = *operand.tensor->storage;
    if (operand.use == Use::updated) storage.drop_outdated();
    if (operand.use == Use::made_on_host) storage.remember_values();
  }
}

Napi::Value Call::give(Tensor tensor) {
  return Napi::Number::New(env, static_cast<double>(environment.tensors.insert(std::move(tensor))));
}

Napi::Value Call::give(const Tensor* const* tensors, size_t count) {
  environment.tensors.reserve(count);  // all of them or none
  Napi::Array array = Napi::Array::New(env, count);
  for (uint32_t i = 0; i < count; ++i) array[i] = tensors[i] ? give(*tensors[i]) : env.Null();
  return array;
}

}  // namespace st_moe

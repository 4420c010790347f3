#pragma once
#include <napi.h>

#include <array>
#include <vector>

#include "binding/environment.h"

namespace st_moe {

// One call from JavaScript: checked conversion of its arguments, allocation of results, errors that name op and
// argument. The TypeScript layer has already checked everything for people; these checks are for safety.
class Call {
 public:
  static constexpr size_t kMaxArguments = 40;
  using Arguments = std::array<napi_value, kMaxArguments>;  // undefined beyond those that were passed

  Call(Napi::Env env, const char* op, const Arguments& arguments)
      : env(env), op(op), environment(Environment::of(env)), arguments_(&arguments) {}
  // One of a batch: all arguments are numbers, 0 instead of an optional tensor.
  Call(const Call& batch, const double* numbers)
      : env(batch.env), op(batch.op), environment(batch.environment), numbers_(numbers) {}
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Napi::Env env;
  const char* op;
  Environment& environment;

  // Arguments, in order.
  Napi::Value value() { return {env, arguments_->at(index_++)}; }
  Tensor& tensor(const char* name);  // all tensors of a call are on one device; retained until the call ends
  Tensor& live(const char* name, double handle);  // not retained: no JavaScript may run while it is used
  Tensor* optional(const char* name);             // null for null and undefined
  bool absent();                                  // skips an undefined argument
  double number(const char* name);
  int64_t integer(const char* name, int64_t min, int64_t max);
  int64_t size(const char* name) { return integer(name, 0, int64_t{1} << 46); }
  uint64_t seed(const char* name) { return static_cast<uint64_t>(integer(name, 0, (int64_t{1} << 53) - 1)); }
  bool boolean(const char* name);
  Napi::Float64Array numbers(const char* name);
  DType dtype(const char* name) { return static_cast<DType>(integer(name, 0, kDTypeCount - 1)); }
  Shape shape(const char* name);
  Shape integers(const char* name, size_t count);
  Device& device() { return environment.device(integer("device", 0, 1 << 20)); }

  // Checks of tensors.
  void expect(const char* name, const Tensor& tensor, DType dtype, const Shape& shape);  // −1 accepts any size
  void expect_rank(const char* name, const Tensor& tensor, size_t rank);
  void expect_float(const char* name, const Tensor& tensor);
  void expect_compute(const char* name, DType compute, DType dtype);  // dtype, or bf16 or f16 if dtype is f32

  // Results.
  Napi::Value give(Tensor tensor);
  Napi::Value give(const Tensor* const* tensors, size_t count);  // an array of handles; null for a null pointer

  void check(const Status& status) {
    if (status.code != ErrorCode::none) throw Error(status.code, status.text);
  }

 private:
  double handle(const char* name);

  const Arguments* arguments_ = nullptr;
  const double* numbers_ = nullptr;
  size_t index_ = 0;
  Device* device_ = nullptr;
  std::array<TensorTable::Handle, 16> held_;
  size_t held_count_ = 0;
};

using Method = Napi::Value (*)(Call&);

// A method under its JavaScript name; also the `op` of its errors.
struct Entry {
  const char* name;
  Method method;
};

extern const std::vector<Entry> kTensorEntries, kHandleEntries, kCaptureEntries, kLockEntries;

}  // namespace st_moe

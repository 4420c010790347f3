#pragma once
#include <napi.h>

#include <array>
#include <vector>

#include "binding/environment.h"

namespace st_moe {

// How a call is ordered with the ops of asynchronous calls.
enum class Order : uint8_t {
  free,      // needs no values of tensors
  recorded,  // in an asynchronous call, and in a captured step on the CPU, it is recorded; else it waits
  waiting,   // always waits
};

// One call from JavaScript: checked conversion of its arguments, allocation of results, errors that name op and
// argument. The TypeScript layer has already checked everything for people; these checks are for safety.
class Call {
 public:
  static constexpr size_t kMaxArguments = 40;
  using Arguments = std::array<napi_value, kMaxArguments>;  // undefined beyond those that were passed

  Call(Napi::Env env, const char* op, const Arguments& arguments, Order order);  // waits, if the order says so
  // One of a batch: all arguments are numbers, 0 instead of an optional tensor.
  Call(const Call& batch, const double* numbers)
      : env(batch.env),
        op(batch.op),
        environment(batch.environment),
        is_recorded(batch.is_recorded),
        numbers_(numbers),
        needs_values_(batch.needs_values_) {}
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Napi::Env env;
  const char* op;
  Environment& environment;
  const bool is_recorded;  // the op runs later

  void wait();  // for asynchronous calls

  // Arguments, in order.
  Napi::Value value() { return {env, arguments_->at(index_++)}; }
  Tensor& tensor(const char* name);  // all tensors of a call are on one device; retained until the call ends
  Tensor& stored(const char* name);  // the same, also of a blocked dtype
  Tensor& live(const char* name, double handle);  // not retained: no JavaScript may run while it is used
  Tensor* optional(const char* name);             // null for null and undefined
  bool absent();                                  // skips an undefined argument
  double number(const char* name);
  int64_t integer(const char* name, int64_t min, int64_t max);
  int64_t size(const char* name) { return integer(name, 0, int64_t{1} << 46); }
  uint64_t seed(const char* name) { return static_cast<uint64_t>(integer(name, 0, (int64_t{1} << 53) - 1)); }
  bool boolean(const char* name);
  Napi::Float64Array numbers(const char* name);
  DType dtype(const char* name);
  DType stored_dtype(const char* name) { return static_cast<DType>(integer(name, 0, kDTypeCount - 1)); }
  DType compute(const char* name) { return static_cast<DType>(integer(name, 0, kDTypeCount)); }
  Shape shape(const char* name);
  Shape integers(const char* name, size_t count);
  Device& device() { return environment.device(integer("device", 0, 1 << 20)); }

  // Checks of tensors.
  void expect(const char* name, const Tensor& tensor, DType dtype, const Shape& shape);  // −1 accepts any size
  void expect_rank(const char* name, const Tensor& tensor, size_t rank);
  void expect_float(const char* name, const Tensor& tensor);
  void expect_compute(const char* name, DType compute, DType dtype);  // dtype, or bf16 or f16 if dtype is f32

  // Runs an op on the device of its operands, or records it. Sets the pointers of the arguments. Throws
  // Error(unsupported) if the device lacks the op.
  template <auto op, class Args>
  void run(Args& args, std::initializer_list<Operand> operands) {
    run(op_info<Args, op>(), &args, sizeof args, 1, {operands.begin(), operands.size()});
  }
  template <auto op, class Args>  // of a batch
  void run(std::vector<Args>& items, const std::vector<Operand>& operands) {
    run(op_info<Args, op>(), items.data(), items.size() * sizeof(Args), static_cast<int64_t>(items.size()), operands);
  }
  // `kept`: what arguments besides tensors point to.
  void run(const OpInfo& info, void* args, size_t size, int64_t count, std::span<const Operand> operands,
           Kept kept = {});

  // Results.
  Tensor make(Device& device, DType dtype, const Shape& shape) {  // uninitialized
    return is_recorded ? plan_tensor(device, dtype, shape) : make_tensor(device, dtype, shape);
  }
  Napi::Value give(Tensor tensor);
  Napi::Value give(const Tensor* const* tensors, size_t count);  // an array of handles; null for a null pointer

 private:
  template <class Args, auto op>
  static const OpInfo& op_info() {
    static const OpInfo& info = op_of(run_op<Args, op>);
    return info;
  }
  double handle(const char* name);

  const Arguments* arguments_ = nullptr;
  const double* numbers_ = nullptr;
  bool needs_values_;  // of the tensors that it takes
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
  Order order;
};

extern const std::vector<Entry> kTensorEntries, kHandleEntries, kCaptureEntries, kAsyncEntries, kLockEntries,
    kProcessGroupEntries;

}  // namespace st_moe

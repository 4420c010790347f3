#include "binding/op_call.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "binding/process_groups.h"

namespace st_moe {
namespace {

class OpCall {
 public:
  OpCall(Call& call, const OpInfo& op) : call_(call), op_(op) {
    op.construct(args_);
    for (const Field& field : op.fields)
      if (field.role == Role::dim || field.role == Role::derived) member<int64_t>(args_, field.offset) = kUnknown;
  }

  Napi::Value run() {
    prepare();
    std::array<Operand, kMaxFields> operands;
    size_t count = 0;
    for_each_operand(args_, [&](const Operand& operand) { operands[count++] = operand; });
    call_.run(op_, args_, op_.args_size, 1, {operands.data(), count}, std::move(kept_));
    return give_outputs();
  }

  // Everything that may fail before the op runs. The pointers of tensors only say which there are.
  void prepare() {
    take_arguments();
    expect_op(*device_->backend, op_);  // before its rules, which ask the backend
    for (size_t i = 0; i < op_.fields.size(); ++i)
      if (tensors_[i]) bind(op_.fields[i], *tensors_[i]);
    finish_types();
    op_.apply_rules(args_, *device_->backend);
    for (size_t i = 0; i < op_.fields.size(); ++i)
      if (tensors_[i] && op_.fields[i].has_derived) expect(op_.fields[i], *tensors_[i]);
    make_outputs();
  }

  Device& device() const { return *device_; }
  const char* args() const { return args_; }

  // f(operand) with pointers into `args`, a copy of args() or that itself
  template <class F>
  void for_each_operand(char* args, F&& f) const {
    size_t output = 0;
    for (size_t i = 0; i < op_.fields.size(); ++i) {
      const Field& field = op_.fields[i];
      const auto use = [&](const Tensor* tensor, Use how) {
        if (tensor) f(Operand(member<void*>(args, field.offset), *tensor, how));
      };
      switch (field.role) {
        case Role::input: use(tensors_[i], Use::read); break;
        case Role::updated: use(tensors_[i], Use::updated); break;
        case Role::output:
        case Role::created: use(given_[output++], field.on_host ? Use::made_on_host : Use::made); break;
        case Role::packed:
          if (tensors_[field.of] && is_float(tensors_[field.of]->dtype)) use(tensors_[field.of], Use::packed);
          break;
        case Role::host_copy: use(tensors_[field.of], Use::host_copy); break;
        default: break;
      }
    }
  }

  template <class F>
  void for_each_tensor(F&& f) const {  // f(tensor, whether the op updates it, its name)
    for (size_t i = 0; i < op_.fields.size(); ++i)
      if (tensors_[i]) f(*tensors_[i], op_.fields[i].role == Role::updated, op_.fields[i].js_name.c_str());
  }

 private:
  template <class T>
  T& at(const Field& field) {
    return member<T>(args_, field.offset);
  }

  void take_arguments() {
    for (size_t i = 0; i < op_.fields.size(); ++i) {
      const Field& field = op_.fields[i];
      const char* name = field.js_name.c_str();
      switch (field.role) {
        case Role::input:
        case Role::updated:
          tensors_[i] = field.optional                         ? call_.optional(name)
                        : field.element == ElementType::weight ? &call_.stored(name)
                                                               : &call_.tensor(name);
          if (tensors_[i]) device_ = tensors_[i]->device;
          break;
        case Role::output: at<void*>(field) = !field.optional || call_.boolean(name) ? this : nullptr; break;
        case Role::created:
          shape_ = call_.shape("shape");
          dtype_ = call_.dtype("dtype");
          typed_ = true;
          device_ = &call_.device();
          at<void*>(field) = this;
          break;
        case Role::compute: at<DType>(field) = call_.compute(name); break;
        case Role::attribute: take(field, name); break;
        case Role::group: at<const ProcessGroup*>(field) = &take_group(name); break;
        case Role::counts: at<const int64_t*>(field) = take_counts(name); break;
        default: break;
      }
    }
    if (!device_) fail(ErrorCode::internal, "no tensor");
  }

  void take(const Field& field, const char* name) {
    if (field.has_default && call_.absent()) return;
    switch (field.attribute) {
      case AttributeType::number: at<double>(field) = call_.number(name); return;
      case AttributeType::flag: at<int32_t>(field) = call_.boolean(name); return;
      case AttributeType::integer:
      case AttributeType::kind:
        at<int32_t>(field) = static_cast<int32_t>(call_.integer(name, field.min, field.max));
        return;
      default: at<int64_t>(field) = call_.integer(name, field.min, field.max);
    }
  }

  const ProcessGroup& take_group(const char* name) {
    const auto group = process_group_of(call_, call_.integer(name, 0, int64_t{1} << 50));
    ranks_ = static_cast<size_t>(group->size());
    kept_.push_back(group);
    return *group;
  }

  // After the group.
  const int64_t* take_counts(const char* name) {
    const Napi::Float64Array given = call_.numbers(name);
    if (given.ElementLength() != ranks_)
      fail(ErrorCode::shape, "%s must have a number for each of %zu ranks, got %zu", name, ranks_,
           given.ElementLength());
    const auto counts = std::make_shared<std::vector<int64_t>>(ranks_);
    for (size_t rank = 0; rank < ranks_; ++rank) {
      const double count = given[rank];
      if (!(count >= 0 && count <= static_cast<double>(kMaxElements) && count == std::floor(count)))
        fail(ErrorCode::shape, "%s must hold non-negative integers, got %g", name, count);
      (*counts)[rank] = static_cast<int64_t>(count);
    }
    kept_.push_back(counts);
    return counts->data();
  }

  // The dtype of an element; the first tensor of a free type sets the dtype of the op.
  DType dtype_of(const Field& field, const Tensor* tensor) {
    if (field.element == ElementType::i32) return DType::i32;
    if (field.element == ElementType::f32) return DType::f32;
    if (field.element == ElementType::f64) return DType::f64;
    if (field.element == ElementType::weight && typed_ && tensor && is_weight(tensor->dtype, dtype_))
      return tensor->dtype;
    if (!typed_) {
      if (field.element == ElementType::real || field.element == ElementType::weight)
        call_.expect_float(field.js_name.c_str(), *tensor);
      dtype_ = tensor->dtype;
      typed_ = true;
    }
    return dtype_;
  }

  Shape shape_of(const Field& field) const {
    if (field.any_shape) return shape_;
    const Shape known = known_shape(field, args_);
    return field.lead < 0 ? known : join(lead_[field.lead], known);
  }

  // leading dimensions, and all of `shape` except the first
  static Shape join(const Shape& leading, const Shape& shape) {
    Shape joined = leading;
    for (size_t i = 1; i < shape.size(); ++i) joined.push_back(shape[i]);
    return joined;
  }

  // [T, …] of [leading…, …]; the first such tensor sets the leading dimensions.
  Shape with_rows(const Field& field, const Tensor& tensor) {
    const size_t own = field.dims.size() - 1, rank = tensor.shape.size();
    if (rank < own) call_.expect_rank(field.js_name.c_str(), tensor, own);
    Shape lead, rows{1};
    for (size_t i = 0; i < rank; ++i) {
      if (i + own >= rank)
        rows.push_back(tensor.shape[i]);
      else
        lead.push_back(tensor.shape[i]), rows[0] *= tensor.shape[i];
    }
    if (!has_lead_[field.lead]) lead_[field.lead] = lead;
    has_lead_[field.lead] = true;
    return rows;
  }

  void expect(const Field& field, const Tensor& tensor) {
    call_.expect(field.js_name.c_str(), tensor, dtype_of(field, &tensor), shape_of(field));
  }

  void bind(const Field& field, Tensor& tensor) {
    if (field.any_shape && !has_shape_) {
      shape_ = tensor.shape;
      has_shape_ = true;
    }
    if (field.role == Role::updated) {
      if (updated_ && tensor.storage == updated_->storage)
        fail(ErrorCode::option, "%s must not share memory with the tensor it updates", field.js_name.c_str());
      if (!updated_) updated_ = &tensor;
    }
    const Shape shape = field.lead < 0 ? tensor.shape : with_rows(field, tensor);
    expect(field, tensor);
    if (!field.any_shape) learn_letters(field, shape, args_);
    at<void*>(field) = &tensor;
  }

  void finish_types() {
    for (const Field& field : op_.fields) {
      if (field.role == Role::dtype) at<DType>(field) = dtype_;
      if (field.role == Role::stored) at<DType>(field) = tensors_[field.of]->dtype;
      if (field.role == Role::compute) {
        DType& compute = at<DType>(field);
        call_.expect_compute(field.js_name.c_str(), compute, dtype_);
        if (compute == kBf16x3 && !device_->backend->bf16x3) compute = dtype_;
      }
      if (field.role == Role::created && field.element == ElementType::real && !is_float(dtype_))
        fail(ErrorCode::dtype, "dtype must be f32 or f64, got %s", dtype_name(dtype_));
      if (field.is_size) at<int64_t>(field) = shape_size(shape_);
    }
  }

  void make_outputs() {
    for (const Field& field : op_.fields) {
      if (field.role != Role::output && field.role != Role::created) continue;
      if (at<void*>(field)) {
        made_[outputs_].emplace(call_.make(*device_, dtype_of(field, nullptr), shape_of(field)));
        given_[outputs_] = &*made_[outputs_];
      }
      if (++outputs_ == kMaxOutputs) fail(ErrorCode::internal, "more than %zu outputs", kMaxOutputs - 1);
    }
  }

  Napi::Value give_outputs() {
    if (outputs_ == 0) return call_.env.Undefined();
    if (outputs_ == 1) return given_[0] ? call_.give(*std::move(made_[0])) : call_.env.Null();
    return call_.give(given_, outputs_);
  }

  static constexpr size_t kMaxOutputs = 16;
  Call& call_;
  const OpInfo& op_;
  alignas(16) char args_[kMaxArgsSize];
  Tensor* tensors_[kMaxFields] = {};
  std::optional<Tensor> made_[kMaxOutputs];
  const Tensor* given_[kMaxOutputs] = {};
  size_t outputs_ = 0;
  Device* device_ = nullptr;
  DType dtype_ = DType::f32;
  Shape shape_, lead_[kLeads];  // "...", and "T...", "R..."
  bool typed_ = false, has_shape_ = false, has_lead_[kLeads] = {};
  const Tensor* updated_ = nullptr;
  size_t ranks_ = 0;  // of the group
  Kept kept_;
};

// A tensor of an item of a batch.
struct ItemUse {
  Storage* storage;
  size_t item;
  bool is_updated;
  const char* name;
};

// A tensor that one item updates is no other item's: they run at the same time.
void expect_apart(const std::vector<ItemUse>& uses) {
  std::unordered_map<const Storage*, size_t> updated;
  const auto check = [](const ItemUse& use, size_t owner) {
    if (use.item != owner)
      fail(ErrorCode::option, "%s must not share memory with a tensor that another item updates", use.name);
  };
  for (const ItemUse& use : uses)
    if (use.is_updated) check(use, updated.emplace(use.storage, use.item).first->second);
  for (const ItemUse& use : uses)
    if (const auto found = updated.find(use.storage); found != updated.end()) check(use, found->second);
}

// (rows): a Float64Array of the arguments of one item after another. A tensor is its handle; an optional one may be 0.
Napi::Value call_batch(Call& call, const OpInfo& op) {
  const Napi::Float64Array rows = call.numbers("rows");
  const auto is_argument = [](const Field& field) {
    return field.role == Role::input || field.role == Role::updated || field.role == Role::attribute;
  };
  const auto width = static_cast<size_t>(std::count_if(op.fields.begin(), op.fields.end(), is_argument));
  const size_t count = rows.ElementLength() / width;
  if (rows.ElementLength() != count * width) fail(ErrorCode::option, "rows must hold %zu numbers each", width);
  if (count == 0) return call.env.Undefined();
  std::vector<char> args(count * op.args_size);
  std::vector<ItemUse> uses;
  std::vector<Operand> operands;
  Device* device = nullptr;
  for (size_t i = 0; i < count; ++i) {
    Call numbers(call, rows.Data() + i * width);
    OpCall item(numbers, op);
    item.prepare();
    if (device && device != &item.device()) fail(ErrorCode::device, "all tensors of a batch must be on one device");
    device = &item.device();
    item.for_each_tensor([&](const Tensor& tensor, bool is_updated, const char* name) {
      uses.push_back({tensor.storage.get(), i, is_updated, name});
    });
    char* const copy = args.data() + i * op.args_size;
    std::memcpy(copy, item.args(), op.args_size);
    item.for_each_operand(copy, [&](const Operand& operand) { operands.push_back(operand); });
  }
  expect_apart(uses);
  call.run(op, args.data(), args.size(), static_cast<int64_t>(count), operands);
  return call.env.Undefined();
}

}  // namespace

Napi::Value call_op(Call& call, const OpInfo& op) {
  return op.takes_batch ? call_batch(call, op) : OpCall(call, op).run();
}

}  // namespace st_moe

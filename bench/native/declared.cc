#include "declared.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string_view>

namespace st_moe::bench {

Tensor& Memory::at(const std::string& name, const Shape& shape, DType dtype, int64_t limit) {
  const auto found = tensors_.find({name, shape_size(shape)});
  if (found != tensors_.end()) return found->second;
  return put(name, dtype == DType::i32 ? bench.integers(shape, limit) : bench.normals(shape));
}

Tensor& Memory::of_dtype(const std::string& name, const Shape& shape, DType dtype) {
  Tensor& found = at(name, shape, dtype);
  return found.dtype == dtype ? found : put(name, bench.filled(shape, 0, dtype));
}

Tensor& Memory::put(const std::string& name, Tensor tensor) {
  return tensors_.insert_or_assign({name, tensor.size}, std::move(tensor)).first->second;
}

const int32_t* Memory::host_copy(const std::string& name, int64_t size) {
  if (bench.backend().host_memory) return nullptr;
  std::vector<int32_t>& copy = host_copies_[{name, size}];
  copy.resize(static_cast<size_t>(size));
  return copy.data();
}

void Memory::copy_to_host(const std::string& name, int64_t size) {
  if (!host_copy(name, size)) return;
  const std::vector<int32_t> values = bench.host<int32_t>(at(name, {size}, DType::i32), 0, size);
  std::copy(values.begin(), values.end(), host_copies_.at({name, size}).begin());
}

DeclaredOp::DeclaredOp(Memory& memory, const std::string& name, const Values& values,
                       const std::map<std::string, std::string>& renamed, DType compute)
    : bench_(memory.bench) {
  for (const OpInfo& op : declared_ops())
    if (name == op.name && !op.by_hand) op_ = &op;
  if (!op_) throw std::invalid_argument("there is no declared op " + name);
  void* args = args_.bytes;
  op_->construct(args);
  for (const Field& field : op_->fields) {
    const auto value = values.find(field.name);
    if (field.role == Role::dtype) member<DType>(args, field.offset) = DType::f32;
    if (field.role == Role::compute) member<DType>(args, field.offset) = compute;
    if (field.role != Role::dim && field.role != Role::attribute) continue;
    if (value == values.end()) {
      if (field.role == Role::dim) throw std::invalid_argument(name + " has no " + field.name);
    } else if (field.role == Role::attribute && field.attribute == AttributeType::number) {
      member<double>(args, field.offset) = value->second;
    } else if (field.role == Role::dim || field.attribute <= AttributeType::seed) {
      member<int64_t>(args, field.offset) = static_cast<int64_t>(value->second);
    } else {
      member<int32_t>(args, field.offset) = static_cast<int32_t>(value->second);
    }
  }
  // The rules look at which tensors are wanted, and shapes may follow from the rules.
  const auto name_of = [&](const Field& field) -> std::string {
    const auto other = renamed.find(field.name);
    if (other == renamed.end() && std::string_view(field.name).ends_with("_sum")) return "";  // instead of an output
    return other == renamed.end() || (other->second.empty() && !field.optional) ? field.name : other->second;
  };
  for (const Field& field : op_->fields)
    if (field.is_tensor() && !name_of(field).empty()) member<const void*>(args, field.offset) = this;
  op_->apply_rules(args, bench_.backend());
  for (const Field& field : op_->fields) {
    if (!field.is_tensor() || !member<void*>(args, field.offset)) continue;
    const std::string name = name_of(field);
    const auto limit = values.find(name);  // of indices
    const DType dtype = field.element == ElementType::i32 ? DType::i32 : DType::f32;
    tensors_.push_back(memory.at(name, known_shape(field, args), dtype,
                                 limit == values.end() ? 1 : static_cast<int64_t>(limit->second)));
    member<void*>(args, field.offset) = tensors_.back().data();
    bytes_ += static_cast<double>(tensors_.back().size) * (field.role == Role::updated ? 8 : 4);
  }
  use_packed(memory);
  use_host_copies(memory);
}

void DeclaredOp::use_host_copies(Memory& memory) {
  void* args = args_.bytes;
  for (const Field& field : op_->fields)
    if (field.role == Role::host_copy)
      for (const Field& of : op_->fields)
        if (of.name == std::string(field.shape) && member<void*>(args, of.offset))
          member<const int32_t*>(args, field.offset) = memory.host_copy(of.name, shape_size(known_shape(of, args)));
}

void DeclaredOp::use_packed(Memory& memory) {
  void* args = args_.bytes;
  for (const Field& field : op_->fields)
    if (field.role == Role::packed)
      for (const Field& of : op_->fields)
        if (of.name == std::string(field.shape))
          member<PackedCopies*>(args, field.offset) = memory.at(of.name, known_shape(of, args)).storage->packed();
}

constexpr int64_t kSmall = 1 << 16;  // elements of a tensor whose numbers the case gives

DeclaredOp::DeclaredOp(Memory& memory, const test::Case& from) : bench_(memory.bench), op_(from.empty.op) {
  void* args = args_.bytes;
  std::memcpy(args, from.empty.args, sizeof from.empty.args);
  test::Problem problem = from.problem(kSmall);
  for (const test::Tensor& t : problem.tensors) member<const void*>(args, t.offset) = t.present ? this : nullptr;
  if (!op_->by_hand) op_->apply_rules(args, bench_.backend());  // sizes that are the backend's
  for (test::Tensor& t : problem.tensors) {
    if (!t.present) continue;
    for (const Field& field : op_->fields)
      if (t.opaque && t.name == field.name) t.size = shape_size(known_shape(field, args));
    // What a backward gets from its forward is in memory already, if the forward has been timed.
    const bool given = t.role == Role::input && t.size <= kSmall && !from.forward;
    tensors_.push_back(given                     ? memory.put(t.name, bench_.given(t.encode(), t.dtype, {t.size}))
                       : t.role == Role::updated ? memory.put(t.name, bench_.filled({t.size}, 1, t.dtype))
                                                 : memory.of_dtype(t.name, {t.size}, t.dtype));
    member<void*>(args, t.offset) = tensors_.back().data();
    bytes_ +=
        static_cast<double>(t.size * static_cast<int64_t>(dtype_size(t.dtype))) * (t.role == Role::updated ? 2 : 1);
  }
  if (!op_->by_hand) use_packed(memory);
}

void DeclaredOp::operator()(int threads) const {
  Bench::check(op_->run(bench_.backend().ops, Context{threads, bench_.device().context.stream}, args_.bytes, 1));
}

}  // namespace st_moe::bench

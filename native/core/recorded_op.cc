#include "core/recorded_op.h"

#include <algorithm>
#include <cstring>

namespace st_moe {

const void* pointer_to(const Storage& storage, Use use) {
  if (use == Use::packed) return storage.packed();
  if (use == Use::host_copy) return storage.remembered();
  return storage.data();
}

GroupMemory::GroupMemory(const OpInfo& op, const void* args) {
  if (op.group) group_ = member<ProcessGroup*>(const_cast<void*>(args), op.group->offset);
  if (is_held()) group_ = nullptr;
}

static void copy_values(Device& device, const void* from, void* to, DType dtype, size_t bytes) {
  static const OpInfo& copy = op_of(run_op<StridedCopyArgs, &OpTable::strided_copy>);
  expect_op(*device.backend, copy);
  StridedCopyArgs args{};
  args.in = from;
  args.out = to;
  args.dtype = dtype;
  args.rank = 1;
  args.shape[0] = static_cast<int64_t>(bytes) / dtype_size(dtype);
  args.in_strides[0] = args.out_strides[0] = 1;
  check(device.backend->ops.strided_copy(device.context, args));
}

Backup::Backup(std::shared_ptr<Storage> storage, DType dtype)
    : storage_(std::move(storage)), copy_(storage_->device(), storage_->bytes()), dtype_(dtype) {
  copy_.allocate();
  copy_values(storage_->device(), storage_->data(), copy_.data(), dtype_, copy_.bytes());
  ++storage_->recorded;
}

void Backup::restore() {
  const auto lock = storage_->device().lock();
  storage_->drop_packed();
  copy_values(storage_->device(), copy_.data(), storage_->data(), dtype_, copy_.bytes());
}

void set_attributes(const OpInfo& op, const double* numbers, void* args) {
  for (const Field& field : op.fields) {
    if (field.role != Role::attribute) continue;
    if (field.attribute == AttributeType::number)
      member<double>(args, field.offset) = *numbers++;
    else  // the step
      member<int64_t>(args, field.offset) = static_cast<int64_t>(*numbers++);
  }
}

RecordedOp::RecordedOp(const char* name, const OpInfo& op, const void* args, size_t size, int64_t count,
                       std::span<const Operand> operands, Kept kept)
    : name_(name),
      device_(operands[0].tensor->device),
      op_(&op),
      count_(count),
      args_(static_cast<const char*>(args), static_cast<const char*>(args) + size),
      kept_(std::move(kept)) {
  operands_.reserve(operands.size());
  for (const Operand& operand : operands) {
    const auto offset = static_cast<size_t>(static_cast<const char*>(operand.at) - static_cast<const char*>(args));
    const Tensor& tensor = *operand.tensor;
    operands_.push_back({offset, tensor.storage, operand.use, tensor.dtype, tensor.data() != nullptr, {}});
    ++tensor.storage->recorded;
    if (operand.use != Use::host_copy) continue;
    if (const int32_t* list = tensor.storage->remembered()) operands_.back().list.assign(list, list + tensor.size);
  }
}

void RecordedOp::settle() {
  if (!is_pending_) return;
  is_pending_ = false;
  for (Storage* storage : last_used_) storage->release();
  for (const Bound& operand : operands_) --operand.storage->recorded;
}

RecordedOp RecordedOp::again() const {
  RecordedOp copy(*this);
  for (const Bound& operand : copy.operands_) ++operand.storage->recorded;
  copy.is_pending_ = true;
  // Until it runs, JavaScript may dispose what it holds now, and what it does not hold it can never get.
  std::erase_if(copy.last_used_, [](const Storage* storage) { return storage->handles != 0; });
  return copy;
}

void RecordedOp::release_last_used() {
  for (Storage* storage : last_used_)
    if (storage->handles == 0) storage->release();
}

bool RecordedOp::makes_tensors() const {
  return std::ranges::any_of(operands_, [](const Bound& operand) { return is_made(operand.use); });
}

bool RecordedOp::can_fail() const {
  return makes_tensors() || op_->takes_memory;
}

// An op that makes no tensor changes all or nothing. What others update is of this call, or a cache of attention, in
// which the next call overwrites the rows of one that failed.
void RecordedOp::back_up(Backups& backups) const {
  if (makes_tensors()) return;
  const auto lock = device_->lock();
  for (const Bound& operand : operands_)
    if (operand.use == Use::updated && operand.existed)
      backups.try_emplace(operand.storage.get(), operand.storage, operand.dtype);
}

void RecordedOp::set_pointers() {
  for (const Bound& operand : operands_) {
    Storage& storage = *operand.storage;
    if (is_made(operand.use) && !storage.data()) storage.allocate();
    if (operand.use == Use::updated) storage.outdate_packed();
    expect_values(storage, "a tensor");
    member<const void*>(args_.data(), operand.offset) =
        operand.list.empty() ? pointer_to(storage, operand.use) : operand.list.data();
  }
}

void RecordedOp::run() {
  const auto lock = device_->lock();
  try {
    set_pointers();
    const GroupMemory memory(*op_, args_.data());
    const Status status = op_->run(device_->backend->ops, device_->context, args_.data(), count_);
    if (memory.is_held())
      for (const Bound& operand : operands_) operand.storage->abandon();
    check(status);
    for (const Bound& operand : operands_) {
      if (operand.use == Use::updated) operand.storage->drop_outdated();
      if (operand.use == Use::made_on_host) operand.storage->remember_values();
    }
  } catch (const Error&) {
    for (const Bound& operand : operands_)
      if (is_made(operand.use)) operand.storage->release();  // it has no values
    throw;
  }
}

void RecordedOp::find_rows() {
  const OpInfo& op = *op_;
  for (size_t item = 0; item * op.args_size < args_.size(); ++item)
    for (const Field& field : op.fields) {
      const bool of_sample = field.attribute == AttributeType::seed && std::strcmp(field.name, "seed") != 0;
      const bool of_update = op.factors && field.attribute == AttributeType::size;
      if (field.role != Role::attribute || !(of_sample || of_update)) continue;
      const auto number = member<uint64_t>(args_.data() + item * op.args_size, field.offset);
      if (number != 0) rows_.push_back({item, field.offset, static_cast<size_t>(number)});  // else it does not sample
    }
}

void RecordedOp::take(std::span<const StepRow> rows) {
  if (rows_.empty()) return;
  const OpInfo& op = *op_;
  for (const Row& row : rows_) {
    char* const args = args_.data() + row.item * op.args_size;
    if (row.number > rows.size() || rows[row.number - 1].op != (op.factors ? &op : nullptr))
      fail(ErrorCode::option, "the numbers of a replay must be those of its step");
    const StepRow& given = rows[row.number - 1];
    if (given.op) {
      set_attributes(op, given.numbers, args);
      continue;
    }
    const auto seed =
        std::ranges::find_if(op.fields, [](const Field& field) { return std::strcmp(field.name, "seed") == 0; });
    member<uint64_t>(args, seed->offset) = static_cast<uint64_t>(given.numbers[0]);
    member<uint64_t>(args, row.step) = static_cast<uint64_t>(given.numbers[1]);
  }
}

}  // namespace st_moe

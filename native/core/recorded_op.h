#pragma once
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/op_fields.h"
#include "core/process_group.h"
#include "core/tensor.h"

// Calls of ops that run later: those of an asynchronous call once, those of a captured step at each replay.
namespace st_moe {

// What an op does with a tensor; or its packed copies or the values that the host remembers, if it has them. The host
// remembers what is made_on_host.
enum class Use : uint8_t { read, made, made_on_host, updated, packed, host_copy };
constexpr bool is_made(Use use) {
  return use == Use::made || use == Use::made_on_host;
}

// A tensor and the pointer to it among the arguments of an op.
struct Operand {
  Operand() = default;
  template <class Pointer>
  Operand(Pointer& at, const Tensor& tensor, Use use = Use::read) : at(&at), tensor(&tensor), use(use) {}

  void* at;  // the address of the pointer
  const Tensor* tensor;
  Use use;
};

// What the arguments of an op point to besides tensors.
using Kept = std::vector<std::shared_ptr<const void>>;

// Whether an op has failed and its process group still uses the memory of its tensors. To be made before the op runs.
class GroupMemory {
 public:
  GroupMemory(const OpInfo& op, const void* args);
  bool is_held() const { return group_ && group_->holds_memory(); }

 private:
  const ProcessGroup* group_ = nullptr;  // null, too, if it has failed before: then the op touches nothing
};

// What the pointer is when the op runs.
const void* pointer_to(const Storage& storage, Use use);

// The values that a storage had before an asynchronous call; nobody reads it meanwhile.
class Backup {
 public:
  Backup(std::shared_ptr<Storage> storage, DType dtype);  // throws Error(out_of_memory)
  ~Backup() { --storage_->recorded; }
  Backup(const Backup&) = delete;
  Backup& operator=(const Backup&) = delete;

  void restore();  // throws Error

 private:
  std::shared_ptr<Storage> storage_;
  Storage copy_;
  DType dtype_;
};
using Backups = std::unordered_map<const Storage*, Backup>;

// The numbers of one sample or parameter update in one replay of a captured step.
struct StepRow {
  const OpInfo* op;       // of the update; null of a sample
  const double* numbers;  // the attributes of the op; or seed and step
};
void set_attributes(const OpInfo& op, const double* numbers, void* args);

// An op that was called but has not run. It keeps its tensors alive; those that it makes have memory only from the
// moment it runs, so deferred calls need the memory of immediate ones.
class RecordedOp {
 public:
  struct Bound {
    size_t offset;  // of the pointer in the arguments
    std::shared_ptr<Storage> storage;
    Use use;
    DType dtype;
    bool existed;               // before the call
    std::vector<int32_t> list;  // of a host_copy that is known: its storage may forget it before the op runs
  };

  RecordedOp(const char* name, const OpInfo& op, const void* args, size_t size, int64_t count,
             std::span<const Operand> operands, Kept kept = {});
  ~RecordedOp() { settle(); }
  RecordedOp(RecordedOp&& other) noexcept = default;
  RecordedOp& operator=(RecordedOp&&) = delete;
  RecordedOp again() const;  // of a captured step: as if it were called now

  bool can_fail() const;
  void back_up(Backups& backups) const;  // what it updates, unless it is there; throws Error(out_of_memory)
  void run();                            // throws Error
  void settle();                         // it no longer counts as one that has not run, and frees what is used last
  const char* name() const { return name_; }
  std::span<const Bound> operands() const { return operands_; }

  // Of a captured step, in which `step` of a sample or update is the number of its row, from 1.
  void find_rows();
  void take(std::span<const StepRow> rows);  // throws Error(option)
  void is_last_use_of(Storage& made) { last_used_.push_back(&made); }
  void release_last_used();  // what JavaScript does not hold

 private:
  RecordedOp(const RecordedOp&) = default;

  struct Row {
    size_t item, step;  // which of the arguments, and the offset of its `step`
    size_t number;
  };

  bool makes_tensors() const;
  void set_pointers();  // throws Error

  const char* name_;
  Device* device_;
  const OpInfo* op_;
  int64_t count_;
  std::vector<char> args_;
  std::vector<Bound> operands_;
  std::vector<Row> rows_;
  std::vector<Storage*> last_used_;  // made in the step
  Kept kept_;
  bool is_pending_ = true;
};

}  // namespace st_moe

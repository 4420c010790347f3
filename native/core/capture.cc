#include "core/capture.h"

#include <cstring>
#include <unordered_map>
#include <utility>

namespace st_moe {
namespace {

// What a backend has captured. It owns the memory of the tensors made inside, which reference it in turn.
class CapturedGraph final : public Capture {
 public:
  explicit CapturedGraph(Device& device) : Capture(device), table_(*device.backend->capture) {
    check(table_.begin(device.context));
  }
  ~CapturedGraph() override {
    try {
      end(false);  // a worker may be terminated during a capture
    } catch (const Error&) {
    }
    if (step_) table_.release(device_.context, step_);
    device_.stats.remove(bytes_);
  }

  void outside(bool on) override {
    Capture::outside(on);
    table_.outside(device_.context, on);
  }

 private:
  bool keeps_ops() const override { return false; }
  bool made(const Storage& storage) const override { return storage.home() == this; }

  // A packed copy has the values from before the step, so the step must create its own.
  void held(Storage& storage) override {
    if (storage.packed()) storage.packed()->clear();
  }

  void finish(bool keep) override {
    for (const auto& storage : held_) held(*storage);  // nothing has filled the copies
    const Status status = table_.end(device_.context, keep, &step_, &bytes_);
    device_.capture = nullptr;
    device_.stats.add(bytes_);
    check(status);
  }

  void run(std::span<const StepRow> rows) override {
    for (Storage* storage : changed_) storage->change();
    std::vector<StepArgs> args;
    for (const StepRow& row : rows) {
      StepArgs& one = args.emplace_back();
      if (row.op) {
        alignas(16) char given[kMaxArgsSize];
        row.op->construct(given);
        set_attributes(*row.op, row.numbers, given);
        one.factors = row.op->factors(given);
      } else {
        one.seed = static_cast<uint64_t>(row.numbers[0]);
        one.step = static_cast<uint64_t>(row.numbers[1]);
      }
    }
    check(table_.replay(device_.context, step_, args.data(), static_cast<int64_t>(args.size())));
  }

  const CaptureTable& table_;
  void* step_ = nullptr;  // the backend's
  size_t bytes_ = 0;
};

// The ops of a step, one after the other. A tensor made inside has memory from the op that makes it to the last one
// that uses it, or as long as JavaScript holds it.
class CapturedOps final : public Capture {
 public:
  explicit CapturedOps(Device& device) : Capture(device) {}
  ~CapturedOps() override { end(false); }

  void record(RecordedOp op) override {
    op.find_rows();
    ops_.push_back(std::move(op));
  }

 private:
  bool keeps_ops() const override { return true; }
  bool made(const Storage& storage) const override { return !storage.data(); }

  void finish(bool keep) override {
    device_.capture = nullptr;
    for (RecordedOp& op : ops_) op.settle();
    if (!keep) return ops_.clear();
    std::unordered_map<Storage*, size_t> last;
    for (size_t i = 0; i < ops_.size(); ++i)
      for (const auto& operand : ops_[i].operands())
        if (!operand.storage->data()) last[operand.storage.get()] = i;
    for (const auto& [storage, i] : last) ops_[i].is_last_use_of(*storage);
    for (const auto& [storage, i] : last) {
      if (storage->handles == 0) continue;
      changed_.insert(storage);
      storage->allocate();
      std::memset(storage->data(), 0xff, storage->bytes());  // NaN until the first replay
    }
  }

  void run(std::span<const StepRow> rows) override {
    begin(ops_, rows);
    for (RecordedOp& op : ops_) {
      try {
        op.run();
      } catch (const Error& error) {
        for (RecordedOp& any : ops_) any.release_last_used();
        throw Error(error.code(), error.what(), op.name());
      }
      op.release_last_used();
    }
  }

  std::vector<RecordedOp> ops(std::span<const StepRow> rows) override {
    std::vector<RecordedOp> copies;
    copies.reserve(ops_.size());
    for (const RecordedOp& op : ops_) copies.push_back(op.again());
    begin(copies, rows);
    return copies;
  }

  void begin(std::vector<RecordedOp>& ops, std::span<const StepRow> rows) const {
    for (RecordedOp& op : ops) op.take(rows);
    for (Storage* storage : changed_) storage->note_change();
  }

  std::vector<RecordedOp> ops_;
};

}  // namespace

std::shared_ptr<Capture> Capture::begin(Device& device) {
  if (device.capture) fail(ErrorCode::unsupported, "a step is being captured on %s already", device.backend->name);
  std::shared_ptr<Capture> capture;
  if (device.backend->capture)
    capture = std::make_shared<CapturedGraph>(device);
  else if (device.backend->host_memory)
    capture = std::make_shared<CapturedOps>(device);
  else
    fail(ErrorCode::unsupported, "%s cannot capture a step", device.backend->name);
  device.capture = capture.get();
  return capture;
}

void Capture::hold(const std::shared_ptr<Storage>& storage) {
  if (made(*storage) || !known_.insert(storage.get()).second) return;
  held_.push_back(storage);
  held(*storage);
}

void Capture::changes(Storage& storage) {
  if (known_.count(&storage)) changed_.insert(&storage);
}

void Capture::record(RecordedOp) {
  fail(ErrorCode::internal, "the backend captures what ops run");
}

std::vector<RecordedOp> Capture::ops(std::span<const StepRow>) {
  fail(ErrorCode::internal, "the backend has captured what the ops ran");
}

void Capture::end(bool keep) {
  if (!std::exchange(is_open_, false)) return;
  try {
    finish(keep);
  } catch (...) {
    held_.clear();
    changed_.clear();
    throw;
  }
  if (keep) return;
  held_.clear();
  changed_.clear();
}

void Capture::begin_replay() {
  for (const auto& storage : held_)
    if (storage->handles == 0)
      fail(ErrorCode::disposed,
           "a tensor that the step reads or writes has been disposed, replaced or moved; capture the step again");
  ++replays_;
}

void Capture::replay(std::span<const StepRow> rows) {
  begin_replay();
  run(rows);
}

std::vector<RecordedOp> Capture::replay_later(std::span<const StepRow> rows) {
  if (!keeps_ops())
    fail(ErrorCode::unsupported, "on %s a replay does not wait: it belongs outside of asynchronous calls",
         device_.backend->name);
  begin_replay();
  return ops(rows);
}

}  // namespace st_moe

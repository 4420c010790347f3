#pragma once
#include <memory>
#include <span>
#include <unordered_set>
#include <vector>

#include "core/recorded_op.h"

namespace st_moe {

// A captured step on a device, to be replayed. It references the tensors from outside that it reads and writes.
class Capture : public std::enable_shared_from_this<Capture> {
 public:
  static std::shared_ptr<Capture> begin(Device& device);  // throws Error(unsupported)
  virtual ~Capture() = default;
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  const Device& device() const { return device_; }

  // During capture.
  void hold(const std::shared_ptr<Storage>& storage);  // an op reads or writes it
  void changes(Storage& storage);
  virtual void outside(bool on) { device_.capture = on ? nullptr : this; }  // between on and off, ops run immediately
  void end(bool keep);                                                      // throws Error
  // Whether ops are recorded here, with tensors that have no memory yet; else the backend captures what they run.
  bool records_ops() const { return keeps_ops() && device_.capture == this; }
  virtual void record(RecordedOp op);

  // After capture. Throws Error(disposed) if a tensor from outside was freed.
  void replay(std::span<const StepRow> rows);
  std::vector<RecordedOp> replay_later(std::span<const StepRow> rows);  // its ops; throws Error(unsupported), too
  uint32_t replays() const { return replays_; }                         // each changes what the step has made

 protected:
  explicit Capture(Device& device) : device_(device) {}

  virtual bool keeps_ops() const = 0;
  virtual bool made(const Storage& storage) const = 0;  // inside the step
  virtual void held(Storage&) {}
  virtual void finish(bool keep) = 0;                   // throws Error
  virtual void run(std::span<const StepRow> rows) = 0;  // throws Error
  virtual std::vector<RecordedOp> ops(std::span<const StepRow> rows);

  Device& device_;
  std::vector<std::shared_ptr<Storage>> held_;
  std::unordered_set<Storage*> changed_;  // by each replay: some of held_, and results that are not home here

 private:
  void begin_replay();

  std::unordered_set<const Storage*> known_;  // those of held_
  uint32_t replays_ = 0;
  bool is_open_ = true;
};

}  // namespace st_moe

#pragma once
#include <memory>
#include <unordered_set>
#include <vector>

#include "core/tensor.h"

namespace st_moe {

// A captured step on a device, to be replayed. It references the tensors from outside that it reads and writes, and
// owns the memory of those created inside, which reference it in turn.
class Capture : public std::enable_shared_from_this<Capture> {
 public:
  explicit Capture(Device& device);  // begins; throws Error
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  const Device& device() const { return device_; }

  // During capture.
  void hold(const std::shared_ptr<Storage>& storage);  // an op reads or writes it
  void changes(Storage& storage);
  void outside(bool on);  // between on and off, ops run immediately, outside capture
  void end(bool keep);    // throws Error

  // After capture. Throws Error(disposed) if a tensor from outside was freed.
  void replay(const std::vector<StepArgs>& args);

 private:
  Device& device_;
  std::vector<std::shared_ptr<Storage>> held_;
  std::unordered_set<const Storage*> known_;  // those of held_
  std::unordered_set<Storage*> changed_;      // some of them
  void* step_ = nullptr;                      // the backend's
  size_t bytes_ = 0;
  bool recording_ = true;
};

}  // namespace st_moe

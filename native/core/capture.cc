#include "core/capture.h"

namespace st_moe {

static void check(const Status& status) {
  if (status.code != ErrorCode::none) throw Error(status.code, status.text);
}

Capture::Capture(Device& device) : device_(device) {
  if (!device.backend->capture) fail(ErrorCode::unsupported, "steps cannot be captured on %s", device.backend->name);
  if (device.capture) fail(ErrorCode::unsupported, "a step is being captured on %s already", device.backend->name);
  check(device.backend->capture->begin(device.context));
  device.capture = this;
}

Capture::~Capture() {
  try {
    end(false);  // a worker may be terminated during a capture
  } catch (const Error&) {
  }
  if (step_) device_.backend->capture->release(device_.context, step_);
  device_.stats.remove(bytes_);
}

// A packed copy has the values from before the step, so the step must create its own.
void Capture::hold(const std::shared_ptr<Storage>& storage) {
  if (storage->home() == this || !known_.insert(storage.get()).second) return;
  held_.push_back(storage);
  if (storage->packed()) storage->packed()->clear();
}

void Capture::changes(Storage& storage) {
  if (known_.count(&storage)) changed_.insert(&storage);
}

void Capture::outside(bool on) {
  device_.capture = on ? nullptr : this;
  device_.backend->capture->outside(device_.context, on);
}

void Capture::end(bool keep) {
  if (!recording_) return;
  recording_ = false;
  for (const auto& storage : held_)
    if (storage->packed()) storage->packed()->clear();  // nothing has filled them
  const Status status = device_.backend->capture->end(device_.context, keep, &step_, &bytes_);
  device_.capture = nullptr;
  device_.stats.add(bytes_);
  if (!keep || status.code != ErrorCode::none) {
    held_.clear();
    changed_.clear();
  }
  check(status);
}

void Capture::replay(const std::vector<StepArgs>& args) {
  for (const auto& storage : held_)
    if (storage->handles == 0)
      fail(ErrorCode::disposed,
           "a tensor that the step reads or writes has been disposed, replaced or moved; capture the step again");
  for (Storage* storage : changed_) storage->change();
  check(device_.backend->capture->replay(device_.context, step_, args.data(), static_cast<int64_t>(args.size())));
}

}  // namespace st_moe

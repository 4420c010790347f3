#include "core/tensor.h"

#include <new>
#include <utility>

#include "core/blocks.h"
#include "core/capture.h"

namespace st_moe {

void check(const Status& status) {
  if (status.code != ErrorCode::none) throw Error(status.code, status.text);
}

Device::~Device() {
  if (!plugin) return;
  lock();
  plugin->close(backend, &context);
}

std::unique_lock<std::recursive_mutex> Device::lock() {
  if (!plugin) return {};
  std::unique_lock lock(mutex_);
  const std::lock_guard guard(released_mutex_);
  for (const Block& block : released_) backend->release(context, block.data, block.bytes);
  released_.clear();
  return lock;
}

void Device::release(void* data, size_t bytes) noexcept {
  std::unique_lock lock(mutex_, std::defer_lock);
  if (plugin && !lock.try_lock()) {
    try {
      const std::lock_guard guard(released_mutex_);
      released_.push_back({data, bytes});
      return;
    } catch (const std::bad_alloc&) {
      lock.lock();
    }
  }
  backend->release(context, data, bytes);
}

void Storage::allocate() {
  const Backend& backend = *device_.backend;
  const auto lock = device_.lock();
  data_ = backend.allocate(device_.context, bytes_);
  if (!data_) {
    const Status error = backend.allocation_error ? backend.allocation_error(device_.context) : Status{};
    if (error.code != ErrorCode::none) throw Error(error.code, error.text);
    fail(ErrorCode::out_of_memory, "not enough memory on %s for %zu bytes; %lld bytes of tensors are live%s%s",
         backend.name, bytes_, static_cast<long long>(device_.stats.bytes), error.text[0] ? "; " : "", error.text);
  }
  if (device_.capture) home_ = device_.capture->shared_from_this();
  if (!home_) device_.stats.add(bytes_);  // a captured step counts its memory as a whole
}

void Storage::release() {
  if (!data_) return;
  if (home_ && device_.capture != home_.get()) return;  // the captured step still uses it
  if (!is_abandoned_) {
    if (!home_) device_.stats.remove(bytes_);
    device_.release(data_, bytes_);
  }
  data_ = nullptr;
}

void Storage::remember(const void* host, DType dtype) {
  constexpr size_t limit = 16 << 10;
  if (dtype != DType::i32 || bytes_ > limit) return;
  const auto* values = static_cast<const int32_t*>(host);
  remembered_.assign(values, values + bytes_ / sizeof(int32_t));
}

void Storage::remember_values() {
  if (!device_.plugin || device_.capture) return;
  std::vector<int32_t> values(bytes_ / sizeof(int32_t));
  check(device_.backend->copy_out(device_.context, values.data(), data_, bytes_));
  remember(values.data(), DType::i32);
}

uint32_t Storage::version() const {
  return version_ + (home_ ? home_->replays() : 0);
}

void Storage::note_change() {
  ++version_;
  remembered_.clear();
  if (device_.capture) device_.capture->changes(*this);
}

void Storage::drop_packed() {
  if (packed_) packed_->clear();
}

void Storage::outdate_packed() {
  if (device_.capture) return drop_packed();
  if (packed_) packed_->outdate();
}

void Storage::drop_outdated() {
  if (packed_) packed_->drop_outdated();
}

void Storage::keep_packed() {
  if (!packed_ && !home_ && data_) packed_ = std::make_unique<PackedStore>(device_);
}

void expect_values(const Storage& storage, const char* name) {
  if (!storage.data())
    fail(ErrorCode::disposed, "%s has no values: the call that computes it failed or was aborted", name);
}

int64_t shape_size(const Shape& shape) {
  constexpr int64_t limit = int64_t{1} << 46;
  int64_t size = 1;
  bool empty = false;
  for (int64_t n : shape) {
    if (n < 0) fail(ErrorCode::shape, "a dimension must not be negative, got %lld", static_cast<long long>(n));
    if (n == 0) empty = true;
    if (n > limit || (n > 0 && size > limit / n)) fail(ErrorCode::shape, "a tensor has at most 2^46 elements");
    if (n > 0) size *= n;
  }
  return empty ? 0 : size;
}

size_t Tensor::bytes() const {
  if (is_blocked(dtype) && shape.empty()) fail(ErrorCode::shape, "%s needs a dimension of blocks", dtype_name(dtype));
  return static_cast<size_t>(bytes_of(dtype, size, shape.empty() ? 1 : shape[shape.size() - 1]));
}

Tensor plan_tensor(Device& device, DType dtype, const Shape& shape) {
  Tensor tensor;
  tensor.size = shape_size(shape);
  tensor.device = &device;
  tensor.dtype = dtype;
  tensor.shape = shape;
  tensor.storage = std::make_shared<Storage>(device, tensor.bytes());
  return tensor;
}

Tensor make_tensor(Device& device, DType dtype, const Shape& shape) {
  Tensor tensor = plan_tensor(device, dtype, shape);
  tensor.storage->allocate();
  return tensor;
}

TensorTable::Slot* TensorTable::find(Handle handle) {
  const auto index = static_cast<uint64_t>(handle) & ((uint64_t{1} << kSlotBits) - 1);
  if (handle <= 0 || index >= slots_.size()) return nullptr;
  Slot& slot = slots_[index];
  return slot.references > 0 && slot.generation == handle >> kSlotBits ? &slot : nullptr;
}

void TensorTable::reserve(size_t count) {
  while (free_.size() < count) {
    if (slots_.size() >> kSlotBits) fail(ErrorCode::out_of_memory, "more than 2^24 tensors are alive");
    const auto index = static_cast<uint32_t>(slots_.size());
    if (free_.capacity() <= slots_.size()) free_.reserve(2 * slots_.size() + 64);  // so that release never allocates
    slots_.emplace_back().index = index;
    free_.push_back(index);
  }
}

TensorTable::Handle TensorTable::insert(Tensor tensor) {
  reserve(1);
  Slot& slot = slots_[free_.back()];
  free_.pop_back();
  ++tensor.device->stats.tensors;
  slot.tensor = std::move(tensor);
  ++slot.tensor.storage->handles;
  slot.references = 1;
  return slot.generation << kSlotBits | slot.index;
}

Tensor& TensorTable::get(Handle handle) {
  Slot* slot = find(handle);
  if (!slot) fail(ErrorCode::disposed, "the tensor has been disposed");
  return slot->tensor;
}

bool TensorTable::alive(Handle handle) const {
  return const_cast<TensorTable*>(this)->find(handle) != nullptr;
}

int64_t TensorTable::references(Handle handle) {
  const Slot* slot = find(handle);
  return slot ? slot->references : 0;
}

void TensorTable::retain(Handle handle) {
  Slot* slot = find(handle);
  if (!slot) fail(ErrorCode::disposed, "the tensor has been disposed");
  ++slot->references;
}

void TensorTable::release(Handle handle) {
  Slot* slot = find(handle);
  if (!slot || --slot->references > 0) return;
  --slot->tensor.device->stats.tensors;
  --slot->tensor.storage->handles;
  slot->tensor = Tensor{};
  slot->generation = slot->generation < kMaxGeneration ? slot->generation + 1 : 1;
  free_.push_back(slot->index);
}

}  // namespace st_moe

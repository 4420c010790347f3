#include "core/tensor.h"

#include <utility>

#include "core/capture.h"

namespace st_moe {

Storage::Storage(Device& device, size_t bytes)
    : device_(device),
      bytes_(bytes),
      home_(device.capture ? device.capture->shared_from_this() : nullptr),
      data_(device.backend->allocate(device.context, bytes)) {
  if (!data_) {
    const Backend& backend = *device.backend;
    const Status error = backend.allocation_error ? backend.allocation_error(device.context) : Status{};
    if (error.code != ErrorCode::none) throw Error(error.code, error.text);
    fail(ErrorCode::out_of_memory, "not enough memory on %s for %zu bytes (%lld bytes are live)", backend.name, bytes,
         static_cast<long long>(device.stats.bytes));
  }
  if (!home_) device.stats.add(bytes);  // a captured step counts its memory as a whole
}

Storage::~Storage() {
  if (home_ && device_.capture != home_.get()) return;  // the captured step still uses it
  if (!home_) device_.stats.remove(bytes_);
  device_.backend->release(device_.context, data_, bytes_);
}

void Storage::remember(const void* host, DType dtype) {
  constexpr size_t limit = 16 << 10;
  if (dtype != DType::i32 || bytes_ > limit) return;
  const auto* values = static_cast<const int32_t*>(host);
  remembered_.assign(values, values + bytes_ / sizeof(int32_t));
}

void Storage::change() {
  ++version_;
  remembered_.clear();
  if (device_.capture) device_.capture->changes(*this);
  if (packed_) packed_->clear();
}

void Storage::keep_packed() {
  if (!packed_ && !home_) packed_ = std::make_unique<PackedStore>(device_);
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

Tensor make_tensor(Device& device, DType dtype, const Shape& shape) {
  Tensor tensor;
  tensor.size = shape_size(shape);
  tensor.device = &device;
  tensor.dtype = dtype;
  tensor.storage = std::make_shared<Storage>(device, static_cast<size_t>(tensor.size) * dtype_size(dtype));
  tensor.shape = shape;
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

#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "core/packed.h"
#include "core/plugin.h"
#include "core/shape.h"

// Tensors are in a table of the environment (main thread or worker) that created them. JavaScript holds handles: slot
// number and generation, so that the handle of a freed tensor is detected and never reads foreign memory.
namespace st_moe {

struct MemoryStats {
  int64_t tensors = 0;  // live slots
  int64_t bytes = 0;    // live storage and packed copies
  int64_t peak_bytes = 0;

  void add(size_t n) {
    bytes += static_cast<int64_t>(n);
    if (bytes > peak_bytes) peak_bytes = bytes;
  }
  void remove(size_t n) { bytes -= static_cast<int64_t>(n); }
};

class Capture;

// A backend with the stream and counters of one environment.
struct Device {
  Device(const Backend* backend, const Context& context, const Plugin* plugin = nullptr)
      : backend(backend), context(context), plugin(plugin) {}
  ~Device() {
    if (plugin) plugin->close(backend, &context);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Backend* backend;
  Context context;
  MemoryStats stats;
  const Plugin* plugin;        // null: compiled in
  Capture* capture = nullptr;  // the step that is being captured
};

// Memory of one or more tensors (a reshape shares it).
class Storage {
 public:
  Storage(Device& device, size_t bytes);  // throws Error(out_of_memory)
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  void* data() const { return data_; }

  // The values that the host wrote, if they are useful without waiting for the device: short lists of i32, such as
  // group sizes.
  void remember(const void* host, DType dtype);
  // Null if unknown, or if it may differ at the next replay of a captured step.
  const int32_t* remembered() const { return remembered_.empty() || device_.capture ? nullptr : remembered_.data(); }

  uint32_t version() const { return version_; }
  void change();  // before every in-place change: increments the version, drops values derived from the data

  void keep_packed();                                    // from now on: this is a parameter
  PackedStore* packed() const { return packed_.get(); }  // null unless kept

  const Capture* home() const { return home_.get(); }  // the captured step whose memory this is; or null
  int64_t handles = 0;                                 // live handles of tensors on it

 private:
  Device& device_;
  uint32_t version_ = 0;
  std::unique_ptr<PackedStore> packed_;
  std::vector<int32_t> remembered_;  // until a change
  size_t bytes_;
  std::shared_ptr<Capture> home_;
  void* data_;
};

struct Tensor {
  std::shared_ptr<Storage> storage;
  Device* device = nullptr;
  DType dtype = DType::f32;
  Shape shape;
  int64_t size = 0;

  void* data() const { return storage->data(); }
};

// Elements of a shape. Throws Error(shape) if a dimension is negative or the size exceeds 2^46 elements.
int64_t shape_size(const Shape& shape);

// Uninitialized. Throws Error(shape | out_of_memory).
Tensor make_tensor(Device& device, DType dtype, const Shape& shape);

class TensorTable {
 public:
  using Handle = int64_t;  // generation << 24 | slot; below 2^53, so exact as a JavaScript number

  void reserve(size_t count);  // the next `count` inserts do not allocate; throws std::bad_alloc, Error(out_of_memory)
  Handle insert(Tensor tensor);  // with one reference
  Tensor& get(Handle handle);    // throws Error(disposed); stays valid while the handle has references
  bool alive(Handle handle) const;
  int64_t references(Handle handle);  // 0 of a dead handle
  void retain(Handle handle);         // throws Error(disposed)
  void release(Handle handle);        // does nothing for a dead handle

 private:
  static constexpr int kSlotBits = 24;
  static constexpr int64_t kMaxGeneration = (int64_t{1} << 29) - 1;
  struct Slot {
    Tensor tensor;
    uint32_t index = 0;
    int64_t generation = 1;
    int64_t references = 0;
  };
  Slot* find(Handle handle);

  std::deque<Slot> slots_;  // never moves a slot when it grows
  std::vector<uint32_t> free_;
};

}  // namespace st_moe

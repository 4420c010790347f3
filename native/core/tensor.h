#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "core/packed.h"
#include "core/plugin.h"
#include "core/shape.h"

// Tensors are in a table of the environment (main thread or worker) that created them. JavaScript holds handles: slot
// number and generation, so that the handle of a freed tensor is detected and never reads foreign memory.
namespace st_moe {

// The thread of asynchronous calls allocates and frees as well.
struct MemoryStats {
  int64_t tensors = 0;            // live slots
  std::atomic<int64_t> bytes{0};  // live storage and packed copies
  std::atomic<int64_t> peak_bytes{0};

  void add(size_t n) {
    const int64_t now = bytes += static_cast<int64_t>(n);
    int64_t peak = peak_bytes;
    while (now > peak && !peak_bytes.compare_exchange_weak(peak, now));
  }
  void remove(size_t n) { bytes -= static_cast<int64_t>(n); }
};

class Capture;

// A backend with the stream and counters of one environment. A stream is for one thread at a time, but JavaScript frees
// tensors while the thread of asynchronous calls computes or waits: their memory is given back by whoever locks next.
struct Device {
  Device(const Backend* backend, const Context& context, const Plugin* plugin = nullptr)
      : backend(backend), context(context), plugin(plugin) {}
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  std::unique_lock<std::recursive_mutex> lock();  // owns nothing unless it is a plugin's device
  void release(void* data, size_t bytes) noexcept;

  const Backend* backend;
  Context context;
  MemoryStats stats;
  const Plugin* plugin;        // null: compiled in
  Capture* capture = nullptr;  // the step that is being captured

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  std::recursive_mutex mutex_;
  std::mutex released_mutex_;
  std::vector<Block> released_;  // while another thread had the lock
};

// Memory of one or more tensors (a reshape shares it).
class Storage {
 public:
  Storage(Device& device, size_t bytes) : device_(device), bytes_(bytes) {}
  ~Storage() { release(); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  void allocate();  // throws Error(out_of_memory)
  void release();
  void abandon() { is_abandoned_ = true; }  // it is never freed: a library may still write to it
  Device& device() const { return device_; }
  void* data() const { return data_; }  // null unless allocated
  size_t bytes() const { return bytes_; }

  // The values that the host wrote, if they are useful without waiting for the device: short lists of i32, such as
  // group sizes.
  void remember(const void* host, DType dtype);
  void remember_values();  // waits for the device, unless a step is being captured; throws Error
  // Null if unknown, or if it may differ at the next replay of a captured step.
  const int32_t* remembered() const { return remembered_.empty() || device_.capture ? nullptr : remembered_.data(); }

  uint32_t version() const;
  // Before every in-place change: increments the version; the values derived from the data, which are dropped before
  // the op runs.
  void note_change();
  void drop_packed();
  void change() { note_change(), drop_packed(); }
  // Before and after an op that changes the data: it may write packed copies anew, but none that a captured step fills.
  void outdate_packed();
  void drop_outdated();

  void keep_packed();                                    // from now on: this is a parameter
  PackedStore* packed() const { return packed_.get(); }  // null unless kept

  const Capture* home() const { return home_.get(); }  // the captured step whose memory this is; or null
  int64_t handles = 0;                                 // live handles of tensors on it
  std::atomic<int32_t> recorded{0};  // ops that use it and run later: of asynchronous calls and open captures

 private:
  Device& device_;
  uint32_t version_ = 0;
  std::unique_ptr<PackedStore> packed_;
  std::vector<int32_t> remembered_;  // until a change
  size_t bytes_;
  std::shared_ptr<Capture> home_;
  void* data_ = nullptr;
  bool is_abandoned_ = false;
};

// Throws Error unless it is ErrorCode::none.
void check(const Status& status);

// Throws Error(disposed) if the op of a deferred call that makes the values has failed.
void expect_values(const Storage& storage, const char* name);

struct Tensor {
  std::shared_ptr<Storage> storage;
  Device* device = nullptr;
  DType dtype = DType::f32;
  Shape shape;
  int64_t size = 0;

  void* data() const { return storage->data(); }
  size_t bytes() const;  // of its elements; throws Error(shape) if the dtype is blocked and it has no dimension
};

// Elements of a shape. Throws Error(shape) if a dimension is negative or the size exceeds 2^46 elements.
int64_t shape_size(const Shape& shape);

// Without memory. Throws Error(shape).
Tensor plan_tensor(Device& device, DType dtype, const Shape& shape);
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

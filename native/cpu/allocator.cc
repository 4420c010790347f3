#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <mutex>
#include <new>

#include "core/error.h"
#include "cpu/pool.h"
#include "cpu/system_memory.h"

namespace st_moe::cpu {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 46;
constexpr size_t kFineStep = 64, kFineLimit = 4096;  // multiples of 64 bytes up to 4 KiB
constexpr int kFineClasses = kFineLimit / kFineStep;
constexpr int kStepsPerOctave = 8;  // above: wastes at most 1/8 of a block
constexpr int kClasses = kFineClasses + (46 - 12) * kStepsPerOctave;
constexpr size_t kHugeScratch = size_t{512} << 10;       // from this size on, scratch memory is at least one huge page
constexpr size_t kCheckedLimit = size_t{256} << 20;      // from this size on, checks that the system has as much
constexpr auto kIdle = std::chrono::milliseconds(2000);  // a size class that has not been used for so long is idle
constexpr size_t kIdlePart = size_t{256} << 20;          // given back at once: the system takes 20 ms or so for it
constexpr int kIdlePause = 20;                           // milliseconds
constexpr size_t kCacheLimit = size_t{2} << 30, kCacheFloor = size_t{64} << 20;

// Under ASan each block comes from the system, so that a use after release is detected.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kCaching = false;
#else
constexpr bool kCaching = true;
#endif

struct SizeClass {
  int index;
  size_t bytes;
};

SizeClass size_class(size_t bytes) {
  if (bytes <= kFineLimit) {
    const size_t steps = bytes == 0 ? 1 : (bytes + kFineStep - 1) / kFineStep;
    return {static_cast<int>(steps) - 1, steps * kFineStep};
  }
  const int octave = 63 - __builtin_clzll(bytes - 1);  // 2^octave < bytes ≤ 2^(octave + 1)
  const size_t base = size_t{1} << octave, step = base / kStepsPerOctave;
  const size_t steps = (bytes - base + step - 1) / step;
  return {kFineClasses + (octave - 12) * kStepsPerOctave + static_cast<int>(steps) - 1, base + steps * step};
}

SizeClass scratch_class(size_t bytes) {
  return size_class(kCaching && bytes >= kHugeScratch && bytes < kHugePage ? kHugePage : bytes);
}

// Bytes from the system, in use and cached, and the most that they may be.
std::atomic<size_t> taken{0}, most{std::numeric_limits<size_t>::max()};

void give_back(void* data, size_t bytes) {
  system_release(data, bytes);
  taken -= bytes;
}

// Counts bytes that are to be taken; false: they would exceed the limit.
bool take(size_t bytes) {
  const size_t limit = most;
  size_t before = taken;
  do {
    if (bytes > limit || before > limit - bytes) return false;
  } while (!taken.compare_exchange_weak(before, before + bytes));
  return true;
}

void* checked_allocate(size_t bytes) {
  if (!take(bytes)) return nullptr;
  if (bytes < kCheckedLimit || bytes <= available_bytes())
    if (void* data = system_allocate(bytes)) return data;
  taken -= bytes;
  return nullptr;
}

size_t cache_limit() {
  const size_t share = physical_bytes() / 8;
  return share < kCacheFloor ? kCacheFloor : share > kCacheLimit ? kCacheLimit : share;
}

// Free blocks by size class, linked through their first bytes.
class Cache {
 public:
  void* take(SizeClass size) {
    std::lock_guard<std::mutex> lock(mutex_);
    List& list = lists_[size.index];
    list.last_use = ++clock_;
    Block* block = list.head;
    if (!block) return nullptr;
    list.head = block->next;
    held_ -= size.bytes;
    return block;
  }

  void give(void* data, SizeClass size) {
    Block* evicted = nullptr;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (size.bytes > limit_) {
        evicted = new (data) Block{nullptr, size.bytes};
      } else {
        while (held_ + size.bytes > limit_) evict(stalest(), evicted);
        List& list = lists_[size.index];
        list.last_use = ++clock_;
        list.head = new (data) Block{list.head, size.bytes};
        held_ += size.bytes;
      }
    }
    release(evicted);
  }

  size_t held() {
    std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

  void trim() {
    Block* evicted = nullptr;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (List& list : lists_)
        while (list.head) evict(list, evicted);
    }
    release(evicted);
  }

  int trim_idle() {
    Block* evicted = nullptr;
    int pause = 0;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto now = std::chrono::steady_clock::now();
      if (now >= next_mark_) {
        idle_until_ = mark_;
        mark_ = clock_;
        next_mark_ = now + kIdle;
      }
      size_t part = 0;
      for (List& list : lists_)
        for (; list.head && list.last_use <= idle_until_ && part < kIdlePart; evict(list, evicted))
          part += list.head->bytes;
      const auto rest = std::chrono::ceil<std::chrono::milliseconds>(next_mark_ - now).count();
      if (held_ > 0) pause = part < kIdlePart ? static_cast<int>(rest) : kIdlePause;
    }
    release(evicted);
    return pause;
  }

 private:
  struct Block {
    Block* next;
    size_t bytes;
  };
  struct List {
    Block* head = nullptr;
    uint64_t last_use = 0;
  };

  // The size class that was used least recently: left over from shapes no longer in use.
  List& stalest() {
    List* oldest = nullptr;
    for (List& list : lists_)
      if (list.head && (!oldest || list.last_use < oldest->last_use)) oldest = &list;
    return *oldest;
  }

  void evict(List& list, Block*& evicted) {
    Block* block = list.head;
    list.head = block->next;
    held_ -= block->bytes;
    block->next = evicted;
    evicted = block;
  }

  static void release(Block* block) {
    while (block) {
      Block* next = block->next;
      give_back(block, block->bytes);
      block = next;
    }
  }

  std::mutex mutex_;
  List lists_[kClasses];
  uint64_t clock_ = 0;
  // Idle is what was used last before the mark before the last; a mark is at least kIdle after another.
  uint64_t mark_ = 0, idle_until_ = 0;
  std::chrono::steady_clock::time_point next_mark_{};
  size_t held_ = 0;
  const size_t limit_ = cache_limit();
};

// Never destroyed, because blocks are returned while the process exits.
Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

void* allocate_class(SizeClass size) {
  if (!kCaching) return checked_allocate(size.bytes);
  if (void* data = cache().take(size)) return data;
  if (void* data = checked_allocate(size.bytes)) return data;
  cache().trim();
  return checked_allocate(size.bytes);
}

void release_class(void* data, SizeClass size) {
  if (kCaching) {
    cache().give(data, size);
  } else {
    give_back(data, size.bytes);
  }
}

// Thread-local cache of the last scratch blocks, so that tasks allocate without a lock.
class ThreadCache {
 public:
  static constexpr size_t kLimit = kHugePage;

  ~ThreadCache() {
    for (Entry& entry : entries_)
      if (entry.data) release_class(entry.data, entry.size);
  }

  void* take(SizeClass size) {
    for (Entry& entry : entries_)
      if (entry.data && entry.size.index == size.index) {
        void* data = entry.data;
        entry.data = nullptr;
        return data;
      }
    return nullptr;
  }

  void give(void* data, SizeClass size) {
    Entry* place = nullptr;
    for (Entry& entry : entries_)
      if (!entry.data) place = &entry;
    if (!place) {
      place = &entries_[victim_++ % kEntries];
      release_class(place->data, place->size);
    }
    *place = {data, size};
  }

 private:
  static constexpr unsigned kEntries = 6;
  struct Entry {
    void* data = nullptr;
    SizeClass size{};
  };
  Entry entries_[kEntries];
  unsigned victim_ = 0;
};

thread_local ThreadCache thread_cache;

}  // namespace

void* cache_allocate(size_t bytes) {
  return bytes > kMaxBytes ? nullptr : allocate_class(size_class(bytes));
}

void cache_release(void* data, size_t bytes) {
  if (data) release_class(data, size_class(bytes));
}

size_t cached_bytes() {
  return cache().held();
}

void cache_trim() {
  cache().trim();
}

int cache_trim_idle() {
  return cache().trim_idle();
}

void set_memory_limit(size_t bytes) {
  most = bytes;
}

void describe_shortage(char* text, size_t size) {
  text[0] = '\0';
  const size_t limit = most, available = available_bytes();
  if (limit != std::numeric_limits<size_t>::max()) {
    std::snprintf(text, size, "this process has taken %zu, its limit is %zu", taken.load(), limit);
  } else if (available != std::numeric_limits<size_t>::max()) {
    std::snprintf(text, size, "the system has %zu available", available);
  }
}

void* scratch_allocate(size_t bytes) {
  if (bytes <= kMaxBytes) {
    const SizeClass size = scratch_class(bytes);
    if (kCaching && size.bytes <= ThreadCache::kLimit)
      if (void* data = thread_cache.take(size)) return data;
    if (void* data = allocate_class(size)) return data;
  }
  char known[128];
  describe_shortage(known, sizeof known);
  fail(ErrorCode::out_of_memory, "not enough memory on cpu for %zu bytes of scratch%s%s", bytes, known[0] ? "; " : "",
       known);
}

void scratch_release(void* data, size_t bytes) {
  if (!data) return;
  const SizeClass size = scratch_class(bytes);
  if (kCaching && size.bytes <= ThreadCache::kLimit) {
    thread_cache.give(data, size);
  } else {
    release_class(data, size);
  }
}

}  // namespace st_moe::cpu

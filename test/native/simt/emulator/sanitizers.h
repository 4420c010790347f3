#pragma once
#include <cstddef>

// Tells the sanitizers about fibers. To ThreadSanitizer each CUDA thread is a thread of its own, ordered with others by
// barriers and fences alone, unless it looks for races between blocks (grid.h). It has 255 slots for threads and may
// give neighbours in the order of running the same one, whose races it then does not see: run it in several random
// orders. engine.cc and grid.cc are not instrumented.
#if defined(SIMT_TSAN)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#if defined(SIMT_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_poison_memory_region(const volatile void* address, size_t size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#endif

namespace simt {

static inline void acquire([[maybe_unused]] void* token) {
#if defined(SIMT_TSAN)
  __tsan_acquire(token);
#endif
}

static inline void release([[maybe_unused]] void* token) {
#if defined(SIMT_TSAN)
  __tsan_release(token);
#endif
}

// State of one side of a switch.
struct SanitizerFiber {
  void* tsan = nullptr;
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
};

static inline void before_switch([[maybe_unused]] SanitizerFiber& from, [[maybe_unused]] SanitizerFiber& to,
                                 [[maybe_unused]] bool last) {
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(SIMT_TSAN)
  if (to.tsan) __tsan_switch_to_fiber(to.tsan, 1);  // 1: the switch itself orders nothing
#endif
}

static inline void after_switch([[maybe_unused]] SanitizerFiber& here) {
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(here.fake_stack, nullptr, nullptr);
#endif
}

// First thing on a new fiber: learns the stack of the scheduler.
static inline void enter_fiber([[maybe_unused]] SanitizerFiber& scheduler) {
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
}

}  // namespace simt

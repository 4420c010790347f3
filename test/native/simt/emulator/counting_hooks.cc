#include "emulator/counting.h"

#if defined(SIMT_COUNT)
// What -fsanitize=thread calls.
#define ACCESS(bytes)                                                  \
  void __tsan_read##bytes(void* at) {                                  \
    simt::count_access(at, bytes, false, __builtin_return_address(0)); \
  }                                                                    \
  void __tsan_write##bytes(void* at) {                                 \
    simt::count_access(at, bytes, true, __builtin_return_address(0));  \
  }                                                                    \
  void __tsan_unaligned_read##bytes(void* at) {                        \
    simt::count_access(at, bytes, false, __builtin_return_address(0)); \
  }                                                                    \
  void __tsan_unaligned_write##bytes(void* at) {                       \
    simt::count_access(at, bytes, true, __builtin_return_address(0));  \
  }
#define ATOMIC(bits, T)                                                                                 \
  T __tsan_atomic##bits##_load(const T* at, int) {                                                      \
    simt::count_access(at, sizeof(T), false, __builtin_return_address(0));                              \
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);                                                       \
  }                                                                                                     \
  void __tsan_atomic##bits##_store(T* at, T value, int) {                                               \
    simt::count_access(at, sizeof(T), true, __builtin_return_address(0));                               \
    __atomic_store_n(at, value, __ATOMIC_RELEASE);                                                      \
  }                                                                                                     \
  T __tsan_atomic##bits##_fetch_add(T* at, T value, int) {                                              \
    simt::count_access(at, sizeof(T), true, __builtin_return_address(0));                               \
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);                                             \
  }                                                                                                     \
  int __tsan_atomic##bits##_compare_exchange_weak(T* at, T* expected, T value, int, int) {              \
    simt::count_access(at, sizeof(T), true, __builtin_return_address(0));                               \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
  }                                                                                                     \
  int __tsan_atomic##bits##_compare_exchange_strong(T* at, T* expected, T value, int, int) {            \
    simt::count_access(at, sizeof(T), true, __builtin_return_address(0));                               \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
  }

extern "C" {
void __tsan_init() {}
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* at, size_t bytes) {
  simt::count_access(at, static_cast<int>(bytes), false, __builtin_return_address(0));
}
void __tsan_write_range(void* at, size_t bytes) {
  simt::count_access(at, static_cast<int>(bytes), true, __builtin_return_address(0));
}
void __tsan_vptr_update(void*, void*) {}
ATOMIC(8, uint8_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)
}
#endif

// On macOS the loader merges weak symbols of all images by name, and libc++'s operators of new and delete are weak:
// another addon's could free what this one has allocated. These are strong and hidden, so the archive of libc++ is not
// asked for its own. In CMakeLists.txt NAPI_CPP_CUSTOM_NAMESPACE does the same for the types of node-addon-api.
#if defined(__APPLE__)
#include <cstdlib>
#include <new>

namespace {

void* allocate(size_t size, size_t alignment) noexcept {
  if (size == 0) size = 1;
  if (alignment <= alignof(max_align_t)) return std::malloc(size);
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, size) == 0 ? memory : nullptr;
}

void* allocate_or_throw(size_t size, size_t alignment) {
  for (;;) {
    if (void* memory = allocate(size, alignment)) return memory;
    const std::new_handler handler = std::get_new_handler();
    if (!handler) throw std::bad_alloc();
    handler();
  }
}

void* allocate_or_null(size_t size, size_t alignment) noexcept {
  try {
    return allocate_or_throw(size, alignment);
  } catch (...) {
    return nullptr;
  }
}

}  // namespace

#define ST_MOE_OPERATORS(array)                                                                       \
  void* operator new array(size_t size) {                                                             \
    return allocate_or_throw(size, 0);                                                                \
  }                                                                                                   \
  void* operator new array(size_t size, std::align_val_t alignment) {                                 \
    return allocate_or_throw(size, static_cast<size_t>(alignment));                                   \
  }                                                                                                   \
  void* operator new array(size_t size, const std::nothrow_t&) noexcept {                             \
    return allocate_or_null(size, 0);                                                                 \
  }                                                                                                   \
  void* operator new array(size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept { \
    return allocate_or_null(size, static_cast<size_t>(alignment));                                    \
  }                                                                                                   \
  void operator delete array(void* memory) noexcept {                                                 \
    std::free(memory);                                                                                \
  }                                                                                                   \
  void operator delete array(void* memory, size_t) noexcept {                                         \
    std::free(memory);                                                                                \
  }                                                                                                   \
  void operator delete array(void* memory, std::align_val_t) noexcept {                               \
    std::free(memory);                                                                                \
  }                                                                                                   \
  void operator delete array(void* memory, size_t, std::align_val_t) noexcept {                       \
    std::free(memory);                                                                                \
  }                                                                                                   \
  void operator delete array(void* memory, const std::nothrow_t&) noexcept {                          \
    std::free(memory);                                                                                \
  }                                                                                                   \
  void operator delete array(void* memory, std::align_val_t, const std::nothrow_t&) noexcept {        \
    std::free(memory);                                                                                \
  }

ST_MOE_OPERATORS()
ST_MOE_OPERATORS([])
#endif

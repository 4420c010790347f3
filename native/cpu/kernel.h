#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/context.h"
#include "core/dispatch.h"
#include "cpu/pool.h"

// Included by every CPU kernel file. The files of this folder that define ops are compiled once per
// instruction set (ST_MOE_ISA names it) and chosen at run time as a whole. The linker merges equal inline
// functions of different files, so everything a kernel file instantiates must live in the ISA namespace or be
// `static`; the standard library's containers and algorithms stay out. scripts/check-isa checks the object files.
namespace st_moe::cpu::ST_MOE_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int64_t kLineBytes = 64;  // of the caches

template <class T>
static inline T min_of(T a, T b) {
  return b < a ? b : a;
}
template <class T>
static inline T max_of(T a, T b) {
  return a < b ? b : a;
}
static inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Calls f(i) for i in [0, count) on up to ctx.threads threads, in any order. Results must not depend on the order.
template <class F>
static inline void parallel_for(const Context& ctx, int64_t count, F&& f) {
  using Fn = std::remove_reference_t<F>;
  pool_run(
      ctx.threads, count, [](void* fn, int64_t i) { (*static_cast<Fn*>(fn))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// Calls f(begin, end) for the ranges of a split of [0, count) into blocks of `block`; the split does not depend on
// threads.
template <class F>
static inline void parallel_blocks(const Context& ctx, int64_t count, int64_t block, F&& f) {
  parallel_for(ctx, ceil_div(count, block), [&](int64_t i) { f(i * block, min_of(count, (i + 1) * block)); });
}

// Uninitialized scratch memory for one call, 64-byte aligned. Throws Error(out_of_memory).
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : bytes_(static_cast<size_t>(count) * sizeof(T)), data_(static_cast<T*>(scratch_allocate(bytes_))) {}
  ~Scratch() { scratch_release(data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  size_t bytes_;
  T* data_;
};

template <class T>
constexpr DType dtype_of = sizeof(T) == sizeof(float) ? DType::f32 : DType::f64;

}  // namespace st_moe::cpu::ST_MOE_ISA

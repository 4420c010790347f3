#pragma once
#include <cstdio>
#include <cstring>

#include "core/convert.h"
#include "core/ops/collectives.h"
#include "core/process_group.h"
#include "cpu/wide.h"

// What the collectives share. Sums are this code's and not the library's: in the order of the ranks, so that their bits
// depend neither on the library nor on how the elements are divided.
namespace st_moe::cpu::ST_MOE_ISA {

// Scratch memory of a collective. A library may go on using it after an error: then it is never freed.
class ExchangeMemory {
 public:
  ExchangeMemory(const ProcessGroup& group, int64_t bytes)
      : group_(group), bytes_(static_cast<size_t>(bytes)), data_(static_cast<char*>(scratch_allocate(bytes_))) {}
  ~ExchangeMemory() {
    if (!group_.holds_memory()) scratch_release(data_, bytes_);
  }
  ExchangeMemory(const ExchangeMemory&) = delete;
  ExchangeMemory& operator=(const ExchangeMemory&) = delete;
  char* get() const { return data_; }

 private:
  const ProcessGroup& group_;
  size_t bytes_;
  char* data_;
};

static inline void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}
static inline void clear_bytes(void* to, int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
}

// The same call on every rank, as text.
struct CallText {
  char text[160];

  template <class... Values>
  explicit CallText(const char* format, Values... values) {
    std::snprintf(text, sizeof text, format, values...);
  }
};

// The numbers of a dtype, and what they are added and compared in.
struct SameNumber {
  template <class T>
  static T load(T x) {
    return x;
  }
  template <class T>
  static T store(T x) {
    return x;
  }
};
struct Bf16Number {
  static float load(uint16_t x) { return bf16_to_float(x); }
  static uint16_t store(float x) { return float_to_bf16(x); }
};
struct F16Number {
  static float load(uint16_t x) { return f16_to_float(x); }
  static uint16_t store(float x) { return float_to_f16(x); }
};

struct Sum {
  template <class T>
  static T of(T a, T b) {
    return a + b;
  }
  static int32_t of(int32_t a, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  }
};
// NaN if either is.
struct Max {
  template <class T>
  static T of(T a, T b) {
    return a > b || a != a ? a : b;
  }
};
struct Min {
  template <class T>
  static T of(T a, T b) {
    return a < b || a != a ? a : b;
  }
};

// out[i] = parts[i] ∘ parts[n + i] ∘ … of all ranks, in their order; blocks of a cache's size, one rank after another.
template <class Reduce, class Number, class T>
static void reduce_parts(const Context& ctx, const T* parts, int ranks, int64_t n, T* out) {
  using Wider = decltype(Number::load(T{}));
  constexpr int64_t kBlock = 1024;
  parallel_blocks(ctx, n, kElementBlock, [&](int64_t from, int64_t to) {
    for (int64_t begin = from; begin < to; begin += kBlock) {
      Wider sums[kBlock];
      const int64_t count = min_of(kBlock, to - begin);
      for (int64_t i = 0; i < count; ++i) sums[i] = Number::load(parts[begin + i]);
      for (int rank = 1; rank < ranks; ++rank) {
        const T* __restrict part = parts + rank * n + begin;
        for (int64_t i = 0; i < count; ++i) sums[i] = Reduce::of(sums[i], Number::load(part[i]));
      }
      for (int64_t i = 0; i < count; ++i) out[begin + i] = static_cast<T>(Number::store(sums[i]));
    }
  });
}

template <class Reduce>
static void reduce_parts(const Context& ctx, DType dtype, const void* parts, int ranks, int64_t n, void* out) {
  const auto run = [&](auto number, auto zero) {
    using T = decltype(zero);
    reduce_parts<Reduce, decltype(number)>(ctx, static_cast<const T*>(parts), ranks, n, static_cast<T*>(out));
  };
  switch (dtype) {
    case DType::f32: return run(SameNumber{}, float{});
    case DType::f64: return run(SameNumber{}, double{});
    case DType::i32: return run(SameNumber{}, int32_t{});
    case DType::bf16: return run(Bf16Number{}, uint16_t{});
    case DType::f16: return run(F16Number{}, uint16_t{});
    case DType::int8: return;  // no tensor of elements
  }
}

// The parts of all ranks, n elements each, combined.
static inline void reduce_parts(const Context& ctx, Reduction reduction, DType dtype, const void* parts, int ranks,
                                int64_t n, void* out) {
  switch (reduction) {
    case Reduction::sum: return reduce_parts<Sum>(ctx, dtype, parts, ranks, n, out);
    case Reduction::max: return reduce_parts<Max>(ctx, dtype, parts, ranks, n, out);
    case Reduction::min: return reduce_parts<Min>(ctx, dtype, parts, ranks, n, out);
  }
}

// What each rank has of x is combined: rank r gets its bytes of the result, of which `own` is the part of this one.
static inline void reduce_to_parts(const Context& ctx, ProcessGroup& group, const char* what, Reduction reduction,
                                   DType dtype, const void* x, const int64_t* bytes, void* own) {
  const int ranks = group.size();
  const int64_t part = bytes[group.rank()];
  const Scratch<int64_t> received(ranks);
  for (int rank = 0; rank < ranks; ++rank) received[rank] = part;
  const ExchangeMemory parts(group, part * ranks);
  group.all_to_all(what, x, bytes, parts.get(), received.get());
  reduce_parts(ctx, reduction, dtype, parts.get(), ranks, part / static_cast<int64_t>(dtype_size(dtype)), own);
}

// The bytes of each rank if `size` elements are divided between all.
static inline void divide(int64_t size, DType dtype, int ranks, int64_t* bytes) {
  const auto end = [&](int64_t rank) { return size / ranks * rank + min_of(rank, size % ranks); };
  for (int rank = 0; rank < ranks; ++rank)
    bytes[rank] = (end(rank + 1) - end(rank)) * static_cast<int64_t>(dtype_size(dtype));
}

static inline void bytes_of_rows(const int64_t* rows, int64_t width, DType dtype, int ranks, int64_t* bytes) {
  for (int rank = 0; rank < ranks; ++rank) bytes[rank] = rows[rank] * width * static_cast<int64_t>(dtype_size(dtype));
}

static inline int64_t sum_before(const int64_t* bytes, int rank) {
  int64_t sum = 0;
  for (int before = 0; before < rank; ++before) sum += bytes[before];
  return sum;
}

}  // namespace st_moe::cpu::ST_MOE_ISA

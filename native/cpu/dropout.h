#pragma once
#include "core/dropout.h"
#include "cpu/philox_words.h"

namespace st_moe::cpu::ST_MOE_ISA {

// Calls f(i, words, count) for the words of the elements first + i … first + i + count − 1 of a sample, up to first +
// n.
template <class F>
static inline void for_words(uint64_t seed, uint64_t step, int64_t first, int64_t n, F&& f) {
  uint32_t words[kPhiloxWords];
  for (int64_t i = 0; i < n;) {
    const int64_t skipped = (first + i) % 4, count = min_of(kPhiloxWords - skipped, n - i);
    philox_words(seed, step, static_cast<uint64_t>(first + i) / 4, words);
    f(i, words + skipped, count);
    i += count;
  }
}

// Of the hidden values of experts, which have a row for each assignment.
template <class T>
struct HiddenDropout {
  uint64_t seed, step;
  DropoutNumbers<T> numbers;
  int64_t H;
  const int32_t* assignment;  // of a row; null: row r is assignment r
  bool active;

  template <class Args>
  static HiddenDropout of(const Args& args, const int32_t* assignment) {
    return {args.seed, args.step, DropoutNumbers<T>::of(args.dropout), args.H, assignment, args.dropout > 0};
  }
  // Columns from … from + n − 1 of a row.
  void apply(T* values, int64_t row, int64_t from, int64_t n) const {
    if (!active) return;
    const int64_t first = (assignment ? assignment[row] : row) * H + from;
    for_words(seed, step, first, n, [&](int64_t i, const uint32_t* words, int64_t count) {
      const uint32_t* __restrict own = words;
      T* __restrict to = values + i;
      for (int64_t j = 0; j < count; ++j) to[j] = numbers(to[j], own[j]);
    });
  }
};

}  // namespace st_moe::cpu::ST_MOE_ISA

#pragma once
#include "core/dropout.h"
#include "cpu/philox_words.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
struct ElementDropout {
  uint64_t seed, step;
  DropoutNumbers<T> numbers;

  // y = x with elements first … first + n − 1 of the sample; y may be x.
  void apply(const T* x, T* y, int64_t first, int64_t n) const {
    uint32_t words[kPhiloxWords];
    for (int64_t done = 0; done < n;) {
      const int64_t skipped = (first + done) % 4, count = min_of(kPhiloxWords - skipped, n - done);
      philox_words(seed, step, static_cast<uint64_t>(first + done) / 4, words);
      const uint32_t* __restrict own = words + skipped;
      const T* from = x + done;
      T* to = y + done;
      for (int64_t i = 0; i < count; ++i) {
        const T scaled = from[i] * numbers.factor;  // outside the selection, else the loop has a branch
        to[i] = own[i] >> 8 >= numbers.threshold ? scaled : T(0);
      }
      done += count;
    }
  }
};

// Of the hidden values of experts, which have a row for each assignment.
template <class T>
struct HiddenDropout {
  ElementDropout<T> elements;
  int64_t H;
  const int32_t* assignment;  // of a row; null: row r is assignment r
  bool active;

  template <class Args>
  static HiddenDropout of(const Args& args, const int32_t* assignment) {
    return {{args.seed, args.step, DropoutNumbers<T>::of(args.dropout)}, args.H, assignment, args.dropout > 0};
  }
  // Columns from … from + n − 1 of a row.
  void apply(T* values, int64_t row, int64_t from, int64_t n) const {
    if (active) elements.apply(values, values, (assignment ? assignment[row] : row) * H + from, n);
  }
};

}  // namespace st_moe::cpu::ST_MOE_ISA

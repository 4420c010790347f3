#pragma once
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>

// A test is a program: it prints what failed and returns check_result().
inline int check_failures = 0;  // of all files of the program

__attribute__((format(printf, 2, 3))) inline void check(bool ok, const char* format, ...) {
  if (ok) return;
  if (++check_failures > 20) return;
  va_list args;
  va_start(args, format);
  std::fputs("FAILED: ", stderr);
  std::vfprintf(stderr, format, args);
  std::fputc('\n', stderr);
  va_end(args);
}

inline int check_result() {
  if (check_failures) std::fprintf(stderr, "%d checks failed\n", check_failures);
  return check_failures ? 1 : 0;
}

// ‖got − want‖ / ‖want‖, in double. NaN if any is.
template <class A, class B>
static inline double relative_error(const A* got, const B* want, int64_t n) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    difference += d * d;
    norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  return difference == 0 ? 0 : std::sqrt(difference / (norm > 0 ? norm : 1));
}

// Small deterministic numbers for inputs.
struct TestRandom {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint32_t>(n)); }
  double real() { return next() * 0x1p-30 - 1; }                               // on [−1, 1)
  double normal() { return (real() + real() + real() + real()) * 0.8660254; }  // roughly
};

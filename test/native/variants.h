#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cpu/isa.h"

// Runs an op by every instruction set of the machine and by 1, 2 and 3 threads.
namespace st_moe::test {

inline int failures = 0, checks = 0;

inline void expect(bool ok, const std::string& what, double got = 0, double wanted = 0) {
  ++checks;
  if (ok) return;
  if (++failures <= 50) std::printf("FAIL %s: got %.9g, wanted %.9g\n", what.c_str(), got, wanted);
}

inline std::vector<cpu::Isa> variants() {
  std::vector<cpu::Isa> found;
  cpu::for_each_isa([&](const cpu::Isa& isa) {
    if (isa.supported) found.push_back(isa);
  });
  return found;
}

struct Output {
  void* data;
  size_t bytes;
};

template <class T>
Output output(std::vector<T>& v) {
  return {v.data(), v.size() * sizeof(T)};
}

using Call = std::function<Status(const OpTable&, const Context&)>;

// Outputs hold NaN patterns before each call. `verify` runs after the single-threaded call of each variant; the
// other thread counts must give the same bits.
inline void run_op(const std::string& name, const std::vector<Output>& outputs, const Call& call,
                   const std::function<void(const std::string&)>& verify) {
  for (const cpu::Isa& variant : variants()) {
    const std::string what = name + " [" + variant.name + "]";
    std::vector<std::string> first;
    for (int threads = 1; threads <= 3; ++threads) {
      for (const Output& out : outputs)
        if (out.bytes) std::memset(out.data, 0xff, out.bytes);
      const Status status = call(variant.op_table(), Context{threads, nullptr});
      expect(status.code == ErrorCode::none, what + ": " + status.text);
      for (size_t i = 0; i < outputs.size(); ++i) {
        const std::string bytes(static_cast<const char*>(outputs[i].data), outputs[i].bytes);
        if (threads == 1) {
          first.push_back(bytes);
        } else {
          expect(bytes == first[i], what + ": same bits with more threads");
        }
      }
      if (threads == 1) verify(what);
    }
  }
}

inline void run_error(const std::string& name, ErrorCode code, const char* part, const Call& call) {
  for (const cpu::Isa& variant : variants()) {
    const Status status = call(variant.op_table(), Context{2, nullptr});
    expect(status.code == code && std::strstr(status.text, part), name + ": error, got: " + status.text);
  }
}

template <class A, class B>
double relative_error(const std::vector<A>& got, const std::vector<B>& wanted) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - static_cast<double>(wanted[i]), 2);
    norm += std::pow(static_cast<double>(wanted[i]), 2);
  }
  return std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1);
}

template <class A, class B>
void expect_close(const std::vector<A>& got, const std::vector<B>& wanted, const std::string& what, double factor = 1) {
  const double bound = factor * (sizeof(A) == 4 ? 3e-7 : 5e-15), error = relative_error(got, wanted);
  expect(error <= bound, what + ": relative error", error, bound);
}

// A reproducible sequence, roughly normal.
class Source {
 public:
  explicit Source(uint64_t seed) : state_(seed * 2654435761u + 1) {}
  double uniform() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state_ >> 11) * 0x1p-53;
  }
  double normal() { return (uniform() + uniform() + uniform() + uniform() - 2) * 1.7320508; }
  int64_t below(int64_t n) { return static_cast<int64_t>(uniform() * static_cast<double>(n)); }

 private:
  uint64_t state_;
};

template <class T>
std::vector<T> normals(int64_t n, uint64_t seed, double shift = 0) {
  Source source(seed);
  std::vector<T> out(static_cast<size_t>(n));
  for (T& v : out) v = static_cast<T>(static_cast<float>(source.normal() + shift));  // the same values in both types
  return out;
}

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == 4 ? DType::f32 : DType::f64;
}

// Differences of `loss` (fourth order) by a sample of the entries of x, against grad.
inline void expect_gradient(std::vector<double>& x, const std::vector<double>& grad,
                            const std::function<double()>& loss, const std::string& what) {
  Source source(x.size() + 7);
  std::vector<double> wanted, got;
  for (size_t sample = 0; sample < 24 && !x.empty(); ++sample) {
    const size_t i =
        x.size() <= 24 ? sample % x.size() : static_cast<size_t>(source.below(static_cast<int64_t>(x.size())));
    const double kept = x[i], h = 1e-3;
    const auto at = [&](double step) {
      x[i] = kept + step;
      return loss();
    };
    wanted.push_back((8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h));
    x[i] = kept;
    got.push_back(grad[i]);
  }
  const double error = relative_error(got, wanted);
  expect(error <= 1e-8, what + ": finite differences", error, 1e-8);
}

inline double inner(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline int report(const char* name) {
  std::printf("%s: %d checks, %d failures, %zu instruction sets\n", name, checks, failures, variants().size());
  return failures != 0;
}

}  // namespace st_moe::test

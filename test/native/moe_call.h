#pragma once
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "core/backend.h"
#include "cuda/rounding.h"

// An op on any device with vectors of the host, for results that are not compared one op at a time.
namespace st_moe::test {

inline int failures = 0, checks = 0;

inline void expect(bool ok, const std::string& what, double got = 0, double wanted = 0) {
  ++checks;
  if (ok) return;
  if (++failures <= 50) std::printf("FAIL %s: got %.9g, wanted %.9g\n", what.c_str(), got, wanted);
}

template <class T>
constexpr DType dtype_of() {
  if (sizeof(T) == 8) return DType::f64;
  if (sizeof(T) == 2) return DType::bf16;
  return std::is_integral_v<T> ? DType::i32 : DType::f32;
}

using Bytes = std::vector<char>;

// ‖a − b‖ / ‖b‖; infinity where one has a NaN and the other has not.
template <class T>
double relative_error(const Bytes& a, const Bytes& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i + sizeof(T) <= b.size(); i += sizeof(T)) {
    T x, y;
    std::memcpy(&x, &a[i], sizeof x);
    std::memcpy(&y, &b[i], sizeof y);
    if (std::isfinite(static_cast<double>(y))) norm += static_cast<double>(y) * y;
    if (x == y || (x != x && y != y)) continue;
    if (!std::isfinite(static_cast<double>(x)) || !std::isfinite(static_cast<double>(y))) return HUGE_VAL;
    difference += (static_cast<double>(x) - y) * (static_cast<double>(x) - y);
  }
  return std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1);
}

inline int report(const char* name, const char* variant) {
  std::printf("%s: %d checks, %d failures on %s\n", name, checks, failures, variant);
  return failures != 0;
}

// What a device counts of its own work.
struct Work {
  int64_t launches, waits;
};

struct Device {
  const Backend* backend;
  Context ctx;
  Work (*work)() = [] { return Work{}; };
};

inline Device cpu(int threads = 1) {
  return {&cpu_backend(), {threads, nullptr}};
}

// The pointers of one call and what it did. Outputs are copied back when it has run.
class Call {
 public:
  explicit Call(const Device& device) : device_(device) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    for (const Held& held : held_) device_.backend->release(device_.ctx, held.data, held.bytes);
  }

  template <class T>
  T* in(const std::vector<T>& v) {
    return static_cast<T*>(hold(v.data(), nullptr, v.size() * sizeof(T)));
  }
  template <class T>
  T* out(std::vector<T>& v) {
    return static_cast<T*>(hold(v.data(), v.data(), v.size() * sizeof(T)));
  }

  // The status of the op, or of the first copy that fails: what a kernel met comes with a copy.
  template <class Args>
  Status run(Op<Args> OpTable::* op, const Args& args) {
    const Work before = device_.work();
    Status status = (device_.backend->ops.*op)(device_.ctx, args);
    const Work after = device_.work();
    launches = after.launches - before.launches;
    expect(after.waits == before.waits, "an op waits for the device");
    for (const Held& held : held_) {
      const Status copied =
          held.host ? device_.backend->copy_out(device_.ctx, held.host, held.data, held.bytes) : status;
      if (status.code == ErrorCode::none) status = copied;
    }
    return status;
  }

  int64_t launches = 0;

 private:
  struct Held {
    void *data, *host;
    size_t bytes;
  };

  void* hold(const void* from, void* to, size_t bytes) {
    void* data = device_.backend->allocate(device_.ctx, bytes);
    device_.backend->copy_in(device_.ctx, data, from, bytes);
    held_.push_back({data, to, bytes});
    return data;
  }

  Device device_;
  std::vector<Held> held_;
};

inline void expect_ok(const Status& status, const std::string& what) {
  expect(status.code == ErrorCode::none, what + ": " + status.text);
}

template <class T>
Bytes bytes_of(const std::vector<T>& v) {
  const char* data = reinterpret_cast<const char*>(v.data());
  return Bytes(data, data + v.size() * sizeof(T));
}

// float32: routers and experts are chains of GEMMs whose summation order differs, and whose sums cancel.
template <class T>
constexpr double rounding_limit = sizeof(T) == 4 ? 4e-6 : 1e-14;

// limit 0: that of the type.
template <class T>
void expect_close(const std::vector<T>& got, const std::vector<T>& wanted, const std::string& what, double limit = 0) {
  if (limit == 0) limit = rounding_limit<T>;
  const double error = relative_error<T>(bytes_of(got), bytes_of(wanted));
  expect(got.size() == wanted.size() && error <= limit, what + ": relative error", error, limit);
}

// What an op leaves out shows.
template <class T>
std::vector<T> unset(int64_t n) {
  return std::vector<T>(n, std::numeric_limits<T>::quiet_NaN());
}

}  // namespace st_moe::test

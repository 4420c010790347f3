#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/plugin.h"

// One op on two backends: the vectors of the host are copied to the memory of a backend and back.
namespace backends {

using namespace st_moe;

inline int failures = 0;

inline void check(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

template <class T>
constexpr DType dtype_of = sizeof(T) == 4 ? DType::f32 : DType::f64;

template <class T>
double distance(const std::vector<T>& a, const std::vector<T>& b) {  // ‖a − b‖ / ‖b‖; NaN must meet NaN
  if (a.size() != b.size()) return HUGE_VAL;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i])) return HUGE_VAL;
    if (std::isnan(a[i]) || (std::isinf(a[i]) && a[i] == b[i])) continue;
    difference += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    norm += double(b[i]) * b[i];
  }
  return std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1);
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
void check_close(const std::vector<T>& a, const std::vector<T>& b, const std::string& what, double factor = 1) {
  const double tolerance = factor * (sizeof(T) == 4 ? 2e-6 : 1e-14), d = distance(a, b);
  if (!(d <= tolerance)) check(false, what + ": distance " + std::to_string(d / tolerance) + " × tolerance");
}

// Opened plugin, or the CPU.
struct Device {
  const Backend* backend;
  Context ctx;
  const OpTable& ops() const { return backend->ops; }
};

inline Device cpu() { return {&cpu_backend(), {1, nullptr}}; }

// The pointers of one call. Outputs are copied back when it has run.
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
    return const_cast<T*>(static_cast<const T*>(hold(v.data(), nullptr, v.size() * sizeof(T))));
  }
  template <class T>
  T* out(std::vector<T>& v) {
    return static_cast<T*>(hold(v.data(), v.data(), v.size() * sizeof(T)));
  }

  // The status of the op, or of the first copy that fails: a kernel's complaint comes with the copy.
  template <class Args>
  Status run(Op<Args> OpTable::*op, const Args& args) {
    Status status = (device_.backend->ops.*op)(device_.ctx, args);
    for (const Held& held : held_) {
      if (!held.host) continue;
      const Status copied = device_.backend->copy_out(device_.ctx, held.host, held.data, held.bytes);
      if (status.code == ErrorCode::none) status = copied;
    }
    return status;
  }

 private:
  struct Held {
    void *data, *host;
    size_t bytes;
  };

  void* hold(const void* from, void* to, size_t bytes) {
    void* data = device_.backend->allocate(device_.ctx, bytes ? bytes : 1);
    if (bytes) device_.backend->copy_in(device_.ctx, data, from, bytes);
    held_.push_back({data, to, bytes ? bytes : 1});
    if (!bytes) held_.back().host = nullptr;
    return data;
  }

  Device device_;
  std::vector<Held> held_;
};

inline void expect_ok(const Status& status, const std::string& what) {
  check(status.code == ErrorCode::none, what + ": " + status.text);
}

// What an op leaves out shows.
template <class T>
std::vector<T> unset(int64_t n) {
  return std::vector<T>(n, std::numeric_limits<T>::quiet_NaN());
}

}  // namespace backends

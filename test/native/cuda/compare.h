#pragma once
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/plugin.h"

// Runs an op on the CPU and on the first card of a plugin: the real one or the emulator's, named by
// ST_MOE_CUDA_LIBRARY. On the card it runs twice and must give the same bits.
namespace st_moe::test {

inline int failures = 0, checks = 0;

inline void expect(bool ok, const std::string& what, double got = 0, double wanted = 0) {
  ++checks;
  if (ok) return;
  if (++failures <= 50) std::printf("FAIL %s: got %.9g, wanted %.9g\n", what.c_str(), got, wanted);
}

// A plugin's first card, and the CPU.
class Machine {
 public:
  Machine() {
    const char* path = std::getenv("ST_MOE_CUDA_LIBRARY");
    void* library = dlopen(path ? path : "", RTLD_NOW | RTLD_LOCAL);
    const auto entry = library ? reinterpret_cast<PluginEntry>(dlsym(library, kPluginSymbol)) : nullptr;
    if (!entry) stop(path ? dlerror() : "ST_MOE_CUDA_LIBRARY is not set");
    plugin_ = entry();
    Probe probe{};
    plugin_->probe(&probe);
    if (probe.device_count <= 0) stop(std::string(probe.stage) + ": " + probe.reason);
    const Status status = plugin_->open(0, &backend_, &context);
    if (status.code != ErrorCode::none) stop(status.text);
  }
  ~Machine() { plugin_->close(backend_, &context); }

  const Backend& card() const { return *backend_; }
  Context context{1, nullptr};

 private:
  [[noreturn]] static void stop(const std::string& reason) {
    std::printf("no card: %s\n", reason.c_str());
    std::exit(2);
  }

  const Plugin* plugin_ = nullptr;
  const Backend* backend_ = nullptr;
};

inline Machine& machine() {
  static auto& instance = *new Machine;  // not destroyed: at exit there may be no CUDA any more
  return instance;
}

// A pointer of an argument struct and the memory it stands for.
struct Field {
  const void** slot;
  void* host;
  size_t bytes;
  DType dtype;
  bool written, read;
};

template <class T>
constexpr DType dtype_of() {
  if (sizeof(T) == 8) return DType::f64;
  if (sizeof(T) == 2) return DType::bf16;
  return std::is_integral_v<T> ? DType::i32 : DType::f32;
}

template <class P, class T>
Field field(P** slot, std::vector<T>& data, bool written, bool read) {
  return {const_cast<const void**>(reinterpret_cast<void**>(const_cast<std::remove_const_t<P>**>(slot))),
          data.data(),
          data.size() * sizeof(T),
          dtype_of<T>(),
          written,
          read};
}
template <class P, class T>
Field in(P** slot, std::vector<T>& data) {
  return field(slot, data, false, true);
}
template <class P, class T>
Field out(P** slot, std::vector<T>& data) {
  return field(slot, data, true, false);
}
template <class P, class T>
Field in_out(P** slot, std::vector<T>& data) {
  return field(slot, data, true, true);
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
    if (x == y || (x != x && y != y)) continue;
    if (!std::isfinite(static_cast<double>(x)) || !std::isfinite(static_cast<double>(y))) return HUGE_VAL;
    difference += (static_cast<double>(x) - y) * (static_cast<double>(x) - y);
    norm += static_cast<double>(y) * y;
  }
  return std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1);
}

template <class Args>
std::vector<Bytes> run_on_card(const std::string& what, Op<Args> op, Args& args, const std::vector<Field>& fields) {
  const Backend& card = machine().card();
  const Context& ctx = machine().context;
  std::vector<void*> memory;
  std::vector<Bytes> results;
  for (const Field& f : fields) {
    memory.push_back(card.allocate(ctx, f.bytes));
    if (f.read) expect(card.copy_in(ctx, memory.back(), f.host, f.bytes).code == ErrorCode::none, what + ": copy in");
    *f.slot = memory.back();
  }
  Status status = op(ctx, args);
  expect(status.code == ErrorCode::none, what + ": " + status.text);
  for (size_t i = 0; i < fields.size(); ++i) {
    results.emplace_back(fields[i].bytes);
    status = card.copy_out(ctx, results.back().data(), memory[i], fields[i].bytes);
    expect(status.code == ErrorCode::none, what + ": " + status.text);
    card.release(ctx, memory[i], fields[i].bytes);
  }
  return results;
}

constexpr double kExact = -1, kRounding = 0;

// `bound`: kExact for equal bits, kRounding for that of the dtype, or a relative error.
template <class Args>
void compare(const std::string& what, Op<Args> OpTable::* op, Args& args, const std::vector<Field>& fields,
             double bound) {
  const std::vector<Bytes> first = run_on_card(what, machine().card().ops.*op, args, fields);
  const std::vector<Bytes> second = run_on_card(what, machine().card().ops.*op, args, fields);
  for (const Field& f : fields) *f.slot = f.host;
  const Status status = (cpu_backend().ops.*op)(Context{1, nullptr}, args);
  expect(status.code == ErrorCode::none, what + " (CPU): " + status.text);
  for (size_t i = 0; i < fields.size(); ++i) {
    if (!fields[i].written) continue;
    const Bytes wanted(static_cast<char*>(fields[i].host), static_cast<char*>(fields[i].host) + fields[i].bytes);
    expect(first[i] == second[i], what + ": the same bits twice");
    const bool wide = fields[i].dtype == DType::f64;
    if (bound == kExact || !is_float(fields[i].dtype)) {
      expect(first[i] == wanted, what + ": the same bits as the CPU");
      continue;
    }
    const double limit = bound > 0 ? bound : wide ? 1e-14 : 1e-6;
    const double error = wide ? relative_error<double>(first[i], wanted) : relative_error<float>(first[i], wanted);
    expect(error <= limit, what + ": relative error", error, limit);
  }
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

 private:
  uint64_t state_;
};

template <class T>
std::vector<T> normals(int64_t n, uint64_t seed, double shift = 0) {
  Source source(seed);
  std::vector<T> values(static_cast<size_t>(n));
  for (T& v : values) v = static_cast<T>(source.normal() + shift);
  return values;
}

inline int report(const char* name) {
  std::printf("%s: %d checks, %d failures on %s\n", name, checks, failures, machine().card().variant);
  return failures != 0;
}

}  // namespace st_moe::test

#pragma once
#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "core/tensor.h"
#include "harness.h"

// What the suites share: a device with its hardware limits, options, memory, calls of ops.
namespace st_moe::bench {

struct Bench;
class Layer;

using Values = std::map<std::string, double>;  // dimensions and attributes by name

struct Suite {
  const char* name;
  void (*run)(const Bench&);
};

struct LayerSizes {
  int64_t B = 4, N = 1024, D = 512, E = 16, K = 2, H = D * 8 / 3;
  double capacity_factor = 1.25;
  bool dropless = false;

  int64_t capacity() const;  // without a limit, a slot for each token
  int64_t tokens() const { return B * N; }
  Members params() const;
  Values values() const;
};

struct LayerKind {
  const char* name;
  bool backward, weights_change;  // weights_change: as an optimizer does between two steps
};

// Layers that are timed beside their GEMMs alone.
struct LayerPlan {
  LayerSizes sizes;
  std::vector<DType> computes;
  bool forward_only = false;
};

class Platform : public Meter {
 public:
  std::vector<Suite> suites;
  Members versions;
  std::vector<DType> arithmetic;  // operands whose arithmetic has a limit of its own
  std::vector<LayerPlan> layers;
  std::vector<LayerKind> layer_kinds;
  bool keeps_packed_weights = false;  // of a layer, from one run to the next

  virtual Device& device() const = 0;
  virtual std::string name_of(DType compute) const { return dtype_name(compute); }
  virtual double free_bytes() const { return std::numeric_limits<double>::infinity(); }

  // The hardware limits, measured: arithmetic with operands of that type, and memory.
  virtual Case flops_limit(const Bench& bench, DType compute, int threads) const = 0;
  virtual Case bytes_limit(const Bench& bench, int threads) const = 0;
  // The GEMMs of the layer alone, on as many rows; all: those of the backward too. The layer has run.
  virtual std::function<void(bool all)> layer_gemms(const Bench&, const Layer&, DType compute, int threads) const = 0;
};

struct Options {
  std::vector<std::string> suites;
  std::vector<int> threads;
  std::vector<std::string> computes;  // empty: all
  Settings settings;
  std::string file;
  bool quick = false;  // small shapes: a test of the program, not of the machine

  bool uses(DType compute) const {
    return computes.empty() || std::find(computes.begin(), computes.end(), dtype_name(compute)) != computes.end();
  }
};

std::unique_ptr<Platform> make_platform(Options& options);  // that of the program

struct Bench {
  Platform& platform;
  Harness& harness;
  const Options& options;
  mutable uint64_t draws = 0;

  Device& device() const { return platform.device(); }
  const Backend& backend() const { return *platform.device().backend; }
  int most_threads() const { return options.threads.back(); }

  // Throws if the op fails.
  template <class Args>
  void call(Op<Args> OpTable::* op, int threads, const std::type_identity_t<Args>& args) const {
    check((backend().ops.*op)(Context{threads, device().context.stream}, args));
  }
  static void check(const Status& status);
  // The relative error of what was computed. Throws if it is above `limit`: wrong results make their times worthless.
  static double checked(double error, double limit);

  Tensor filled(const Shape& shape, double value = 0, DType dtype = DType::f32) const;
  Tensor normals(const Shape& shape) const;
  Tensor uniforms(const Shape& shape, double low, double high) const;
  Tensor integers(const Shape& shape, int64_t below) const;
  Tensor converted(const Tensor& x, DType dtype) const;
  Tensor given(const std::vector<char>& bytes, DType dtype, const Shape& shape) const;

  // Values that stand in memory of the device, from `begin`, on the host.
  template <class T>
  std::vector<T> host(const Tensor& x, int64_t begin, int64_t count) const {
    std::vector<T> values(static_cast<size_t>(count));
    check(backend().copy_out(device().context, values.data(), static_cast<const T*>(x.data()) + begin,
                             values.size() * sizeof(T)));
    return values;
  }
};

inline float* f32(const Tensor& x) {
  return static_cast<float*>(x.data());
}
inline int32_t* i32(const Tensor& x) {
  return static_cast<int32_t*>(x.data());
}

void limits_suite(const Bench& bench);
void op_suite(const Bench& bench);
void layer_suite(const Bench& bench);
void scaling_suite(const Bench& bench);

}  // namespace st_moe::bench

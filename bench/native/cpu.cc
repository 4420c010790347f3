#include <cstring>
#include <limits>
#include <stdexcept>

#include "cpu/pool.h"
#include "kernels.h"
#include "layer.h"
#include "onednn.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// The CPU backend as a platform of the benchmark.
// isas.inc comes from CMake: X(isa) for each instruction set that the ops are compiled for.
namespace st_moe::cpu {
#define X(isa)                           \
  namespace isa {                        \
  const bench::Kernels& bench_kernels(); \
  }
#include "isas.inc"
#undef X
}  // namespace st_moe::cpu

namespace st_moe::bench {

const Kernels& kernels() {
  const char* variant = cpu_backend().variant;
#define X(isa) \
  if (std::strcmp(variant, #isa) == 0) return cpu::isa::bench_kernels();
#include "isas.inc"
#undef X
  throw std::runtime_error(std::string("no kernels for ") + variant);
}

void gemm_suite(const Bench& bench);

namespace {

// GEMMs of bf16 pairs added in f32 (AVX512-BF16), in registers.
#if defined(__x86_64__)
bool has_bf16_dot() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f");
}

__attribute__((target("avx512f,avx512bf16"))) double bf16_dot(int64_t rounds) {
  constexpr int chains = 12;             // they start apart, or the compiler would see one in all
  static volatile short start = 0x3f80;  // 1.0; not known to the compiler
  const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi16(start));
  __m512 acc[chains];
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], x, x);
  }
  __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) total = _mm512_add_ps(total, acc[i]);
  start = _mm512_reduce_add_ps(total) >= 0 ? 0x3f80 : 0;
  return 2.0 * chains * 32 * static_cast<double>(rounds);
}
#else
bool has_bf16_dot() {
  return false;
}
double bf16_dot(int64_t) {
  return 0;
}
#endif

constexpr int64_t kRounds = 200000;  // of a task: some tenths of a millisecond
constexpr int64_t kTasksPerThread = 16;
constexpr int64_t kReadBlock = 1 << 18;  // floats
volatile float sink;                     // so that nothing is left out

template <class F>
void on_pool(int threads, int64_t count, F task) {
  cpu::pool_run(threads, count, [](void* f, int64_t i) { (*static_cast<F*>(f))(i); }, &task);
}

class Cpu : public Platform {
 public:
  explicit Cpu(bool quick) : quick_(quick) {}

  Device& device() const override { return device_; }
  Members versions() const override {
    Members list{{"variant", device_.backend->variant}};
    if (!onednn_version().empty()) list.push_back({"onednn", onednn_version()});
    return list;
  }
  std::vector<Suite> suites() const override {
    return {{"limits", limits_suite},
            {"gemm", gemm_suite},
            {"ops", op_suite},
            {"layer", layer_suite},
            {"scaling", scaling_suite}};
  }
  std::vector<DType> arithmetic() const override {
    return has_bf16_dot() ? std::vector<DType>{DType::f32, DType::bf16} : std::vector<DType>{DType::f32};
  }
  std::vector<LayerPlan> layers() const override {
    return {{quick_ ? LayerSizes{2, 48, 24, 4, 2} : LayerSizes{}, {DType::f32, DType::bf16}}};
  }
  std::vector<LayerKind> layer_kinds() const override {
    return {{"forward", false, false}, {"forward+backward", true, false}};
  }
  bool keeps_packed_weights() const override { return false; }
  double free_bytes() const override { return std::numeric_limits<double>::infinity(); }

  Case flops_limit(const Bench&, DType compute, int threads) const override {
    const bool dot = compute == DType::bf16 && has_bf16_dot();
    const auto kernel = dot ? bf16_dot : kernels().multiply_add;
    const int64_t rounds = quick_ ? kRounds / 50 : kRounds, tasks = kTasksPerThread * threads;
    return {.name = dot ? "bf16-dot" : "fma",
            .params = {{"threads", threads}},
            .run = [=] { on_pool(threads, tasks, [&](int64_t) { kernel(rounds); }); },
            .facts = {{"flops", kernel(1) * static_cast<double>(rounds * tasks)}}};
  }

  Case bytes_limit(const Bench& bench, int threads) const override {
    // Some times the largest cache, read once: nothing is left in it from the last time.
    if (data_.size == 0) data_ = bench.filled({quick_ ? 4 * kReadBlock : int64_t{1} << 26});
    const auto task = [data = f32(data_)](int64_t i) { sink = kernels().read(data + i * kReadBlock, kReadBlock); };
    return {.name = "dram-read",
            .params = {{"threads", threads}},
            .run = [=, blocks = data_.size / kReadBlock] { on_pool(threads, blocks, task); },
            .facts = {{"bytes", static_cast<double>(data_.size) * sizeof(float)}}};
  }

  std::function<void(bool)> layer_gemms(const Bench& bench, const Layer& layer, DType compute,
                                        int threads) const override {
    const int64_t D = layer.sizes.D, H = layer.sizes.H, R = layer.row_limit;
    const Tensor x = bench.normals({R, D}), hidden = bench.normals({R, H}), a = bench.filled({R, 2 * H});
    const Tensor y = bench.filled({R, D});
    return [=, &layer](bool all) {
      const auto run = [&](Gemm gemm, const Tensor& left, const Tensor& right, const Tensor& out) {
        kernels().gemm({threads, nullptr}, {gemm, D, H, layer.expert_rows, f32(left), f32(right), f32(out), compute});
      };
      run(Gemm::a, x, layer.w1, a);
      run(Gemm::y, hidden, layer.w2, y);
      if (!all) return;
      run(Gemm::dh, x, layer.w2, hidden);
      run(Gemm::dw2, x, hidden, layer.dw2);
      run(Gemm::dw1, a, x, layer.dw1);
      run(Gemm::dx, a, layer.w1, y);
    };
  }

 private:
  bool quick_;
  mutable Device device_{&cpu_backend(), {1, nullptr}};
  mutable Tensor data_;
};

}  // namespace

std::unique_ptr<Platform> make_platform(Options& options) {
  return std::make_unique<Cpu>(options.quick);
}

}  // namespace st_moe::bench

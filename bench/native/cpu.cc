#include <cstring>
#include <numeric>
#include <stdexcept>

#include "cpu/pool.h"
#include "kernels.h"
#include "layer.h"
#include "onednn.h"

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
  explicit Cpu(bool quick) {
    suites = {{"limits", limits_suite},
              {"gemm", gemm_suite},
              {"ops", op_suite},
              {"layer", layer_suite},
              {"scaling", scaling_suite}};
    versions = {{"variant", device_.backend->variant}, {"onednn", onednn_version()}};
    arithmetic.push_back(DType::f32);
    if (kernels().bf16_dot) arithmetic.push_back(DType::bf16);
    layers = {{quick ? LayerSizes{2, 48, 24, 4, 2} : LayerSizes{}, {DType::f32, DType::bf16}}};
    layer_kinds = {{"forward", false, false}, {"forward+backward", true, false}};
  }

  Device& device() const override { return device_; }

  Case flops_limit(const Bench& bench, DType compute, int threads) const override {
    const bool dot = compute == DType::bf16 && kernels().bf16_dot;
    const auto kernel = dot ? kernels().bf16_dot : kernels().multiply_add;
    const int64_t rounds = bench.options.quick ? kRounds / 50 : kRounds, tasks = kTasksPerThread * threads;
    return {.name = dot ? "bf16-dot" : "fma",
            .params = {{"threads", threads}},
            .run = [=] { on_pool(threads, tasks, [&](int64_t) { kernel(rounds); }); },
            .facts = {{"flops", kernel(1) * static_cast<double>(rounds * tasks)}}};
  }

  Case bytes_limit(const Bench& bench, int threads) const override {
    // Some times the largest cache, read once: nothing is left in it from the last time.
    if (data_.size == 0) data_ = bench.filled({bench.options.quick ? 4 * kReadBlock : int64_t{1} << 26});
    const auto task = [data = f32(data_)](int64_t i) { sink = kernels().read(data + i * kReadBlock, kReadBlock); };
    return {.name = "dram-read",
            .params = {{"threads", threads}},
            .run = [=, blocks = data_.size / kReadBlock] { on_pool(threads, blocks, task); },
            .facts = {{"bytes", static_cast<double>(data_.size) * sizeof(float)}}};
  }

  std::function<void(bool)> layer_gemms(const Bench& bench, const Layer& layer, DType compute,
                                        int threads) const override {
    const int64_t D = layer.sizes.D, H = layer.sizes.H;
    const int64_t R = std::accumulate(layer.expert_rows.begin(), layer.expert_rows.end(), int64_t{0});
    const Tensor x = bench.normals({R, D}), y = bench.filled({R, D});
    const Tensor hidden = bench.normals({R, H}), a = bench.filled({R, 2 * H});
    return [=, &layer](bool all) {
      const auto run = [&](Gemm gemm, const Tensor& left, const Tensor& right, const Tensor& out) {
        kernels().gemm({threads, nullptr}, {gemm, D, H, layer.expert_rows, f32(left), f32(right), f32(out), compute});
      };
      run(Gemm::a, x, layer.w1, a);
      run(Gemm::y, hidden, layer.w2, y);
      if (!all) return;
      run(Gemm::dh, x, layer.w2, hidden);
      run(Gemm::dw2, x, hidden, layer.memory.at("dw2", layer.w2.shape));
      run(Gemm::dw1, a, x, layer.memory.at("dw1", layer.w1.shape));
      run(Gemm::dx, a, layer.w1, y);
    };
  }

 private:
  mutable Device device_{&cpu_backend(), {1, nullptr}};
  mutable Tensor data_;
};

}  // namespace

std::unique_ptr<Platform> make_platform(Options& options) {
  return std::make_unique<Cpu>(options.quick);
}

}  // namespace st_moe::bench

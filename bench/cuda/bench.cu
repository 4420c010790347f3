#include <algorithm>
#include <array>
#include <numeric>

#include "../native/layer.h"
#include "cuda/blas.h"
#include "cuda/grouped.h"
#include "cuda/hidden.cuh"
#include "cuda/stream.h"

// The CUDA backend as a platform of the benchmark. The GEMMs alone are strided-batched cuBLAS of the same shapes.
extern "C" const st_moe::Plugin* st_moe_plugin();

namespace st_moe::bench {
namespace {

using cuda::check, cuda::Matrix, cuda::stream_of;

class Cuda : public Platform {
 public:
  explicit Cuda(bool quick) : device_(opened()) {
    for (cudaEvent_t* event : {&start_, &end_}) check(cudaEventCreateWithFlags(event, cudaEventDefault), "event");
    suites = {{"limits", limits_suite}, {"layer", layer_suite}, {"ops", op_suite}};
    versions = {{"variant", device_->backend->variant}};
    arithmetic = {DType::f32, DType::bf16, DType::f16};
    layer_kinds = {{"forward", false, false},
                   {"forward+backward", true, false},
                   {"forward+backward, weights changed", true, true}};
    keeps_packed_weights = true;
    add_layers(quick);
  }
  ~Cuda() override {
    for (cudaEvent_t event : {start_, end_}) cudaEventDestroy(event);
  }

  Device& device() const override { return *device_; }
  std::string name_of(DType compute) const override {
    return compute == DType::f32 && cuda::uses_tf32() ? "tf32" : dtype_name(compute);
  }
  double free_bytes() const override {
    size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory");
    return static_cast<double>(free_bytes) - 1e9;  // operands of the limits
  }

  Clocks time(const std::function<void()>& run, int64_t count) const override {
    const cudaStream_t stream = this->stream().stream();
    check(cudaStreamSynchronize(stream), "synchronise");
    const auto events = [&] {
      check(cudaEventRecord(start_, stream), "event");
      for (int64_t i = 0; i < count; ++i) run();
      check(cudaEventRecord(end_, stream), "event");
      check(cudaEventSynchronize(end_), "synchronise");
    };
    const double host = Platform::time(events, 1).wall;
    float device = 0;
    check(cudaEventElapsedTime(&device, start_, end_), "event");
    const double runs = static_cast<double>(count);
    return {host / runs, static_cast<double>(device) / runs};
  }
  std::vector<std::pair<std::string, int64_t>> counters() const override {
    return {{"kernels", stream().launches()}, {"gemms", stream().gemms()}};
  }

  Case flops_limit(const Bench& bench, DType compute, int) const override {
    const int64_t n = bench.options.quick ? 64 : 8192;
    const Tensor a = operand(bench, {n, n}, compute), b = operand(bench, {n, n}, compute), c = bench.filled({n, n});
    const cuda::Gemm gemm{n, n, n, a.data(), b.data(), c.data(), n, n, n};
    return {.name = "gemm",
            .params = {{"n", n}, {"compute", name_of(compute)}},
            .run = [=, this,
                    memory = std::vector<Tensor>{a, b, c}] { multiply(device_->context, compute, DType::f32, gemm); },
            .facts = {{"flops", 2 * static_cast<double>(n) * static_cast<double>(n * n)}}};
  }

  Case bytes_limit(const Bench& bench, int) const override {
    const int64_t bytes = bench.options.quick ? 1 << 16 : int64_t{1} << 30;
    const Tensor from = bench.filled({bytes / 4}), to = bench.filled({bytes / 4});
    const auto copy = [=, this] {
      check(cudaMemcpyAsync(to.data(), from.data(), static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                            stream().stream()),
            "copy");
    };
    return {.name = "copy", .params = {}, .run = copy, .facts = {{"bytes", 2 * static_cast<double>(bytes)}}};
  }

  std::function<void(bool)> layer_gemms(const Bench& bench, const Layer& layer, DType compute, int) const override {
    const LayerSizes s = layer.sizes;
    const int64_t D = s.D, H = s.H;
    // With uneven loads: the experts that have rows, each with their mean.
    const auto& each = layer.expert_rows;
    const int64_t E = static_cast<int64_t>(each.size()) - std::count(each.begin(), each.end(), 0);
    const int64_t M = cuda::ceil_div(std::accumulate(each.begin(), each.end(), int64_t{0}), E);
    const cuda::HiddenColumns at = cuda::HiddenColumns::of(Activation::geglu, H, compute);
    const auto wide = [=](int64_t n) {
      return compute == DType::f32 ? n : cuda::ceil_div(n, cuda::kOperandMultiple) * cuda::kOperandMultiple;
    };
    const Tensor in = operand(bench, {E, M, wide(D)}, compute), hidden = operand(bench, {E, M, at.width}, compute);
    const Tensor a = operand(bench, {E, M, at.a_width}, compute), da = operand(bench, {E, M, at.a_width}, compute);
    const Tensor out = bench.filled({E, M, D}), pre = bench.filled({E, M, at.a_width});
    const cuda::RowGroups groups = cuda::RowGroups::equal(E, M);
    return [=, this, &layer](bool all) {
      const auto weight_of = [&](const Tensor& w, int64_t parts, int64_t rows, int64_t columns) -> Matrix {
        if (compute == DType::f32) return {w.data(), parts * rows, columns};
        const PackedCopies& copies = *w.storage->packed();  // the layer has run: they are there
        return {copies.find(copies, {0, compute, s.E * parts, rows, columns}), parts * wide(rows), wide(columns)};
      };
      const Matrix x{in.data(), M, wide(D)}, h{hidden.data(), M, at.width}, d{da.data(), M, at.a_width};
      const Matrix first = weight_of(layer.w1, 2, H, D), second = weight_of(layer.w2, 1, D, H);
      const auto rows = [&](const Matrix& a, const Matrix& w, bool transposed, const Tensor& c, int64_t ldc, int64_t N,
                            DType result = DType::f32) {
        multiply_rows(device_->context, compute, result, groups, a, w, transposed, c.data(), ldc, N);
      };
      const auto over_rows = [&](const Matrix& a, const Matrix& b, const Tensor& c, int64_t M, int64_t N) {
        multiply_over_rows(device_->context, compute, DType::f32, groups, a, b, c.data(), M * N, M, N);
      };
      rows(x, first, true, a, at.a_width, first.rows, compute);  // pre-activations are stored as the layer stores them
      rows(h, second, true, out, D, D);
      if (!all) return;
      rows(x, second, false, pre, at.width, second.columns);
      over_rows(x, h, layer.memory.at("dw2", layer.w2.shape), D, H);
      over_rows(d, x, layer.memory.at("dw1", layer.w1.shape), 2 * H, D);
      rows(d, first, false, out, D, D);
    };
  }

 private:
  void add_layers(bool quick) {
    const LayerSizes small = quick ? LayerSizes{2, 16, 24, 4, 2} : LayerSizes{};
    for (const DType compute : arithmetic) layers.push_back({small, {compute}});
    LayerSizes dropless = small, decoding{.B = 2, .N = 1, .D = 24, .E = 4, .dropless = true};
    dropless.dropless = true;
    layers.push_back({dropless, {DType::bf16}});
    if (quick) return layers.push_back({decoding, {DType::bf16}, true});
    // Few large experts, and many small ones.
    const LayerSizes large{.B = 4, .N = 2048, .D = 4096, .E = 8, .K = 2, .H = 14336};
    const LayerSizes fine{.B = 8, .N = 2048, .D = 2048, .E = 128, .K = 8, .H = 768, .capacity_factor = 10};
    for (LayerSizes sizes : {large, fine}) {
      layers.push_back({sizes, {DType::bf16}});
      sizes.dropless = true;
      layers.push_back({sizes, {DType::bf16}});
      sizes.N = 1;
      for (const int64_t tokens : {1, 8}) {
        sizes.B = tokens;
        layers.push_back({sizes, {DType::bf16}, true});
      }
    }
    // The same 320 rows per expert; E = 64 needs more than 80 GB for its backward.
    for (const auto& [B, E, H] : {std::array<int64_t, 3>{4, 32, 10922}, {4, 32, 10944}, {8, 64, 10922}}) {
      const LayerSizes wide{.B = B, .N = 2048, .D = 4096, .E = E, .K = 2, .H = H};
      layers.push_back({wide, {DType::bf16}});
    }
  }
  static std::unique_ptr<Device> opened() {
    const Backend* backend = nullptr;
    Context context{1, nullptr};
    Bench::check(st_moe_plugin()->open(0, &backend, &context));
    return std::make_unique<Device>(backend, context, st_moe_plugin());
  }
  static Tensor operand(const Bench& bench, const Shape& shape, DType dtype) {
    const Tensor values = bench.uniforms(shape, -1, 1);
    return dtype == DType::f32 ? values : bench.converted(values, dtype);
  }
  cuda::Stream& stream() const { return stream_of(device_->context); }

  std::unique_ptr<Device> device_;
  cudaEvent_t start_ = nullptr, end_ = nullptr;
};

}  // namespace

std::unique_ptr<Platform> make_platform(Options& options) {
  options.threads.assign(1, 1);
  return std::make_unique<Cuda>(options.quick);
}

}  // namespace st_moe::bench

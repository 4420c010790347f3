#pragma once
#include <utility>

#include "core/tensor.h"
#include "cuda/blas.h"
#include "cuda/ops.h"
#include "harness.h"

// What the device can do, and ops that a training step has beside the layer.
namespace st_moe::cuda {

class Parts {
 public:
  Parts(st_moe::Device& device, Rows& rows, bool quick)
      : device_(device), rows_(rows), quick_(quick), timer_(device.context, quick) {}

  // Limits of the device: memory that is copied, large GEMMs.
  void limits() {
    const int64_t bytes = quick_ ? 1 << 16 : int64_t{1} << 30;
    const Tensor from = floats({bytes / 4}), to = floats({bytes / 4});
    const cudaStream_t stream = stream_of(device_.context).stream();
    run({"copy", "", "device to device"}, 2.0 * double(bytes) * 1e-9, "GB/s", [&] {
      check(cudaMemcpyAsync(to.data(), from.data(), static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
            "copy");
    });
  }
  void gemm_limit(DType dtype) {
    const int64_t n = quick_ ? 64 : 8192;
    const char* type = dtype == DType::f32 && uses_tf32() ? "tf32" : dtype_name(dtype);
    const Tensor a = numbers({n, n}, dtype), b = numbers({n, n}, dtype), c = floats({n, n});
    const Product product{n, n, n, a.data(), b.data(), c.data(), n, n, n};
    run({"GEMM " + std::to_string(n), type, "C = AB"}, 2.0 * double(n * n) * double(n) * 1e-12, "TFLOP/s",
        [&] { multiply(device_.context, dtype, DType::f32, product); });
  }

  void attention() {
    const int64_t B = quick_ ? 1 : 4, N = quick_ ? 16 : 1024, heads = quick_ ? 2 : 8, d = quick_ ? 8 : 64,
                  D = heads * d;
    const Tensor q = numbers({B, N, D}), k = numbers({B, N, D}), v = numbers({B, N, D}), dy = numbers({B, N, D});
    const Tensor y = floats({B, N, D}), lse = floats({B, heads, N});
    const Tensor dq = floats({B, N, D}), dk = floats({B, N, D}), dv = floats({B, N, D});
    const double teraflops = 2.0 * double(B * heads * N) * double(N * d) * 1e-12;  // causal: half of two GEMMs
    const std::string name = "attention " + std::to_string(B) + " × " + std::to_string(N) + " × " + std::to_string(D);
    run({name, "f32", "forward"}, teraflops, "TFLOP/s", [&] {
      expect_ok(op_table().attention(device_.context, {q.data(), k.data(), v.data(), y.data(), lse.data(), DType::f32,
                                                       B, N, N, heads, d, 0.125, 1}));
    });
    run({name, "f32", "backward"}, 2.5 * teraflops, "TFLOP/s", [&] {
      expect_ok(op_table().attention_backward(
          device_.context, {dy.data(), q.data(), k.data(), v.data(), y.data(), lse.data(), dq.data(), dk.data(),
                            dv.data(), DType::f32, B, N, N, heads, d, 0.125, 1}));
    });
  }

  void cross_entropy() {
    const int64_t T = quick_ ? 8 : 4096, V = quick_ ? 100 : 32000;
    const Tensor logits = numbers({T, V}), dlogits = floats({T, V}), loss = numbers({1}), lse = floats({T});
    const Tensor target = make_tensor(device_, DType::i32, {T});
    expect_ok(op_table().fill(device_.context, {target.data(), DType::i32, T, 1}));
    const auto* index = static_cast<const int32_t*>(target.data());
    const double gigabytes = double(T * V) * 4e-9;
    const std::string name = "cross-entropy " + std::to_string(T) + " × " + std::to_string(V);
    run({name, "f32", "forward"}, gigabytes, "GB/s", [&] {
      expect_ok(op_table().cross_entropy(device_.context,
                                         {logits.data(), index, loss.data(), lse.data(), DType::f32, T, V, -100}));
    });
    run({name, "f32", "backward"}, 2 * gigabytes, "GB/s", [&] {
      expect_ok(op_table().cross_entropy_backward(
          device_.context, {loss.data(), logits.data(), lse.data(), index, dlogits.data(), DType::f32, T, V, -100}));
    });
  }

  void adamw() {
    const int64_t n = quick_ ? 1000 : int64_t{1} << 27;
    const Tensor p = numbers({n}), g = numbers({n}), m = numbers({n}), v = numbers({n});
    run({"AdamW, " + std::to_string(n) + " values", "f32", "step"}, 7.0 * double(n) * 4e-9, "GB/s", [&] {
      expect_ok(op_table().adamw(
          device_.context, {p.data(), g.data(), m.data(), v.data(), DType::f32, n, 10, 1e-6, 0.9, 0.999, 1e-8, 0.01}));
    });
  }

 private:
  // `work` in units of `unit` times a second.
  void run(const Rows::Name& name, double work, const char* unit, const std::function<void()>& f) {
    Stream& stream = stream_of(device_.context);
    f();
    const int64_t launches = stream.launches(), gemms = stream.gemms();
    f();
    const int64_t kernels = stream.launches() - launches, calls = stream.gemms() - gemms;
    const Milliseconds ms = timer_.median_of(f);
    rows_.add(name, ms, 0, 0, work / ms.device * 1e3, unit, kernels, calls);
  }
  Tensor floats(Shape shape) { return make_tensor(device_, DType::f32, std::move(shape)); }
  Tensor numbers(Shape shape, DType dtype = DType::f32) {
    Tensor t = floats(std::move(shape));
    expect_ok(
        op_table().random(device_.context, {t.data(), DType::f32, t.size, Distribution::uniform, 0, 1, 1, step_++}));
    if (dtype == DType::f32) return t;
    Tensor rounded = make_tensor(device_, dtype, t.shape);
    expect_ok(op_table().convert(device_.context, {t.data(), rounded.data(), DType::f32, dtype, t.size}));
    return rounded;
  }

  st_moe::Device& device_;
  Rows& rows_;
  bool quick_;
  Timer timer_;
  uint64_t step_ = 0;
};

}  // namespace st_moe::cuda

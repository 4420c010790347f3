#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/convert.h"
#include "cuda/blas.h"
#include "cuda/blas_library.h"
#include "cuda/kernel.cuh"
#include "../../check.h"

// multiply and multiply_grouped against plain loops.
using namespace st_moe;
using namespace st_moe::cuda;

namespace {

template <class T>
constexpr DType dtype = sizeof(T) == 4 ? DType::f32 : DType::f64;

// How values of T are passed to a GEMM: unrounded, or as bf16 or f16.
template <class T>
std::vector<uint16_t> rounded(const std::vector<T>& values, DType type) {
  std::vector<uint16_t> out;
  for (T value : values)
    out.push_back(type == DType::bf16 ? float_to_bf16(static_cast<float>(value))
                                      : float_to_f16(static_cast<float>(value)));
  return out;
}

// Small integers: GEMMs are exact in every order.
template <class T>
std::vector<T> whole(int64_t n, int seed) {
  std::vector<T> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = static_cast<T>((i * 7 + seed) % 11 - 5);
  return values;
}

template <class T>
void multiply_on_host(const Gemm& p, const T* a, const T* b, T* c) {
  for (int64_t g = 0; g < p.batch; ++g)
    for (int64_t m = 0; m < p.M; ++m)
      for (int64_t n = 0; n < p.N; ++n) {
        T sum = 0;
        for (int64_t k = 0; k < p.K; ++k)
          sum += a[g * p.a_stride + (p.transpose_a ? k * p.lda + m : m * p.lda + k)] *
                 b[g * p.b_stride + (p.transpose_b ? n * p.ldb + k : k * p.ldb + n)];
        T& to = c[g * p.c_stride + m * p.ldc + n];
        to = p.accumulate ? to + sum : sum;
      }
}

template <class T>
class OnDevice {
 public:
  OnDevice(const Context& ctx, const std::vector<T>& values)
      : ctx_(ctx), memory_(ctx, static_cast<int64_t>(values.size())) {
    stream_of(ctx).copy_in(memory_.get(), values.data(), values.size() * sizeof(T));
  }
  T* get() const { return memory_.get(); }
  std::vector<T> back(size_t n) const {
    std::vector<T> values(n);
    stream_of(ctx_).copy_out(values.data(), memory_.get(), n * sizeof(T));
    return values;
  }

 private:
  const Context& ctx_;
  Scratch<T> memory_;
};

constexpr int64_t kSize = 600;

// f32 results of low-precision operands: small integers are exact in all types.
void test_low_precision(const Context& ctx, DType type) {
  const std::vector<float> a = whole<float>(kSize, 1), b = whole<float>(kSize, 2);
  const OnDevice<uint16_t> device_a(ctx, rounded(a, type)), device_b(ctx, rounded(b, type));
  for (int bits = 0; bits < 8; ++bits) {
    Gemm p{3, 5, 7, device_a.get(), device_b.get(), nullptr, 10, 10, 11};
    p.transpose_a = bits & 1, p.transpose_b = bits & 2, p.accumulate = bits & 4;
    p.batch = 2, p.a_stride = 100, p.b_stride = 110, p.c_stride = 120;
    std::vector<float> c = whole<float>(kSize, 3);
    const OnDevice<float> device_c(ctx, c);
    p.c = device_c.get();
    multiply(ctx, type, DType::f32, p);
    multiply_on_host(p, a.data(), b.data(), c.data());
    check(device_c.back(c.size()) == c, "multiply of low-precision operands");
  }
}

template <class T>
void test_multiply(const Context& ctx) {
  const std::vector<T> a = whole<T>(kSize, 1), b = whole<T>(kSize, 2);
  const OnDevice<T> device_a(ctx, a), device_b(ctx, b);
  const int64_t shapes[][4] = {{3, 5, 7, 2}, {1, 1, 1, 1}, {4, 6, 0, 2}, {0, 3, 4, 1}, {8, 8, 8, 3}, {5, 9, 2, 0}};
  for (const auto& [M, N, K, batch] : shapes)
    for (int bits = 0; bits < 16; ++bits) {
      Gemm p{M, N, K, device_a.get(), device_b.get(), nullptr, 10, 10, 11};
      p.transpose_a = bits & 1;
      p.transpose_b = bits & 2;
      p.accumulate = bits & 4;
      p.batch = batch;
      p.a_stride = bits & 8 ? 0 : 100;
      p.b_stride = 110;
      p.c_stride = 120;
      std::vector<T> c = whole<T>(kSize, 3);
      const OnDevice<T> device_c(ctx, c);
      p.c = device_c.get();
      multiply(ctx, dtype<T>, dtype<T>, p);
      multiply_on_host(p, a.data(), b.data(), c.data());
      check(device_c.back(c.size()) == c, "multiply");
    }
}

template <class T>
void test_grouped(const Context& ctx) {
  const std::vector<T> a = whole<T>(kSize, 4), b = whole<T>(kSize, 5);
  const OnDevice<T> device_a(ctx, a), device_b(ctx, b);
  for (int64_t count : {0, 1, 5}) {
    std::vector<T> c = whole<T>(kSize, 6);
    const OnDevice<T> device_c(ctx, c);
    std::vector<Gemm> gemms;
    const int64_t rows[] = {3, 0, 4, 1, 2};
    for (int64_t g = 0; g < count; ++g) {
      const int64_t at = g * 100, K = g == 3 ? 0 : 5;
      gemms.push_back({rows[g], 6, K, device_a.get() + at, device_b.get() + at, device_c.get() + at, 7, 8, 9});
      gemms.back().transpose_b = g == 2;
      gemms.back().accumulate = g == 4;
      multiply_on_host(gemms.back(), a.data() + at, b.data() + at, c.data() + at);
    }
    const int64_t before = stream_of(ctx).synchronisations();
    multiply_grouped(ctx, dtype<T>, dtype<T>, gemms);
    check(stream_of(ctx).synchronisations() == before, "the host waits for nothing");
    check(device_c.back(c.size()) == c, "multiply_grouped");
  }
}

// Groups of low-precision operands, with results of the same type and of f32; the second has no grouped GEMM, nor has
// the first where tensor cores cannot read 16 bytes at a time: one element further.
void test_low_precision_grouped(const Context& ctx, DType type, int64_t further = 0) {
  const std::vector<float> a = whole<float>(kSize, 4), b = whole<float>(kSize, 5);
  const OnDevice<uint16_t> device_a(ctx, rounded(a, type)), device_b(ctx, rounded(b, type));
  std::vector<float> c = whole<float>(kSize, 6);
  const OnDevice<float> f32_c(ctx, c);
  const OnDevice<uint16_t> rounded_c(ctx, rounded(c, type));
  std::vector<Gemm> to_f32, same;
  for (int64_t g = 0; g < 5; ++g) {
    const int64_t rows[] = {3, 0, 4, 1, 2}, at = g * 104 + further;
    Gemm p{rows[g], 6, 8, device_a.get() + at, device_b.get() + at, f32_c.get() + at, 8, 8, 16};
    to_f32.push_back(p);
    p.c = rounded_c.get() + at;
    same.push_back(p);
    multiply_on_host(p, a.data() + at, b.data() + at, c.data() + at);
  }
  const int64_t before = stream_of(ctx).gemms();
  multiply_grouped(ctx, type, type, same);
  const int64_t calls = further == 0 ? 1 : 4;
  check(stream_of(ctx).gemms() == before + calls, "one grouped GEMM, if it can be");
  multiply_grouped(ctx, type, DType::f32, to_f32);
  check(stream_of(ctx).gemms() == before + calls + 4, "one GEMM per group that is not empty");
  check(f32_c.back(c.size()) == c, "groups of low-precision operands");
  check(rounded_c.back(c.size()) == rounded(c, type), "groups of low-precision operands and results");
}

// More than cuBLAS takes at once.
void test_many_batches(const Context& ctx) {
  constexpr int64_t kBatch = 140000;
  const std::vector<float> a = whole<float>(2 * kBatch, 7), b = whole<float>(2 * kBatch, 8);
  const OnDevice<float> device_a(ctx, a), device_b(ctx, b), device_c(ctx, std::vector<float>(kBatch));
  Gemm p{1, 1, 2, device_a.get(), device_b.get(), device_c.get(), 2, 1, 1};
  p.batch = kBatch, p.a_stride = 2, p.b_stride = 2, p.c_stride = 1;
  const int64_t before = stream_of(ctx).gemms();
  multiply(ctx, DType::f32, DType::f32, p);
  check(stream_of(ctx).gemms() == before + 3, "three calls");
  std::vector<float> c(kBatch);
  multiply_on_host(p, a.data(), b.data(), c.data());
  check(device_c.back(kBatch) == c, "140,000 batches");
}

// Where the pool holds all memory that is left, it is trimmed for a handle of cuBLAS and for the code of a kernel.
__global__ void filling_kernel(float* x) {
  x[threadIdx.x] = 3;
}

void test_full_pool() {
  for (const bool blas : {false, true}) {
    Stream stream(0);
    const Context ctx{1, &stream};
    Scratch<float> x(ctx, 32);
    blas_library();
    launch(ctx, filling_kernel, 1, 32, 0, x.get());
    setenv("SIMT_POOL", "full", 1);
    const int64_t waits = stream.synchronisations();
    if (blas)
      prepare_blas(stream);
    else
      launch(ctx, filling_kernel, 1, 32, 0, x.get());
    check(stream.synchronisations() == waits + 1, "the pool is trimmed");
    unsetenv("SIMT_POOL");
  }
}

// GPUs before 8.0 have no GEMMs of bf16.
void test_old_gpu() {
  setenv("SIMT_CAPABILITY", "75", 1);
  {
    Stream stream(0);
    const Context ctx{1, &stream};
    for (const bool grouped : {false, true}) try {
        const Gemm p{1, 1, 1, nullptr, nullptr, nullptr, 1, 1, 1};
        if (grouped)
          multiply_grouped(ctx, DType::bf16, DType::bf16, {p, p});
        else
          multiply(ctx, DType::bf16, DType::f32, p);
        check(false, "bf16 on an old GPU");
      } catch (const Error& error) {
        check(
            error.code() == ErrorCode::unsupported && std::strstr(error.what(), "this one has 7.5; computeDtype 'f16'"),
            "%s", error.what());
      }
    test_low_precision(ctx, DType::f16);
  }
  unsetenv("SIMT_CAPABILITY");
}

void test_limits(const Context& ctx) {
  try {
    multiply(ctx, DType::f32, DType::f32, {int64_t{1} << 32, 1, 1, nullptr, nullptr, nullptr, 1, 1, 1});
    check(false, "2^32 rows");
  } catch (const Error& error) {
    check(error.code() == ErrorCode::shape && std::strstr(error.what(), "below 2^31"), "2^32 rows");
  }
}

// An index that a kernel refuses is an error of the next copy_out, once.
__global__ void flagging_kernel(Stream::ErrorFlag* error_flag) {
  report_error(error_flag, kIndexError, static_cast<int32_t>(threadIdx.x));
}

void test_fault(const Context& ctx) {
  Stream& stream = stream_of(ctx);
  const OnDevice<float> memory(ctx, {1, 2});
  launch(ctx, flagging_kernel, 1, 64, 0, stream.error_flag());
  try {
    memory.back(2);
    check(false, "error flag");
  } catch (const Error& error) {
    check(error.code() == ErrorCode::option && std::strstr(error.what(), "index must be in"), "error flag");
  }
  check(memory.back(2) == std::vector<float>({1, 2}), "after an error flag");
}

}  // namespace

int main() {
  test_full_pool();
  test_old_gpu();
  {
    Stream stream(0);
    const Context ctx{1, &stream};
    test_multiply<float>(ctx);
    test_multiply<double>(ctx);
    test_low_precision(ctx, DType::bf16);
    test_low_precision(ctx, DType::f16);
    test_grouped<float>(ctx);
    test_grouped<double>(ctx);
    test_low_precision_grouped(ctx, DType::bf16);
    test_low_precision_grouped(ctx, DType::f16);
    test_low_precision_grouped(ctx, DType::bf16, 1);
    test_many_batches(ctx);
    test_limits(ctx);
    test_fault(ctx);
  }
  simt::Counters counters;
  simt::simt_counters(&counters);
  check(counters.live_allocations == 0, "a stream leaves no memory behind");
  return check_result();
}

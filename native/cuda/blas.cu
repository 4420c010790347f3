#include "cuda/blas.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "cuda/blas_library.h"
#include "cuda/kernel.cuh"

namespace st_moe::cuda {

// After a kernel fault, cuBLAS returns arbitrary statuses.
static void check_blas(Stream& stream, cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  stream.expect_no_fault();
  const ErrorCode code = status == CUBLAS_STATUS_ALLOC_FAILED ? ErrorCode::out_of_memory : ErrorCode::internal;
  fail(code, "cuBLAS, %s: %s", what, blas_library().status_string(status));
}

// NVIDIA's recommendation. Without our workspace, cuBLAS has its own per stream and allocates inside a captured step.
static size_t workspace_bytes(const Stream& stream) {
  return size_t{stream.capability() >= 90 ? 32u : 8u} << 20;
}

// The handle takes memory outside of the pool, which may hold all that is left.
static cublasHandle_t create_handle(Stream& stream) {
  cublasHandle_t handle = nullptr;
  cublasStatus_t status = blas_library().create(&handle);
  if (status == CUBLAS_STATUS_ALLOC_FAILED || status == CUBLAS_STATUS_NOT_INITIALIZED) {
    if (stream.trim() == cudaSuccess) status = blas_library().create(&handle);
  }
  check_blas(stream, status, "create");
  return handle;
}

// The handle, on the current stream.
static cublasHandle_t handle_of(Stream& stream) {
  const cudaStream_t queue = stream.stream();  // makes the device current
  Stream::Blas& blas = stream.blas;
  const BlasLibrary& library = blas_library();
  if (!blas.workspace) {
    const size_t bytes = workspace_bytes(stream);
    blas.workspace = stream.allocate(bytes);
    blas.workspace_bytes = bytes;
  }
  if (!blas.handle) blas.handle = create_handle(stream);
  const auto handle = static_cast<cublasHandle_t>(blas.handle);
  if (blas.stream != queue) {
    check_blas(stream, library.set_stream(handle, queue), "stream");  // resets the workspace
    check_blas(stream, library.set_workspace(handle, blas.workspace, blas.workspace_bytes), "workspace");
    blas.stream = queue;
  }
  return handle;
}

void prepare_blas(Stream& stream) {
  handle_of(stream);
}

void destroy_blas(Stream& stream) noexcept {
  if (stream.blas.handle) blas_library().destroy(static_cast<cublasHandle_t>(stream.blas.handle));
  if (stream.blas.workspace) stream.release(stream.blas.workspace);
}

constexpr int64_t kMostBatches = 65535;

static int as_int(int64_t value, const char* what) {
  if (value > std::numeric_limits<int>::max())
    fail(ErrorCode::shape, "a GEMM on cuda needs a %s below 2^31, got %lld", what, static_cast<long long>(value));
  return static_cast<int>(value);
}

// The cuBLAS names of a dtype and of its arithmetic.
struct Types {
  cudaDataType data;
  cublasComputeType_t compute;
};

bool uses_tf32() {
  static const bool tf32 = [] {
    const char* wanted = std::getenv("ST_MOE_TF32");
    return wanted && std::strcmp(wanted, "1") == 0;
  }();
  return tf32;
}

static Types types_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return {CUDA_R_32F, uses_tf32() ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F};
    case DType::f64: return {CUDA_R_64F, CUBLAS_COMPUTE_64F};
    case DType::bf16: return {CUDA_R_16BF, CUBLAS_COMPUTE_32F};
    case DType::f16: return {CUDA_R_16F, CUBLAS_COMPUTE_32F};
    case DType::i32:
    case DType::int8: break;
  }
  fail(ErrorCode::dtype, "a GEMM needs floating point, got %s", dtype_name(dtype));
}

// alpha and beta have the type of the arithmetic.
struct Scalars {
  Scalars(const Types& types, double first, double second)
      : f64{first, second},
        f32{static_cast<float>(first), static_cast<float>(second)},
        is_f64(types.compute == CUBLAS_COMPUTE_64F) {}
  const void* at(int i) const { return is_f64 ? static_cast<const void*>(f64 + i) : f32 + i; }
  double f64[2];
  float f32[2];
  bool is_f64;
};

// A row-major C = op(A) op(B) is the column-major Cᵀ = op(B)ᵀ op(A)ᵀ, with the operands as stored. Only this function
// converts.
struct ColumnMajor {
  cublasOperation_t transa, transb;
  int m, n, k, lda, ldb, ldc;
  const void *a, *b;
};

static ColumnMajor column_major(const Gemm& p) {
  return {p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
          p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
          as_int(p.N, "N"),
          as_int(p.M, "M"),
          as_int(p.K, "K"),
          as_int(p.ldb, "row stride"),
          as_int(p.lda, "row stride"),
          as_int(p.ldc, "row stride"),
          p.b,
          p.a};
}

// The results of GEMMs whose K is 0.
struct ZeroBlock {
  static constexpr int kSize = 80;  // of the 4 KB of parameters
  struct Result {
    void* c;
    int64_t M, N, ldc, batch, stride;
  } result[kSize];
};

// A row of blocks for each result.
template <class Word>
__global__ void __launch_bounds__(kBlock) zeros_kernel(ZeroBlock block) {
  const auto [c, M, N, ldc, batch, stride] = block.result[blockIdx.y];
  for (int64_t i = blockIdx.x * int64_t{kBlock} + threadIdx.x; i < batch * M * N; i += int64_t{gridDim.x} * kBlock)
    static_cast<Word*>(c)[i / (M * N) * stride + i / N % M * ldc + i % N] = 0;
}

// Writes what no GEMM has to, and leaves the others in `products`.
static void finish_empty(const Context& ctx, DType dtype, std::vector<Gemm>& products) {
  std::vector<Gemm> zeros;
  std::erase_if(products, [&](const Gemm& p) {
    if (p.M == 0 || p.N == 0 || p.batch == 0) return true;
    if (p.K == 0 && !p.accumulate) zeros.push_back(p);
    return p.K == 0;
  });
  for (size_t first = 0; first < zeros.size(); first += ZeroBlock::kSize) {
    ZeroBlock block{};
    const size_t count = std::min<size_t>(ZeroBlock::kSize, zeros.size() - first);
    int64_t most = 0;
    for (size_t i = 0; i < count; ++i) {
      const Gemm& p = zeros[first + i];
      block.result[i] = {p.c, p.M, p.N, p.ldc, p.batch, p.c_stride};
      most = std::max(most, p.batch * p.M * p.N);
    }
    // In every dtype, zero bits are zero.
    const auto kernel = dtype_size(dtype) == 8   ? zeros_kernel<uint64_t>
                        : dtype_size(dtype) == 4 ? zeros_kernel<uint32_t>
                                                 : zeros_kernel<uint16_t>;
    launch(ctx, kernel, dim3(grid_for(most), static_cast<unsigned>(count)), kBlock, 0, block);
  }
}

static void expect_types(const Stream& stream, DType operands) {
  if (operands == DType::bf16 && stream.capability() < 80)
    fail(ErrorCode::unsupported,
         "GEMMs of bf16 need a GPU of compute capability 8.0 or newer, this one has %d.%d; computeDtype 'f16' works",
         stream.capability() / 10, stream.capability() % 10);
}

// Neither M, N, K nor the batch, which is below 2^16, is 0.
static void multiply_one(const Context& ctx, DType operands, DType result, const Gemm& p) {
  Types types = types_of(operands);
  if (p.exact && operands == DType::f32) types.compute = CUBLAS_COMPUTE_32F;
  const cudaDataType data_c = types_of(result).data;
  const ColumnMajor g = column_major(p);
  const Scalars scalars(types, 1, p.accumulate ? 1 : 0);
  Stream& stream = stream_of(ctx);
  check_blas(stream,
             blas_library().gemm_strided_batched(handle_of(stream), g.transa, g.transb, g.m, g.n, g.k, scalars.at(0),
                                                 g.a, types.data, g.lda, p.b_stride, g.b, types.data, g.ldb, p.a_stride,
                                                 scalars.at(1), p.c, data_c, g.ldc, p.c_stride,
                                                 as_int(p.batch, "batch"), types.compute, CUBLAS_GEMM_DEFAULT),
             "GEMM");
  stream.multiplied("cublasGemmStridedBatchedEx");
}

void multiply(const Context& ctx, DType operands, DType result, const Gemm& product) {
  expect_types(stream_of(ctx), operands);
  std::vector<Gemm> work{product};
  finish_empty(ctx, result, work);
  for (const Gemm& all : work)
    for (int64_t first = 0; first < all.batch; first += kMostBatches) {  // older versions take no more
      Gemm p = all;
      p.batch = std::min(kMostBatches, all.batch - first);
      p.a = static_cast<const char*>(all.a) + first * all.a_stride * dtype_size(operands);
      p.b = static_cast<const char*>(all.b) + first * all.b_stride * dtype_size(operands);
      p.c = static_cast<char*>(all.c) + first * all.c_stride * dtype_size(result);
      multiply_one(ctx, operands, result, p);
    }
}

// Whether tensor cores can read and write the matrices of a product by pointers that the host does not see.
static bool is_aligned(const Gemm& p, DType operands, DType result) {
  constexpr size_t kBytes = 16;  // by the cuBLAS reference, for K of a multiple of 4 in TF32 and of 8 in 16 bits
  const auto fits = [](const void* data, int64_t stride, DType dtype) {
    return reinterpret_cast<uintptr_t>(data) % kBytes == 0 &&
           static_cast<size_t>(stride) * dtype_size(dtype) % kBytes == 0;
  };
  return fits(p.a, p.lda, operands) && fits(p.b, p.ldb, operands) && fits(p.c, p.ldc, result);
}

// The arguments of cublasGemmGroupedBatchedEx, as columns. Omits empty groups, which some versions mishandle.
struct Groups {
  std::vector<cublasOperation_t> transa, transb;
  std::vector<int> m, n, k, lda, ldb, ldc, size;
  std::vector<double> wide_alpha, wide_beta;
  std::vector<float> alpha, beta;
  std::vector<const void*> pointers;  // all A, all B, all C

  void add(const Gemm& p) {
    const ColumnMajor g = column_major(p);
    transa.push_back(g.transa);
    transb.push_back(g.transb);
    m.push_back(g.m);
    n.push_back(g.n);
    k.push_back(g.k);
    lda.push_back(g.lda);
    ldb.push_back(g.ldb);
    ldc.push_back(g.ldc);
    size.push_back(1);
    wide_alpha.push_back(1);
    alpha.push_back(1);
    wide_beta.push_back(p.accumulate ? 1 : 0);
    beta.push_back(p.accumulate ? 1 : 0);
  }
};

// Passes pointers to the device as kernel parameters: a copy would need host memory that outlives the call.
struct PointerBlock {
  static constexpr int kSize = 480;  // of the 4 KB of parameters
  const void* pointer[kSize];
};

__global__ void __launch_bounds__(kBlock) store_pointers_kernel(PointerBlock block, int count, const void** to) {
  for (int i = threadIdx.x; i < count; i += kBlock) to[i] = block.pointer[i];
}

static void store_pointers(const Context& ctx, const std::vector<const void*>& pointers, const void** to) {
  for (size_t first = 0; first < pointers.size(); first += PointerBlock::kSize) {
    PointerBlock block{};
    const size_t count = std::min<size_t>(PointerBlock::kSize, pointers.size() - first);
    std::copy_n(pointers.data() + first, count, block.pointer);
    launch(ctx, store_pointers_kernel, 1, kBlock, 0, block, static_cast<int>(count), to + first);
  }
}

// false: this cuBLAS has no grouped GEMM of these types.
static bool try_grouped(const Context& ctx, DType operands, DType result, const std::vector<Gemm>& products) {
  if (products.size() < 2 || !blas_library().gemm_grouped_batched) return false;
  const Types types = types_of(operands);
  const cudaDataType data_c = types_of(result).data;
  const bool tensor_cores = types.compute == CUBLAS_COMPUTE_32F_FAST_TF32 || dtype_size(operands) == 2;
  const auto aligned = [&](const Gemm& p) { return is_aligned(p, operands, result); };
  if (tensor_cores && !std::all_of(products.begin(), products.end(), aligned)) return false;
  Stream& stream = stream_of(ctx);
  const cublasHandle_t handle = handle_of(stream);
  Groups groups;
  for (const Gemm& p : products) groups.add(p);
  for (const Gemm& p : products) groups.pointers.push_back(p.b);
  for (const Gemm& p : products) groups.pointers.push_back(p.a);
  for (const Gemm& p : products) groups.pointers.push_back(p.c);
  const size_t n = products.size();
  Scratch<const void*> pointers(ctx, static_cast<int64_t>(3 * n));
  store_pointers(ctx, groups.pointers, pointers.get());
  const bool wide = types.compute == CUBLAS_COMPUTE_64F;
  const cublasStatus_t status = blas_library().gemm_grouped_batched(
      handle, groups.transa.data(), groups.transb.data(), groups.m.data(), groups.n.data(), groups.k.data(),
      wide ? static_cast<const void*>(groups.wide_alpha.data()) : groups.alpha.data(), pointers.get(), types.data,
      groups.lda.data(), pointers.get() + n, types.data, groups.ldb.data(),
      wide ? static_cast<const void*>(groups.wide_beta.data()) : groups.beta.data(),
      const_cast<void* const*>(pointers.get() + 2 * n), data_c, groups.ldc.data(), static_cast<int>(n),
      groups.size.data(), types.compute);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
  check_blas(stream, status, "grouped GEMM");
  stream.multiplied("cublasGemmGroupedBatchedEx");
  return true;
}

void multiply_grouped(const Context& ctx, DType operands, DType result, const std::vector<Gemm>& products) {
  expect_types(stream_of(ctx), operands);
  std::vector<Gemm> work = products;
  finish_empty(ctx, result, work);
  if (try_grouped(ctx, operands, result, work)) return;
  for (const Gemm& p : work) multiply_one(ctx, operands, result, p);
}

}  // namespace st_moe::cuda

#include "emulator/gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/convert.h"
#include "emulator/counting.h"
#include "emulator/runtime_device.h"

namespace simt {
namespace {

// Ten bits after the point, rounded to nearest.
float round_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
  std::memcpy(&value, &bits, 4);
  return value;
}

void store(void* to, size_t i, cudaDataType type, double value) {
  const float rounded = static_cast<float>(value);
  switch (type) {
    case CUDA_R_64F: static_cast<double*>(to)[i] = value; break;
    case CUDA_R_32F: static_cast<float*>(to)[i] = rounded; break;
    case CUDA_R_16BF: static_cast<uint16_t*>(to)[i] = st_moe::float_to_bf16(rounded); break;
    case CUDA_R_16F: static_cast<uint16_t*>(to)[i] = st_moe::float_to_f16(rounded); break;
  }
}

enum class Sums { interleaved, sequential, fma };

// SIMT_SUMS: cuBLAS guarantees no summation order, and that of a GPU differs from the CPU's.
Sums sums() {
  static const Sums kind = is("SIMT_SUMS", "fma")          ? Sums::fma
                           : is("SIMT_SUMS", "sequential") ? Sums::sequential
                                                           : Sums::interleaved;
  return kind;
}

// In the precision of the GEMM: eight interleaved partial sums, one sum in order, or the same with fused multiply-adds.
template <class T>
T dot(const T* a, const T* b, int k) {
  T part[8] = {};
  int p = 0;
  switch (sums()) {
    case Sums::sequential:
      for (; p < k; ++p) part[0] += a[p] * b[p];
      return part[0];
    case Sums::fma:
      for (; p < k; ++p) part[0] = std::fma(a[p], b[p], part[0]);
      return part[0];
    case Sums::interleaved: break;
  }
  for (; p + 8 <= k; p += 8)
    for (int i = 0; i < 8; ++i) part[i] += a[p + i] * b[p + i];
  for (; p < k; ++p) part[p % 8] += a[p] * b[p];
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

template <class T>
void run_in(const Gemm& g) {
  const auto m = static_cast<size_t>(g.m), n = static_cast<size_t>(g.n), k = static_cast<size_t>(g.k);
  const auto lda = static_cast<size_t>(g.lda), ldb = static_cast<size_t>(g.ldb), ldc = static_cast<size_t>(g.ldc);
  std::vector<T> a(m * k), column(k);
  const auto operand = [&](double value) {
    return static_cast<T>(g.tf32 ? static_cast<double>(round_to_tf32(static_cast<float>(value))) : value);
  };
  for (size_t i = 0; i < m; ++i)
    for (size_t p = 0; p < k; ++p)
      a[i * k + p] = operand(load(g.A, g.transa == CUBLAS_OP_N ? i + p * lda : p + i * lda, g.type));
  for (size_t j = 0; j < n; ++j) {
    for (size_t p = 0; p < k; ++p)
      column[p] = operand(load(g.B, g.transb == CUBLAS_OP_N ? p + j * ldb : j + p * ldb, g.type));
    for (size_t i = 0; i < m; ++i) {
      T value = static_cast<T>(g.alpha) * dot(a.data() + i * k, column.data(), g.k);
      const size_t at = i + j * ldc;
      if (g.beta != 0) value += static_cast<T>(g.beta) * static_cast<T>(load(g.C, at, g.C_type));
      store(g.C, at, g.C_type, value);
    }
  }
}

const char* name_of(cudaDataType type) {
  return type == CUDA_R_64F ? "f64" : type == CUDA_R_32F ? "f32" : type == CUDA_R_16BF ? "bf16" : "f16";
}

double products_of(const Gemm& g) {
  return static_cast<double>(g.m) * g.n * g.k;
}

double bytes_moved(const Gemm& g) {
  const double m = g.m, n = g.n, k = g.k, in = static_cast<double>(bytes_of(g.type));
  const double out = static_cast<double>(bytes_of(g.C_type)) * (g.beta != 0 ? 2 : 1);
  return (m * k + k * n) * in + m * n * out;
}

std::string types_of(const Gemm& g) {
  return std::string(name_of(g.type)) + " → " + name_of(g.C_type);
}

}  // namespace

size_t bytes_of(cudaDataType type) {
  return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2;
}

double load(const void* from, size_t i, cudaDataType type) {
  switch (type) {
    case CUDA_R_64F: return static_cast<const double*>(from)[i];
    case CUDA_R_32F: return static_cast<const float*>(from)[i];
    case CUDA_R_16BF: return st_moe::bf16_to_float(static_cast<const uint16_t*>(from)[i]);
    case CUDA_R_16F: return st_moe::f16_to_float(static_cast<const uint16_t*>(from)[i]);
  }
  return 0;
}

bool sizes_fit(const Gemm& g) {
  const int a_rows = g.transa == CUBLAS_OP_N ? g.m : g.k, b_rows = g.transb == CUBLAS_OP_N ? g.k : g.n;
  return g.m >= 0 && g.n >= 0 && g.k >= 0 && g.lda >= std::max(1, a_rows) && g.ldb >= std::max(1, b_rows) &&
         g.ldc >= std::max(1, g.m);
}

bool is_aligned(const Gemm& g) {
  const int vector = g.tf32 ? 4 : bytes_of(g.type) == 2 ? 8 : 0;
  if (vector == 0 || g.k % vector != 0) return true;
  return ((reinterpret_cast<uintptr_t>(g.A) | reinterpret_cast<uintptr_t>(g.B)) & 15) == 0;
}

void run(const Gemm& g) {
  g.type == CUDA_R_64F ? run_in<double>(g) : run_in<float>(g);
}

bool counted(const Gemm& g, int count) {
  if constexpr (!kCounting) return false;
  count_gemm(g.m, g.n, g.k, count, types_of(g).c_str(), count * bytes_moved(g));
  return only_counted_products(products_of(g) * count);
}

bool counted(const std::vector<Gemm>& gemms) {
  if constexpr (!kCounting) return false;
  double products = 0, bytes = 0;
  for (const Gemm& g : gemms) products += products_of(g), bytes += bytes_moved(g);
  count_groups(gemms.size(), 2 * products, types_of(gemms[0]).c_str(), bytes);
  return only_counted_products(products);
}

}  // namespace simt

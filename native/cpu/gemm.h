#pragma once
#include "core/blocks.h"
#include "cpu/bf16_gemm.h"
#include "cpu/kernel.h"

// Blocked, packed GEMM for many independent problems at once. The summation order of every element of C depends only on
// the sizes of its own problem: neither the number of threads nor the rest of the batch changes it.
namespace st_moe::cpu::ST_MOE_ISA {

constexpr int64_t kSkinnyRows = 16;         // of float32: up to this M, a skinny GEMM sums in another order
constexpr int64_t kStreamBytes = 32 << 20;  // large: more than the caches hold

// K = 0 writes bias or zeros. Problems must not overlap in C. Rounds the elements of A and B to `compute` first.
template <class T>
void gemm(const Context& ctx, const GemmProblem<T>* problems, int64_t count, DType compute = dtype_of<T>);

// Packs B ahead of time, for matrices that many GEMMs read. packed_size: elements of T, 0 if packing does not pay.
// pack_weights: `batch` matrices b [K, N], each batch_stride elements after the other, to out [batch, packed_size].
template <class T>
int64_t packed_size(const Context& ctx, int64_t K, int64_t N, DType compute);
template <class T>
void pack_weights(const Context& ctx, const MatrixView<T>& b, int64_t batch, int64_t batch_stride, int64_t K, int64_t N,
                  DType compute, T* out);

// The weights from element `first` on of the `size` that an op got, in the type that they are stored in.
template <class T>
static inline MatrixView<T> weights_of(const void* data, DType stored, int64_t row_stride, int64_t col_stride,
                                       int64_t size, int64_t first = 0) {
  if (is_blocked(stored)) {
    const auto* q = static_cast<const int8_t*>(data);
    const auto* scales = reinterpret_cast<const uint16_t*>(q + scales_at(size));
    const int64_t row = max_of(row_stride, col_stride);
    if (first > 0) q += first, scales += first / row * blocks_of(row);
    return {reinterpret_cast<const T*>(q), row_stride, col_stride, nullptr, stored, scales};
  }
  const bool low = dtype_size(stored) == 2;
  const char* from = static_cast<const char*>(data) + first * static_cast<int64_t>(low ? 2 : sizeof(T));
  return {reinterpret_cast<const T*>(from), row_stride, col_stride, nullptr, low ? stored : dtype_of<T>};
}

// How operands of `compute` are converted; null if they are not in 16 bits.
const LowPrecision* low_precision(const Context& ctx, DType compute);

// One small GEMM on the calling thread, inside a task: allocates only from the cache of the thread.
template <class T>
void gemm_serial(const GemmProblem<T>& problem);

}  // namespace st_moe::cpu::ST_MOE_ISA

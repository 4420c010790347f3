#pragma once
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

// How operands of `compute` are converted; null if they are not in 16 bits.
const LowPrecision* low_precision(const Context& ctx, DType compute);

// One small GEMM on the calling thread, inside a task: allocates only from the cache of the thread.
template <class T>
void gemm_serial(const GemmProblem<T>& problem);

}  // namespace st_moe::cpu::ST_MOE_ISA

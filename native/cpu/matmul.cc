#include "core/ops/layers.h"
#include "cpu/gemm.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
static void matmul_batch(const Context& ctx, const MatmulArgs& args) {
  const T *a = static_cast<const T*>(args.a), *b = static_cast<const T*>(args.b);
  T* y = static_cast<T*>(args.y);
  Scratch<GemmProblem<T>> problems(args.batch);
  for (int64_t i = 0; i < args.batch; ++i) {
    GemmProblem<T> p{};
    p.M = args.M, p.N = args.N, p.K = args.K;
    p.a = {a + i * args.a_batch_stride, args.transpose_a ? 1 : args.K, args.transpose_a ? args.M : 1};
    p.b = {b + i * args.b_batch_stride, args.transpose_b ? 1 : args.N, args.transpose_b ? args.K : 1};
    p.c = y + i * args.M * args.N;
    p.c_stride = args.N;
    problems[i] = p;
  }
  gemm(ctx, problems.get(), args.batch);
}

void matmul(const Context& ctx, const MatmulArgs& args) {
  if (args.batch <= 0) return;
  dispatch_float(args.dtype, [&](auto zero) { matmul_batch<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

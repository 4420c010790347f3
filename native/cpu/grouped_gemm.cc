#include "core/ops/moe.h"
#include "core/groups.h"
#include "cpu/gemm.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
static void grouped_forward(const Context& ctx, const GroupedGemmArgs& args) {
  const int64_t I = args.I, O = args.O;
  Scratch<GemmProblem<T>> problems(args.G);
  int64_t row = 0;
  for (int64_t g = 0; g < args.G; ++g) {
    GemmProblem<T> p{};
    p.M = args.group_sizes[g], p.N = O, p.K = I;
    p.a = {static_cast<const T*>(args.x) + row * I, I, 1};
    p.b = weights_of<T>(args.w, args.w_stored, 1, I, args.G * O * I, g * O * I);
    p.c = static_cast<T*>(args.y) + row * O;
    p.c_stride = O;
    problems[g] = p;
    row += p.M;
  }
  gemm(ctx, problems.get(), args.G, args.compute);
}

template <class T>
static void grouped_gradients(const Context& ctx, const GroupedGemmBackwardArgs& args) {
  const int64_t I = args.I, O = args.O;
  // dx of all groups, then dw of all groups: one batch
  Scratch<GemmProblem<T>> problems(2 * args.G);
  int64_t count = 0, row = 0;
  for (int64_t g = 0; args.dx && g < args.G; ++g) {
    GemmProblem<T> p{};
    p.M = args.group_sizes[g], p.N = I, p.K = O;
    p.a = {static_cast<const T*>(args.dy) + row * O, O, 1};
    p.b = weights_of<T>(args.w, args.w_stored, I, 1, args.G * O * I, g * O * I);
    p.c = static_cast<T*>(args.dx) + row * I;
    p.c_stride = I;
    problems[count++] = p;
    row += p.M;
  }
  row = 0;
  for (int64_t g = 0; args.dw && g < args.G; ++g) {
    GemmProblem<T> p{};
    p.M = O, p.N = I, p.K = args.group_sizes[g];
    p.a = {static_cast<const T*>(args.dy) + row * O, 1, O};
    p.b = {static_cast<const T*>(args.x) + row * I, I, 1};
    p.c = static_cast<T*>(args.dw) + g * O * I;
    p.c_stride = I;
    problems[count++] = p;
    row += p.K;
  }
  gemm(ctx, problems.get(), count, args.compute);
}

void grouped_gemm(const Context& ctx, const GroupedGemmArgs& args) {
  check_groups(args.group_sizes, args.G, args.R);
  dispatch_float(args.dtype, [&](auto zero) { grouped_forward<decltype(zero)>(ctx, args); });
}

void grouped_gemm_backward(const Context& ctx, const GroupedGemmBackwardArgs& args) {
  check_groups(args.group_sizes, args.G, args.R);
  dispatch_float(args.dtype, [&](auto zero) { grouped_gradients<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

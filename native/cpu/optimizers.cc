#include "core/optimizers.h"

#include "cpu/batch.h"

namespace st_moe::cpu::ST_MOE_ISA {

// Elements of one tensor; `states` is 0 without the optional state.
template <class Update, int states, class T, class Args>
static void update_elements(const Args& args, const FactorList& factors, int64_t begin, int64_t end) {
  T f[kFactors], *state[kStateSlots<Update>];
  for (int i = 0; i < kFactors; ++i) f[i] = static_cast<T>(factors.value[i]);
  for (int k = 0; k < Update::kState; ++k) state[k] = static_cast<T*>(Update::state(args, k));
  const UpdateOperands operands = operands_of(args);
  T* const p = static_cast<T*>(operands.p);
  const T* const g = static_cast<const T*>(operands.g);
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) {
    T values[kStateSlots<Update>] = {}, value = p[i];
    for (int k = 0; k < states; ++k) values[k] = state[k][i];
    Update::apply(f, value, g[i], values);
    p[i] = value;
    for (int k = 0; k < states; ++k) state[k][i] = values[k];
  }
}

template <class Update, class Args>
static void run_updates(const Context& ctx, const Batch<Args>& batch) {
  for_elements(ctx, batch, [](const Args& args, int64_t begin, int64_t end) {
    if (skips(norm_of(args))) return;
    const FactorList factors = Update::factors(args);
    dispatch_float(args.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (Update::state(args, 0))
        update_elements<Update, Update::kState, T>(args, factors, begin, end);
      else
        update_elements<Update, 0, T>(args, factors, begin, end);
    });
  });
}

#define FACTORS(Name, name, ...)                                  \
  void name(const Context& ctx, const Batch<Name##Args>& batch) { \
    run_updates<Name##Update>(ctx, batch);                        \
  }
#define ST_MOE_OPS "core/ops/optimizers.inc"
#include "core/op_list.inc"

}  // namespace st_moe::cpu::ST_MOE_ISA

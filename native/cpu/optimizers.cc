#include "core/optimizers.h"

#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
struct Factors {
  T value[kFactors];
  explicit Factors(const FactorList& list) {
    for (int i = 0; i < kFactors; ++i) value[i] = static_cast<T>(list.value[i]);
  }
  T operator[](int i) const { return value[i]; }
};

template <template <class, class> class Update, class Args>
static void run_update(const Context& ctx, const Args& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Update<T, Factors<T>> update(args, Factors<T>(factors_of(args)));
    parallel_blocks(ctx, args.size, kElementBlock, [=](int64_t begin, int64_t end) {
      const auto local = update;  // which no store can change
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) local(i);
    });
  });
}

#define ST_MOE_UPDATE(Name, name)                         \
  void name(const Context& ctx, const Name##Args& args) { \
    run_update<Name##Update>(ctx, args);                  \
  }
ST_MOE_OPTIMIZERS(ST_MOE_UPDATE)

}  // namespace st_moe::cpu::ST_MOE_ISA

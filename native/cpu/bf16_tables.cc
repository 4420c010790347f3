#include "core/backend.h"
#include "cpu/bf16_gemm.h"
#include "cpu/isa.h"

namespace st_moe::cpu {
namespace {

template <const OpTable& (*narrower)(), const Bf16Gemm& (*gemm)(), class Args, Op<Args> OpTable::* op>
Status with_bf16(const Context& ctx, const Args& args) {
  return (narrower().*op)({ctx.threads, const_cast<Bf16Gemm*>(&gemm())}, args);
}

// The ops of a narrower instruction set; those whose GEMMs may be in bf16 get its own.
template <const OpTable& (*narrower)(), const Bf16Gemm& (*gemm)()>
OpTable table_with_bf16() {
  OpTable table = narrower();
#define OP(Name, name)                                   \
  {                                                      \
    [[maybe_unused]] constexpr auto op = &OpTable::name; \
    using Args [[maybe_unused]] = Name##Args;
#define COMPUTE() table.*op = with_bf16<narrower, gemm, Args, op>;
#define END }
#include "core/op_list.inc"
  return table;
}

}  // namespace

#define ST_MOE_DEFINE(isa, supported, default_from, narrower)                           \
  namespace isa {                                                                       \
  const Bf16Gemm& bf16_gemm();                                                          \
  const OpTable& op_table() {                                                           \
    static const OpTable table = table_with_bf16<narrower::op_table, isa::bf16_gemm>(); \
    return table;                                                                       \
  }                                                                                     \
  }
ST_MOE_CPU_BF16_ISAS(ST_MOE_DEFINE)

}  // namespace st_moe::cpu

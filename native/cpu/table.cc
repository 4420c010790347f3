#include "cpu/ops.h"

#include <new>

namespace st_moe::cpu::ST_MOE_ISA {

static Status failure(ErrorCode code, const char* text) {
  Status status{code, {}};
  for (size_t i = 0; i + 1 < sizeof status.text && text[i]; ++i) status.text[i] = text[i];
  return status;
}

// Exceptions end here: the table speaks in Status, as a plugin's does.
template <class Args, void (*kernel)(const Context&, const Args&)>
static Status guarded(const Context& ctx, const Args& args) {
  try {
    kernel(ctx, args);
    return Status{ErrorCode::none, {}};
  } catch (const Error& error) {
    return failure(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return failure(ErrorCode::out_of_memory, "not enough memory");
  } catch (...) {
    return failure(ErrorCode::internal, "unexpected exception");
  }
}

const OpTable& op_table() {
  static const OpTable table{
      .fill = guarded<FillArgs, fill>,
      .random = guarded<RandomArgs, random>,
      .convert = guarded<ConvertArgs, convert>,
      .strided_copy = guarded<StridedCopyArgs, strided_copy>,
      .unary = guarded<UnaryArgs, unary>,
      .unary_backward = guarded<UnaryBackwardArgs, unary_backward>,
      .binary = guarded<BinaryArgs, binary>,
      .scale = guarded<ScaleArgs, scale>,
      .reduce = guarded<ReduceArgs, reduce>,
      .sum_squares = guarded<SumSquaresArgs, sum_squares>,
      .matmul = guarded<MatmulArgs, matmul>,
      .linear = guarded<LinearArgs, linear>,
      .linear_backward = guarded<LinearBackwardArgs, linear_backward>,
      .embedding = guarded<EmbeddingArgs, embedding>,
      .embedding_backward = guarded<EmbeddingBackwardArgs, embedding_backward>,
      .rmsnorm = guarded<RmsnormArgs, rmsnorm>,
      .rmsnorm_backward = guarded<RmsnormBackwardArgs, rmsnorm_backward>,
      .layernorm = guarded<LayernormArgs, layernorm>,
      .layernorm_backward = guarded<LayernormBackwardArgs, layernorm_backward>,
      .softmax = guarded<SoftmaxArgs, softmax>,
      .softmax_backward = guarded<SoftmaxBackwardArgs, softmax_backward>,
      .cross_entropy = guarded<CrossEntropyArgs, cross_entropy>,
      .cross_entropy_backward = guarded<CrossEntropyBackwardArgs, cross_entropy_backward>,
      .attention = guarded<AttentionArgs, attention>,
      .attention_backward = guarded<AttentionBackwardArgs, attention_backward>,
      .dropout = guarded<DropoutArgs, dropout>,
      .route = guarded<RouteArgs, route>,
      .route_backward = guarded<RouteBackwardArgs, route_backward>,
      .expert_ffn = guarded<ExpertFfnArgs, expert_ffn>,
      .expert_ffn_backward = guarded<ExpertFfnBackwardArgs, expert_ffn_backward>,
      .dispatch = guarded<DispatchArgs, dispatch>,
      .dispatch_backward = guarded<DispatchBackwardArgs, dispatch_backward>,
      .combine = guarded<CombineArgs, combine>,
      .combine_backward = guarded<CombineBackwardArgs, combine_backward>,
      .topk = guarded<TopkArgs, topk>,
      .topk_backward = guarded<TopkBackwardArgs, topk_backward>,
      .grouped_gemm = guarded<GroupedGemmArgs, grouped_gemm>,
      .grouped_gemm_backward = guarded<GroupedGemmBackwardArgs, grouped_gemm_backward>,
      .adamw = guarded<AdamwArgs, adamw>,
      .sgd = guarded<SgdArgs, sgd>,
  };
  return table;
}

}  // namespace st_moe::cpu::ST_MOE_ISA

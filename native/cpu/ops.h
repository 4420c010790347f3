#pragma once
#include "core/backend.h"

// The ops of this backend, one file each (forward and backward together). They throw Error.
namespace st_moe::cpu::ST_MOE_ISA {

void fill(const Context&, const FillArgs&);
void random(const Context&, const RandomArgs&);
void convert(const Context&, const ConvertArgs&);
void strided_copy(const Context&, const StridedCopyArgs&);
void unary(const Context&, const UnaryArgs&);
void unary_backward(const Context&, const UnaryBackwardArgs&);
void binary(const Context&, const BinaryArgs&);
void scale(const Context&, const ScaleArgs&);
void reduce(const Context&, const ReduceArgs&);
void sum_squares(const Context&, const SumSquaresArgs&);
void matmul(const Context&, const MatmulArgs&);
void linear(const Context&, const LinearArgs&);
void linear_backward(const Context&, const LinearBackwardArgs&);
void embedding(const Context&, const EmbeddingArgs&);
void embedding_backward(const Context&, const EmbeddingBackwardArgs&);
void rmsnorm(const Context&, const RmsnormArgs&);
void rmsnorm_backward(const Context&, const RmsnormBackwardArgs&);
void layernorm(const Context&, const LayernormArgs&);
void layernorm_backward(const Context&, const LayernormBackwardArgs&);
void softmax(const Context&, const SoftmaxArgs&);
void softmax_backward(const Context&, const SoftmaxBackwardArgs&);
void cross_entropy(const Context&, const CrossEntropyArgs&);
void cross_entropy_backward(const Context&, const CrossEntropyBackwardArgs&);
void attention(const Context&, const AttentionArgs&);
void attention_backward(const Context&, const AttentionBackwardArgs&);
void dropout(const Context&, const DropoutArgs&);
void route(const Context&, const RouteArgs&);
void route_backward(const Context&, const RouteBackwardArgs&);
void expert_ffn(const Context&, const ExpertFfnArgs&);
void expert_ffn_backward(const Context&, const ExpertFfnBackwardArgs&);
void dispatch(const Context&, const DispatchArgs&);
void dispatch_backward(const Context&, const DispatchBackwardArgs&);
void combine(const Context&, const CombineArgs&);
void combine_backward(const Context&, const CombineBackwardArgs&);
void topk(const Context&, const TopkArgs&);
void topk_backward(const Context&, const TopkBackwardArgs&);
void grouped_gemm(const Context&, const GroupedGemmArgs&);
void grouped_gemm_backward(const Context&, const GroupedGemmBackwardArgs&);
void adamw(const Context&, const AdamwArgs&);
void sgd(const Context&, const SgdArgs&);

const OpTable& op_table();

}  // namespace st_moe::cpu::ST_MOE_ISA

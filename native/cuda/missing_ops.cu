#include "cuda/ops.h"

// Ops without a file yet. Weak: a definition elsewhere wins.
namespace st_moe::cuda {

[[noreturn]] static void missing(const char* op) {
  fail(ErrorCode::unsupported, "%s is not there on cuda yet", op);
}

__attribute__((weak)) void matmul(const Context&, const MatmulArgs&) {
  missing("matmul");
}
__attribute__((weak)) void linear(const Context&, const LinearArgs&) {
  missing("linear");
}
__attribute__((weak)) void linear_backward(const Context&, const LinearBackwardArgs&) {
  missing("linear_backward");
}
__attribute__((weak)) void embedding(const Context&, const EmbeddingArgs&) {
  missing("embedding");
}
__attribute__((weak)) void embedding_backward(const Context&, const EmbeddingBackwardArgs&) {
  missing("embedding_backward");
}
__attribute__((weak)) void rmsnorm(const Context&, const RmsnormArgs&) {
  missing("rmsnorm");
}
__attribute__((weak)) void rmsnorm_backward(const Context&, const RmsnormBackwardArgs&) {
  missing("rmsnorm_backward");
}
__attribute__((weak)) void layernorm(const Context&, const LayernormArgs&) {
  missing("layernorm");
}
__attribute__((weak)) void layernorm_backward(const Context&, const LayernormBackwardArgs&) {
  missing("layernorm_backward");
}
__attribute__((weak)) void softmax(const Context&, const SoftmaxArgs&) {
  missing("softmax");
}
__attribute__((weak)) void softmax_backward(const Context&, const SoftmaxBackwardArgs&) {
  missing("softmax_backward");
}
__attribute__((weak)) void cross_entropy(const Context&, const CrossEntropyArgs&) {
  missing("cross_entropy");
}
__attribute__((weak)) void cross_entropy_backward(const Context&, const CrossEntropyBackwardArgs&) {
  missing("cross_entropy_backward");
}
__attribute__((weak)) void attention(const Context&, const AttentionArgs&) {
  missing("attention");
}
__attribute__((weak)) void attention_backward(const Context&, const AttentionBackwardArgs&) {
  missing("attention_backward");
}
__attribute__((weak)) void route(const Context&, const RouteArgs&) {
  missing("route");
}
__attribute__((weak)) void route_backward(const Context&, const RouteBackwardArgs&) {
  missing("route_backward");
}
__attribute__((weak)) void expert_ffn(const Context&, const ExpertFfnArgs&) {
  missing("expert_ffn");
}
__attribute__((weak)) void expert_ffn_backward(const Context&, const ExpertFfnBackwardArgs&) {
  missing("expert_ffn_backward");
}
__attribute__((weak)) void dispatch(const Context&, const DispatchArgs&) {
  missing("dispatch");
}
__attribute__((weak)) void dispatch_backward(const Context&, const DispatchBackwardArgs&) {
  missing("dispatch_backward");
}
__attribute__((weak)) void combine(const Context&, const CombineArgs&) {
  missing("combine");
}
__attribute__((weak)) void combine_backward(const Context&, const CombineBackwardArgs&) {
  missing("combine_backward");
}
__attribute__((weak)) void topk(const Context&, const TopkArgs&) {
  missing("topk");
}
__attribute__((weak)) void topk_backward(const Context&, const TopkBackwardArgs&) {
  missing("topk_backward");
}
__attribute__((weak)) void grouped_gemm(const Context&, const GroupedGemmArgs&) {
  missing("grouped_gemm");
}
__attribute__((weak)) void grouped_gemm_backward(const Context&, const GroupedGemmBackwardArgs&) {
  missing("grouped_gemm_backward");
}

}  // namespace st_moe::cuda

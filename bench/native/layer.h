#pragma once
#include "bench.h"

namespace st_moe::bench {

// The layer as the addon runs it: route, experts, and back. Weights as a fresh layer has them, inputs normal.
class Layer {
 public:
  Layer(const Bench& bench, const LayerSizes& sizes, bool with_backward);

  void route(int threads) const;
  void experts(int threads, DType compute, bool save) const;  // save: for a backward
  void experts_backward(int threads, DType compute) const;
  void route_backward(int threads) const;
  void forward(int threads, DType compute, bool save) const { route(threads), experts(threads, compute, save); }
  void backward(int threads, DType compute) const;  // the sum of both gradients of x too
  void change_weights() const;                      // as an optimizer does: what was packed of them is packed anew

  double flops() const;      // of the GEMMs of a forward; a backward has twice as many
  double kept() const;       // share of the assignments
  double occupancy() const;  // share of the slots
  // Of some tokens after a forward, against plain loops in double. Throws if it is more than rounding explains.
  double error(DType compute) const;

  const LayerSizes sizes;
  int64_t row_limit;                 // rows that the backend may compute
  std::vector<int64_t> expert_rows;  // that it does compute, of each expert
  Tensor w1, w2, dw1, dw2, x, dy, y, weight, dweight, dx;
  Tensor expert_index, position;

 private:
  template <class Args>
  void share(Args& args, DType compute) const;
  template <class Args>
  void share_route(Args& args) const;

  const Bench& bench_;
  int64_t kept_ = 0;
  Tensor gate_weight_, b1_, mult_bias_, b2_, threshold_, one_, kept_mask_, gate_, losses_, probs_, logits_, lse_;
  Tensor density_, a_, dx_route_, db1_, dmult_bias_, db2_, dgate_weight_;
};

}  // namespace st_moe::bench

#pragma once
#include "bench.h"

namespace st_moe::bench {

struct LayerSizes {
  int64_t B = 4, N = 1024, D = 512, E = 16, K = 2;

  int64_t H() const { return D * 8 / 3; }
  int64_t capacity() const;  // capacity factor 1.25
  int64_t tokens() const { return B * N; }
};

// The layer as the addon runs it: route, experts, and back. Weights as a fresh layer has them, inputs normal.
class Layer {
 public:
  Layer(const Bench& bench, const LayerSizes& sizes);

  void forward(int threads, DType compute, bool save) const;
  void backward(int threads, DType compute) const;

  // Its expert products alone, on as many rows an expert as the routing keeps; all: those of the backward too.
  void products(int threads, DType compute, bool all) const;
  double flops() const;  // of a forward's products; a backward has twice as many

  double kept() const;                // share of the assignments
  double occupancy() const;           // share of the slots
  double error(DType compute) const;  // of some tokens after a forward, against sums in double

 private:
  const Bench& bench_;
  LayerSizes sizes_;
  int64_t rows_;  // most that can be kept
  Buffer<float> x_, gathered_, gate_weight_, w1_, b1_, mult_bias_, w2_, b2_, dy_, threshold_, one_;
  Buffer<int32_t> expert_index_, kept_, position_;
  Buffer<float> gate_, weight_, losses_, probs_, logits_, lse_, density_;
  Buffer<float> y_, a_, hidden_, dx_, dx_route_, dweight_, dw1_, db1_, dmult_bias_, dw2_, db2_, dgate_weight_;
  std::vector<int64_t> expert_rows_;
};

}  // namespace st_moe::bench

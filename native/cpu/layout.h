#pragma once
#include "core/layout.h"
#include "cpu/kernel.h"

// Strided iteration over N tensors of one layout.
namespace st_moe::cpu::ST_MOE_ISA {

// Walks the first `rank` dimensions of a layout in order, starting at element `index` of them.
template <int N>
class StridedIterator {
 public:
  StridedIterator(const Layout<N>& layout, int rank, int64_t index) : layout_(layout), rank_(rank) {
    for (int d = rank - 1; d >= 0; --d) {
      count_[d] = index % layout.shape[d];
      index /= layout.shape[d];
      for (int t = 0; t < N; ++t) offset[t] += count_[d] * layout.strides[t][d];
    }
  }

  void next() {
    for (int d = rank_ - 1; d >= 0; --d) {
      for (int t = 0; t < N; ++t) offset[t] += layout_.strides[t][d];
      if (++count_[d] < layout_.shape[d]) return;
      for (int t = 0; t < N; ++t) offset[t] -= count_[d] * layout_.strides[t][d];
      count_[d] = 0;
    }
  }

  int64_t offset[N] = {};

 private:
  const Layout<N>& layout_;
  int rank_;
  int64_t count_[kMaxRank];
};

}  // namespace st_moe::cpu::ST_MOE_ISA

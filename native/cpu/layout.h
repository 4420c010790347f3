#pragma once
#include "cpu/kernel.h"

// Iteration over N tensors that share a shape and differ in strides.
namespace st_moe::cpu::ST_MOE_ISA {

template <int N>
struct Layout {
  int rank;
  int64_t shape[kMaxRank];
  int64_t strides[N][kMaxRank];
};

// Drops dimensions of size 1 and joins neighbours that every tensor walks through as one.
template <int N>
static inline void collapse(Layout<N>& layout) {
  int kept = 0;
  for (int d = 0; d < layout.rank; ++d) {
    if (layout.shape[d] == 1) continue;
    bool joins = kept > 0;
    for (int t = 0; t < N && joins; ++t) joins = layout.strides[t][kept - 1] == layout.strides[t][d] * layout.shape[d];
    const int to = joins ? kept - 1 : kept++;
    layout.shape[to] = joins ? layout.shape[to] * layout.shape[d] : layout.shape[d];
    for (int t = 0; t < N; ++t) layout.strides[t][to] = layout.strides[t][d];
  }
  layout.rank = kept;
}

// Walks the first `rank` dimensions of a layout in order, starting at element `index` of them.
template <int N>
class Odometer {
 public:
  Odometer(const Layout<N>& layout, int rank, int64_t index) : layout_(layout), rank_(rank) {
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

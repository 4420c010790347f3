#pragma once
#include <cstdint>

#include "core/backend.h"

// N tensors that share a shape and differ in strides.
namespace st_moe {

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

}  // namespace st_moe

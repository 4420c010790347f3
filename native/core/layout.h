#pragma once
#include <cstdint>

#include "core/ops/creation.h"
#include "core/ops/elementwise.h"

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

// Of an op that walks through tensors of one shape. false: they have no elements.
static inline bool layout_of(const BinaryArgs& args,
                             Layout<3>& layout) {  // strides[0]: y, strides[1]: a, strides[2]: b
  layout.rank = args.rank;
  int64_t y_stride = 1;
  for (int d = args.rank - 1; d >= 0; --d) {
    if (args.shape[d] == 0) return false;
    layout.shape[d] = args.shape[d];
    layout.strides[0][d] = y_stride;
    layout.strides[1][d] = args.a_strides[d];
    layout.strides[2][d] = args.b_strides[d];
    y_stride *= args.shape[d];
  }
  collapse(layout);
  return true;
}

static inline bool layout_of(const StridedCopyArgs& args, Layout<2>& layout) {  // strides[0]: in, strides[1]: out
  layout.rank = args.rank;
  for (int d = 0; d < args.rank; ++d) {
    if (args.shape[d] == 0) return false;
    layout.shape[d] = args.shape[d];
    layout.strides[0][d] = args.in_strides[d];
    layout.strides[1][d] = args.out_strides[d];
  }
  collapse(layout);
  return true;
}

}  // namespace st_moe

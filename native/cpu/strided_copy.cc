#include <cstring>

#include "core/ops/creation.h"
#include "cpu/layout.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

using CopyLayout = Layout<2>;
constexpr int64_t kTile = 32;  // side of the blocks of a transposition

static void swap_dims(CopyLayout& layout, int a, int b) {
  const CopyLayout old = layout;
  layout.shape[a] = old.shape[b];
  layout.shape[b] = old.shape[a];
  for (int t = 0; t < 2; ++t) {
    layout.strides[t][a] = old.strides[t][b];
    layout.strides[t][b] = old.strides[t][a];
  }
}

// Puts the dimension that is densest in out last and, before it, the one that is densest in in.
static void order_dims(CopyLayout& layout) {
  for (int t = 1; t >= 0; --t) {
    const int place = layout.rank - (t == 1 ? 1 : 2);
    int best = place;
    for (int d = place - 1; d >= 0; --d)
      if (layout.strides[t][d] == 1 && layout.strides[t][best] != 1) best = d;
    if (best != place) swap_dims(layout, best, place);
  }
}

// One tile of a plane that is dense by p in in and by q in out. It goes through a buffer, since the lines of either
// side may be a power of two apart and then share a few sets of the cache.
template <class T>
static inline void transpose_tile(const T* in, T* out, int64_t P, int64_t Q, int64_t in_q, int64_t out_p) {
  T tile[kTile][kTile + 1];
  for (int64_t q = 0; q < Q; ++q)
    for (int64_t p = 0; p < P; ++p) tile[p][q] = in[q * in_q + p];
  for (int64_t p = 0; p < P; ++p) std::memcpy(out + p * out_p, tile[p], static_cast<size_t>(Q) * sizeof(T));
}

// in and out [P, Q] by strides
template <class T>
static void copy_plane(const T* in, T* out, int64_t P, int64_t Q, int64_t in_p, int64_t in_q, int64_t out_p,
                       int64_t out_q) {
  if (in_q == 1 && out_q == 1) {
    for (int64_t p = 0; p < P; ++p) std::memcpy(out + p * out_p, in + p * in_p, static_cast<size_t>(Q) * sizeof(T));
  } else if (in_p == 1 && out_q == 1) {
    for (int64_t p = 0; p < P; p += kTile)
      for (int64_t q = 0; q < Q; q += kTile)
        transpose_tile(in + p + q * in_q, out + p * out_p + q, min_of(kTile, P - p), min_of(kTile, Q - q), in_q, out_p);
  } else {
    for (int64_t p = 0; p < P; ++p)
      for (int64_t q = 0; q < Q; ++q) out[p * out_p + q * out_q] = in[p * in_p + q * in_q];
  }
}

template <class T>
static void copy_all(const Context& ctx, const StridedCopyArgs& args, const CopyLayout& layout, int64_t planes) {
  const T* in = static_cast<const T*>(args.in) + args.in_offset;
  T* out = static_cast<T*>(args.out) + args.out_offset;
  const int p = layout.rank - 2, q = layout.rank - 1;
  const int64_t P = layout.shape[p], Q = layout.shape[q];
  const int64_t *from = layout.strides[0], *to = layout.strides[1];
  const int64_t q_block = min_of<int64_t>(Q, 2 * kElementBlock);
  const int64_t p_block = min_of(P, ceil_div(ceil_div(2 * kElementBlock, q_block), kTile) * kTile);
  const int64_t q_blocks = ceil_div(Q, q_block), p_blocks = ceil_div(P, p_block);
  const int64_t planes_block = max_of<int64_t>(1, kElementBlock / (P * Q));
  const auto copy_block = [&](const StridedIterator<2>& at, int64_t p0, int64_t q0) {
    copy_plane(in + at.offset[0] + p0 * from[p] + q0 * from[q], out + at.offset[1] + p0 * to[p] + q0 * to[q],
               min_of(p_block, P - p0), min_of(q_block, Q - q0), from[p], from[q], to[p], to[q]);
  };
  parallel_for(ctx, ceil_div(planes, planes_block) * p_blocks * q_blocks, [&](int64_t task) {
    const int64_t first = task / (p_blocks * q_blocks) * planes_block;
    const int64_t p0 = task / q_blocks % p_blocks * p_block, q0 = task % q_blocks * q_block;
    StridedIterator<2> at(layout, p, first);
    for (int64_t i = first; i < min_of(planes, first + planes_block); ++i, at.next()) copy_block(at, p0, q0);
  });
}

void strided_copy(const Context& ctx, const StridedCopyArgs& args) {
  CopyLayout layout{};
  if (!layout_of(args, layout)) return;
  while (layout.rank < 2) {  // at least a plane, of size 1 if nothing is left
    if (layout.rank == 1) layout.shape[1] = layout.shape[0];
    for (int t = 0; t < 2; ++t) {
      if (layout.rank == 1) layout.strides[t][1] = layout.strides[t][0];
      layout.strides[t][0] = 0;
    }
    layout.shape[0] = 1;
    ++layout.rank;
  }
  order_dims(layout);
  int64_t planes = 1;
  for (int d = 0; d < layout.rank - 2; ++d) planes *= layout.shape[d];
  dispatch_size(args.dtype, [&](auto zero) { copy_all<decltype(zero)>(ctx, args, layout, planes); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

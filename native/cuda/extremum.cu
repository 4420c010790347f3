#include "core/ops/reductions.h"
#include "cuda/rows.cuh"
#include "cuda/selection.cuh"

// A pass finds the first entry of each block of rows of a column, in the order of selection.cuh; passes over the
// entries of the blocks follow until one block is left. The smallest is the largest of the negated values.
namespace st_moe::cuda {

template <class T>
struct Columns {
  const T* x;            // [outer, axis, inner]
  const int32_t* index;  // of each entry; null: its row
  int64_t axis, inner;
  T sign;

  __device__ Entry<T> first(int64_t o, int64_t begin, int64_t end, int64_t step, int64_t column) const {
    Entry<T> best = after_all<T>();
    for (int64_t r = begin; r < end; r += step) {
      const int64_t at = (o * axis + r) * inner + column;
      const Entry<T> entry{sign * x[at], index ? index[at] : static_cast<int32_t>(r)};
      if (before(entry, best)) best = entry;
    }
    return best;
  }
};

template <class T>
struct Firsts {
  T* value;  // [outer, blocks, inner]
  int32_t* index;
  int64_t blocks, rows;  // rows of a block

  __device__ void put(int64_t at, Entry<T> entry, T sign) const {
    value[at] = sign * entry.value;
    index[at] = entry.index;
  }
};

template <class T>
struct FirstOfColumn {
  Columns<T> in;
  Firsts<T> out;

  __device__ void operator()(int64_t i) const {
    const MatrixIndex place = matrix_index(i, in.inner), block = matrix_index(place.row, out.blocks);
    const int64_t begin = block.column * out.rows, end = min_of(in.axis, begin + out.rows);
    out.put(i, in.first(block.row, begin, end, 1, place.column), in.sign);
  }
};

// inner = 1
template <class T>
struct FirstOfRow {
  Columns<T> in;
  Firsts<T> out;

  __device__ void operator()(int64_t i, int lane) const {
    const MatrixIndex block = matrix_index(i, out.blocks);
    const int64_t begin = block.column * out.rows, end = min_of(in.axis, begin + out.rows);
    const Entry<T> entry = warp_first(in.first(block.row, begin + lane, end, kWarp, 0));
    if (lane == 0) out.put(i, entry, in.sign);
  }
};

template <class T>
static void find_first(const Context& ctx, const Columns<T>& in, int64_t outer, T* value, int32_t* index) {
  constexpr int64_t kThreads = int64_t{1} << 17, kLeastRows = 64, kRowOfWarp = 2048;
  const int64_t columns = outer * in.inner;
  const int64_t rows =
      in.inner == 1 ? kRowOfWarp : max_of(kLeastRows, ceil_div(in.axis, max_of(int64_t{1}, kThreads / columns)));
  const int64_t blocks = ceil_div(in.axis, rows);
  const Scratch<T> values(ctx, blocks > 1 ? columns * blocks : 0);
  const Scratch<int32_t> indices(ctx, blocks > 1 ? columns * blocks : 0);
  const Firsts<T> out{blocks > 1 ? values.get() : value, blocks > 1 ? indices.get() : index, blocks, rows};
  if (in.inner == 1) {
    by_warp(ctx, columns * blocks, FirstOfRow<T>{in, out});
  } else {
    elementwise(ctx, columns * blocks, FirstOfColumn<T>{in, out});
  }
  if (blocks > 1)
    find_first(ctx, Columns<T>{values.get(), indices.get(), blocks, in.inner, in.sign}, outer, value, index);
}

void extremum(const Context& ctx, const ExtremumArgs& args) {
  if (args.T == 0 || args.I == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Columns<T> in{static_cast<const T*>(args.x), nullptr, args.A, args.I, static_cast<T>(args.largest ? 1 : -1)};
    find_first(ctx, in, args.T, static_cast<T*>(args.value), args.index);
  });
}

}  // namespace st_moe::cuda

#pragma once
#include "cuda/rows.cuh"
#include "cuda/vector.cuh"

// The work of the blocks of the attention kernels: a tile of rows of one head vs. tiles of rows of the other side.
namespace st_moe::cuda {

constexpr int kSide = 16;   // threads along a side of a tile
constexpr int kSlice = 32;  // elements of a head that are in shared memory at a time
static_assert(kSide * kSide == kBlock);

// 64 × 64 scores in f32, 32 × 32 in f64: shared memory stays under 48 KB. A thread has M × M of them, and M values are
// one access.
template <class T>
struct Tile {
  static constexpr int micro = vector_width<T>;  // M
  static constexpr int size = kSide * micro;
};

// Some rows of one head of one sequence: row i is at data + i · stride.
template <class T>
struct HeadRows {
  const T* data;
  int64_t stride, count;
  int64_t d;

  __device__ HeadRows from(int64_t first) const { return {data + first * stride, stride, count - first, d}; }
};

// Which queries of a tile see which keys of another, by their indices in the tiles. What a row must not see is omitted
// from its sums, not multiplied by 0: a NaN in a key or query never reaches it.
struct Seen {
  int diagonal;       // the last key that query 0 sees
  int queries, keys;  // that exist; the rest of the tiles is zeros

  __device__ bool operator()(int query, int key) const {
    return key <= query + diagonal && query < queries && key < keys;
  }
};

__device__ static inline int clamp_to_tile(int64_t value, int size) {
  return static_cast<int>(value < -size ? -size : value > size ? size : value);
}

struct AttentionShape {
  int64_t B, Nq, Nk, heads, kv_heads, d;
  int64_t width, kv_width;  // row strides of q and y, of k and v
  const int32_t* mask;      // [B, Nk], or null
  int64_t visible;          // keys that query 0 sees
  int64_t group;            // heads that share keys
  Divisor by_group;

  // Keys visible to a query: 0 … seen − 1. Queries that see a key: first_query … Nq − 1, none if it is above.
  __device__ int64_t seen(int64_t query) const { return min_of(visible + query, Nk); }
  __device__ int64_t first_query(int64_t key) const { return key >= visible ? key - visible + 1 : 0; }
  __device__ Seen seen(int64_t first_query, int64_t first_key, int tile) const {
    return {visible < Nk ? clamp_to_tile(visible + first_query - 1 - first_key, tile) : tile,
            clamp_to_tile(Nq - first_query, tile), clamp_to_tile(Nk - first_key, tile)};
  }
  __device__ bool shows(int64_t b, int64_t key) const { return !mask || (key < Nk && mask[b * Nk + key] != 0); }
  // The rows of head h of sequence b, or of head h of its keys.
  __device__ int64_t query_offset(int64_t b, int64_t h) const { return b * Nq * width + h * d; }
  __device__ int64_t key_offset(int64_t b, int64_t h) const { return b * Nk * kv_width + h * d; }

  template <class T>
  __device__ HeadRows<T> queries(const T* x, int64_t b, int64_t h) const {
    return {x + query_offset(b, h), width, Nq, d};
  }
  template <class T>
  __device__ HeadRows<T> keys(const T* x, int64_t b, int64_t h) const {
    return {x + key_offset(b, h), kv_width, Nk, d};
  }
};

// The work of one block: a tile of queries of head h of sequence b, or a part of the keys of one, and a group of
// columns.
struct TileTask {
  int64_t b, h, tile, first_column;
};

// A block of threads per task. Fewer tasks than 2^31: memory does not hold the rows of more.
class TaskGrid {
 public:
  TaskGrid(int64_t sequences, int64_t heads, int64_t tiles, int64_t groups)
      : heads_(heads),
        tiles_(tiles),
        groups_(groups),
        count_(sequences * heads * tiles * groups),
        by_heads_(heads),
        by_tiles_(tiles),
        by_groups_(groups) {}

  unsigned blocks() const { return static_cast<unsigned>(count_); }
  __device__ int64_t tiles() const { return tiles_; }
  // Neighbors share a head. The last tiles of a causal head see the most keys, so they run first.
  __device__ TileTask task(uint32_t i, int group_columns) const {
    const uint32_t tile = by_groups_.quotient(i), head = by_tiles_.quotient(tile);
    const uint32_t b = by_heads_.quotient(head);
    return {b, head - b * heads_, tiles_ - 1 - (tile - head * tiles_), (i - tile * groups_) * group_columns};
  }

 private:
  int64_t heads_, tiles_, groups_, count_;
  Divisor by_heads_, by_tiles_, by_groups_;
};

// ---- on the host

template <class Args>
static AttentionShape attention_shape(const Args& args) {
  return {args.B,
          args.Nq,
          args.Nk,
          args.heads,
          args.kv_heads,
          args.d,
          args.heads * args.d,
          args.kv_heads * args.d,
          args.mask,
          args.visible,
          args.heads / args.kv_heads,
          Divisor(args.heads / args.kv_heads)};
}

static inline int64_t column_groups(const AttentionShape& shape, int columns) {
  return max_of(1, ceil_div(shape.d, columns));
}

// Calls f with the columns of a head per block and the values of a row that a thread takes at once.
template <class T, class F>
static void dispatch_columns(int64_t d, bool aligned, F&& f) {
  dispatch_width<vector_width<T>>(d, aligned, [&](auto n) {
    if (d <= 64) return f(Width<64>{}, n);
    f(Width<128>{}, n);
  });
}

}  // namespace st_moe::cuda

#pragma once
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
  bool causal;

  // Keys visible to a query: 0 … seen − 1. Queries that see a key: first_query … Nq − 1.
  __device__ int64_t seen(int64_t query) const { return causal ? query + Nk - Nq + 1 : Nk; }
  __device__ int64_t first_query(int64_t key) const { return causal && key > Nk - Nq ? key - (Nk - Nq) : 0; }
  __device__ Seen seen(int64_t first_query, int64_t first_key, int tile) const {
    return {causal ? clamp_to_tile(seen(first_query) - 1 - first_key, tile) : tile,
            clamp_to_tile(Nq - first_query, tile), clamp_to_tile(Nk - first_key, tile)};
  }
  __device__ bool shows(int64_t b, int64_t key) const { return !mask || (key < Nk && mask[b * Nk + key] != 0); }
  // Heads of all sequences: b · heads + h, and of the keys b · kv_heads + h / (heads / kv_heads).
  __device__ int64_t kv_head(int64_t head) const { return head / (heads / kv_heads); }
  __device__ int64_t query_offset(int64_t head) const { return head / heads * Nq * width + head % heads * d; }
  __device__ int64_t key_offset(int64_t kv_head) const {
    return kv_head / kv_heads * Nk * kv_width + kv_head % kv_heads * d;
  }

  template <class T>
  __device__ HeadRows<T> queries(const T* x, int64_t head) const {
    return {x + query_offset(head), width, Nq, d};
  }
  template <class T>
  __device__ HeadRows<T> keys(const T* x, int64_t kv_head) const {
    return {x + key_offset(kv_head), kv_width, Nk, d};
  }
};

// The work of one block: a tile of queries of a head, or a part of the keys of one, and a group of columns.
struct TileTask {
  int64_t head, tile, first_column;
};

struct TaskGrid {
  int64_t heads, tiles, groups;

  __host__ __device__ int64_t count() const { return heads * tiles * groups; }
  // Neighbors share a head. The last tiles of a causal head see the most keys, so they run first.
  __device__ TileTask task(int64_t i, int group_columns) const {
    const int64_t group = i % groups, tile = tiles - 1 - i / groups % tiles;
    return {i / groups / tiles, tile, group * group_columns};
  }
};

// ---- on the host

template <class Args>
static AttentionShape attention_shape(const Args& args) {
  const bool causal = args.causal != 0;
  if (causal && args.Nk < args.Nq) {
    fail(ErrorCode::shape, "causal attention needs at least as many keys as queries, got %lld keys and %lld queries",
         static_cast<long long>(args.Nk), static_cast<long long>(args.Nq));
  }
  return {args.B,    args.Nq, args.Nk, args.heads, args.kv_heads, args.d, args.heads * args.d, args.kv_heads * args.d,
          args.mask, causal};
}

static inline TaskGrid attention_grid(const AttentionShape& shape, int64_t heads, int64_t tiles, int group_columns) {
  return {shape.B * heads, tiles, max_of(1, ceil_div(shape.d, group_columns))};
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

#pragma once
#include "cuda/kernel.cuh"

// The work of the blocks of the attention kernels: a tile of rows of one head vs. tiles of rows of the other side.
namespace st_moe::cuda {

constexpr int kSide = 16;   // threads along a side of a tile
constexpr int kSlice = 32;  // elements of a head that are in shared memory at a time
static_assert(kSide * kSide == kBlock);

// 64 × 64 scores in f32, 32 × 32 in f64: shared memory stays under 48 KB.
template <class T>
struct Tile {
  static constexpr int micro = sizeof(T) == 4 ? 4 : 2;  // M
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

struct AttentionShape {
  int64_t B, Nq, Nk, heads, kv_heads, d;
  int64_t width, kv_width;  // row strides of q and y, of k and v
  const int32_t* mask;      // [B, Nk], or null
  bool causal;

  // Keys visible to a query: 0 … seen − 1. Queries that see a key: first_query … Nq − 1.
  __device__ int64_t seen(int64_t query) const { return causal ? query + Nk - Nq + 1 : Nk; }
  __device__ int64_t first_query(int64_t key) const { return causal && key > Nk - Nq ? key - (Nk - Nq) : 0; }
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

// The work of one block: a tile of rows of one head of queries or of keys and a group of output columns.
struct TileTask {
  int64_t head, first_row, first_column;
};

struct TaskGrid {
  int64_t heads, tiles, groups;

  __host__ __device__ int64_t count() const { return heads * tiles * groups; }
  // Neighbors share a head. The last tiles of a causal head have the most keys, so they run first.
  __device__ TileTask task(int64_t i, int tile_rows, int group_columns) const {
    const int64_t group = i % groups, tile = tiles - 1 - i / groups % tiles;
    return {i / groups / tiles, tile * tile_rows, group * group_columns};
  }
};

template <class T, int kSlices>
static TaskGrid grid_of(const AttentionShape& shape, int64_t heads, int64_t rows) {
  const int64_t groups = ceil_div(shape.d, kSlices * kSlice);
  return {shape.B * heads, ceil_div(rows, Tile<T>::size), groups < 1 ? 1 : groups};
}

// The columns of a tile that a row may use. Columns outside are omitted from sums, not multiplied by 0: a NaN in a key
// or query never reaches a row that must not see it.
struct Visible {
  int begin, end;
};

__device__ static inline int clamp_to_tile(int64_t value, int size) {
  return static_cast<int>(value < 0 ? 0 : value > size ? size : value);
}

// Which keys of a tile a row of queries sees. `whole`: the first row, and so each, sees the full tile or all keys.
struct KeysSeen {
  int64_t first_row, first_key;

  template <int M>
  __device__ bool rows(const AttentionShape& shape, int tile, Visible (&visible)[M]) const {
    for (int r = 0; r < M; ++r) {
      const int64_t query = first_row + threadIdx.x / kSide * M + r;
      const int64_t seen = query < shape.Nq ? shape.seen(query) : 0;
      visible[r] = {0, clamp_to_tile(seen - first_key, tile)};
    }
    return !shape.causal || shape.seen(first_row) >= first_key + tile;
  }
};

}  // namespace st_moe::cuda

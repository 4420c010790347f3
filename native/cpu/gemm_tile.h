#pragma once
#include "cpu/simd.h"

// The register tile of the GEMM: C [rows, cols] (+)= A · B over one block of k.
namespace st_moe::cpu::ST_MOE_ISA {

// kStepPacks: of k, between two steps of the prefetches; 60 to 200 cycles.
#if defined(ST_MOE_AMX)
constexpr int kTileRows = 32;  // gemm_amx.h
constexpr int kStepPacks = 16;
#elif defined(__AVX512F__)
constexpr int kTileRows = 14;  // 28 accumulators, 2 vectors of B and the broadcast of A in 32 registers
constexpr int kStepPacks = 8;
#elif defined(__aarch64__)
constexpr int kTileRows = 12;  // 24 accumulators in 32 registers; of 28, Clang moves some in every step of k
constexpr int kStepPacks = 16;
#else
constexpr int kTileRows = 6;  // 12 accumulators in 16 registers
constexpr int kStepPacks = 32;
#endif
constexpr int kTileVectors = 2;
// Of k in a block: a panel of B stays in the L2 cache, or in L1 with AMX, which multiplies faster than L2 delivers.
constexpr int64_t kBlockBytes = kTileRows > 16 ? 1024 : 2048;

template <class T>
struct TileShape {
  static constexpr int64_t block_k = kBlockBytes / static_cast<int64_t>(sizeof(T));  // packs
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int rows = kTileRows, row_width = (kTileRows + lanes - 1) / lanes * lanes;
  static constexpr int cols = kTileVectors * lanes;
  // Panels of A by k alone, or also by row; packs of k in multiples of padded_packs.
#if defined(ST_MOE_AMX)
  static constexpr bool only_by_k = true;
  static constexpr int64_t padded_packs = kStepPacks, k_stride = block_k + lanes;  // whole lines
#else
  static constexpr bool only_by_k = false;
  // Between rows of A by k: no power of two, for the cache's sets; and rows do not reach a new line at the same k.
  static constexpr int64_t padded_packs = 1, k_stride = block_k + lanes + 1;
#endif
  static constexpr int64_t a_panel(bool by_k, int64_t packs) { return by_k ? rows * k_stride : row_width * packs; }
};

// Memory to read soon: runs of `length` bytes. Tiles prefetch it into the L2 cache a few lines at a time while they
// compute, because a burst takes all the buffers through which the operands of the tile come from that cache.
struct Prefetch {
  const char* data = nullptr;
  int64_t runs = 0, length = 0;
  int64_t stride = 0;             // bytes between runs
  const int32_t* rows = nullptr;  // of the runs, or null: 0, 1, …
  int64_t step_lines = 0;         // prefetched by each step
  int64_t run = 0, at = 0;        // the next line

  template <class S>
  static Prefetch of(const S* data, int64_t runs, int64_t length, int64_t stride, const int32_t* rows = nullptr) {
    constexpr int64_t size = sizeof(S);
    return {reinterpret_cast<const char*>(data), runs, length * size, stride * size, rows};
  }
  void spread_over(int64_t steps) { step_lines = ceil_div(runs * (ceil_div(length, kLineBytes) + 1), steps); }
  void step() {
    for (int64_t i = 0; i < step_lines && run < runs; ++i) {
      const char* p = data + (rows ? rows[run] : run) * stride;
      __builtin_prefetch(p + at, 0, 2);
      at += kLineBytes;
      if (at < length) continue;
      __builtin_prefetch(p + length - 1, 0, 2);  // the run need not be aligned
      at = 0, ++run;
    }
  }
};

template <class T>
struct Tile {
  int64_t packs;
  const T* a;  // by k: rows, a_stride apart; by row: packs of k, a_stride apart
  int64_t a_stride;
  const T* b;  // [packs] rows of a whole tile's width, b_stride apart
  int64_t b_stride;
  T* c;
  int64_t c_stride;
  uint16_t* low;  // where C goes, rounded, once its sums are complete: or null, and for whole panels only
  int64_t low_stride;
  const char* next_c;  // rows of C to prefetch
  int64_t next_c_stride, next_c_bytes;
  int64_t rows, cols;  // the part of the tile to write
  const T* bias;       // of these columns, or null
  bool a_by_k, accumulate, stream;
  Prefetch* prefetch;
};

// Prefetches tile.next_c: some rows at each step of k, since a burst would take all the buffers.
template <class T>
struct CPrefetch {
  explicit CPrefetch(const Tile<T>& tile)
      : tile(tile),
        row(tile.stream ? tile.rows : 0),
        step_rows(ceil_div(kStepPacks * tile.rows, max_of<int64_t>(tile.packs, 1))) {}

  void step() {
    for (const int64_t end = min_of(tile.rows, row + step_rows); row < end; ++row) {
      const char* c = tile.next_c + row * tile.next_c_stride;
      for (int64_t j = 0; j < tile.next_c_bytes; j += kLineBytes) __builtin_prefetch(c + j, 1);
      __builtin_prefetch(c + tile.next_c_bytes - 1, 1);  // rows need not be aligned
    }
  }

  const Tile<T>& tile;
  int64_t row;
  const int64_t step_rows;
};

template <class Math>
concept StoresRounded = requires { &Math::store_rounded; };
template <class Math>
concept AddsFromMemory = requires { &Math::add_from; };

// How a tile reads A: packs of k by row; rows by k; or rows by k whose stride is that of packed ones, a constant.
enum class ReadA { by_row, by_k, packed_by_k };

// Computes R rows and writes tile.rows of them.
template <class T, class Math, int R, int NV, ReadA read>
[[gnu::noinline]] static void tile_kernel(const Tile<T>& tile) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int L = S::lanes;
  // Rows per pointer: three, as many as address scaling reaches, or all, if what is added to it is a constant.
  constexpr int kReach = read == ReadA::by_k ? 3 : R, pointers = (R + kReach - 1) / kReach;
  const int64_t row_step = read == ReadA::packed_by_k ? TileShape<T>::k_stride
                           : read == ReadA::by_k      ? tile.a_stride
                                                      : 1;
  const int64_t k_step = read == ReadA::by_row ? tile.a_stride : 1;
  V acc[R][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
  const T *a[pointers], *b = tile.b;
#pragma GCC unroll 16
  for (int i = 0; i < pointers; ++i) a[i] = tile.a + i * kReach * row_step;
  const int64_t b_stride = tile.b_stride;
  const auto multiply = [&]() __attribute__((always_inline)) {
    V bv[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) bv[j] = S::load(b + j * L);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const T* const from = a[i / kReach] + i % kReach * row_step;
      // An operand in memory saves an instruction: a core that executes another hyperthread as well is short of those
      // rather than of multipliers. In half of the rows, since A is then loaded for each vector of B.
      if constexpr (AddsFromMemory<Math>)
        if (read == ReadA::by_k ? i % kReach == 0 : i % 2 == 0) {
#pragma GCC unroll 2
          for (int j = 0; j < NV; ++j) acc[i][j] = Math::add_from(acc[i][j], from, bv[j]);
          continue;
        }
      const V av = Math::broadcast(from);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) acc[i][j] = Math::add(acc[i][j], av, bv[j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < pointers; ++i) a[i] += k_step;
    b += b_stride;
  };
  CPrefetch<T> ahead(tile);
  for (int64_t left = tile.packs; left > 0; left -= kStepPacks) {
    ahead.step();
    tile.prefetch->step();
#if !defined(__clang__)                                    // which then keeps too few sums in registers
    if constexpr (R == kTileRows && NV == kTileVectors) {  // the tile of almost all work
#pragma GCC unroll 4
      for (int64_t k = min_of<int64_t>(left, kStepPacks); k > 0; --k) multiply();
      continue;
    }
#endif
    for (int64_t k = min_of<int64_t>(left, kStepPacks); k > 0; --k) multiply();
  }
  V bias[NV];
  int64_t width[NV];
  for (int j = 0; j < NV; ++j) {
    width[j] = min_of<int64_t>(tile.cols - j * L, L);
    bias[j] = tile.bias ? S::load_first(tile.bias + j * L, width[j]) : V{};
  }
  const auto write_rows = [&, c = tile.c, c_stride = tile.c_stride, rows = tile.rows](auto&& write) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      if (i >= rows) break;
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) write(c + i * c_stride + j * L, acc[i][j] + bias[j], j);
    }
  };
  if constexpr (StoresRounded<Math> && NV == kTileVectors)
    if (tile.low) {
      const bool accumulate = tile.accumulate;
      V first;
      return write_rows([&, low = tile.low, stride = tile.low_stride](T* c, V value, int j) mutable {
        if (accumulate) value += S::load(c);
        if (j == 0) return void(first = value);
        Math::store_rounded(low, first, value);
        low += stride;
      });
    }
  if (tile.cols != NV * L) {
    const bool accumulate = tile.accumulate;
    write_rows([&](T* c, V value, int j) {
      S::store_first(c, accumulate ? value + S::load_first(c, width[j]) : value, width[j]);
    });
  } else if (tile.accumulate) {
    write_rows([](T* c, V value, int) { S::store(c, value + S::load(c)); });
  } else if (tile.stream) {
    write_rows([](T* c, V value, int) { S::stream(c, value); });
  } else {
    write_rows([](T* c, V value, int) { S::store(c, value); });
  }
}

// The smallest kernel that holds the tile.
template <class T, class Math, int NV, int R = kTileRows>
static inline void run_rows(const Tile<T>& tile) {
  if constexpr (R > 2) {
    if (tile.rows <= R - 2) return run_rows<T, Math, NV, R - 2>(tile);
  }
  if (!tile.a_by_k) return tile_kernel<T, Math, R, NV, ReadA::by_row>(tile);
  if constexpr (AddsFromMemory<Math> && R == kTileRows && NV == kTileVectors)
    if (tile.a_stride == TileShape<T>::k_stride) return tile_kernel<T, Math, R, NV, ReadA::packed_by_k>(tile);
  tile_kernel<T, Math, R, NV, ReadA::by_k>(tile);
}

template <class Math, class T>
static inline void run_tile(const Tile<T>& tile) {
  if (tile.cols <= Simd<T>::lanes) return run_rows<T, Math, 1>(tile);
  run_rows<T, Math, kTileVectors>(tile);
}

}  // namespace st_moe::cpu::ST_MOE_ISA

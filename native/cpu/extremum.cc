#include <cmath>

#include "core/ops/reductions.h"
#include "cpu/simd.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

// Whether a comes before an equal b of a lower row: NaN before everything.
template <bool kLargest, class T>
static inline bool precedes(T a, T b) {
  return (kLargest ? a > b : a < b) || (a != a && b == b);
}

// The largest or smallest of x [n], n ≥ 1; NaN if one is.
template <bool kLargest, class T>
static inline T extreme_value(const T* x, int64_t n) {
  using S = Simd<T>;
  T best = x[0];
  int64_t i = 0;
  if (n >= S::lanes) {
    typename S::V most = S::load(x);
    auto numbers = most == most;
    for (; i + S::lanes <= n; i += S::lanes) {
      const typename S::V v = S::load(x + i);
      most = (kLargest ? v > most : v < most) ? v : most;
      numbers &= v == v;
    }
    for (int lane = 0; lane < S::lanes; ++lane) {
      if (!numbers[lane]) return NAN;
      best = precedes<kLargest>(static_cast<T>(most[lane]), best) ? most[lane] : best;
    }
  }
  for (; i < n; ++i) best = precedes<kLargest>(x[i], best) ? x[i] : best;
  return best;
}

// The first entry of x [n] that equals `value`, which is one of them; NaN equals NaN here.
template <class T>
static inline int64_t index_of(const T* x, int64_t n, T value) {
  using S = Simd<T>;
  constexpr int64_t span = 8 * S::lanes;  // compared at once
  const typename S::V wanted = S::set(value);
  int64_t i = 0;
  for (bool found = value != value; !found && i + span <= n;) {
    auto equal = S::load(x + i) == wanted;
    for (int64_t j = S::lanes; j < span; j += S::lanes) equal |= S::load(x + i + j) == wanted;
    for (int lane = 0; lane < S::lanes; ++lane) found |= equal[lane] != 0;
    i += found ? 0 : span;
  }
  while (x[i] != value && (value == value || x[i] == x[i])) ++i;
  return i;
}

// The first entry of x [n], n ≥ 1.
template <bool kLargest, class T>
static int64_t first_entry(const T* x, int64_t n) {
  return index_of(x, n, extreme_value<kLargest>(x, n));
}

// x [T, A]. Splits long rows into blocks.
template <bool kLargest, class T>
static void of_rows(const Context& ctx, const ExtremumArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* value = static_cast<T*>(args.value);
  const int64_t A = args.A, block = 2 * kElementBlock, blocks = ceil_div(A, block);
  const Scratch<int64_t> first(args.T * blocks);  // of each block
  parallel_blocks(ctx, args.T * blocks, max_of<int64_t>(1, kElementBlock / A), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t at = task % blocks * block;
      first[task] = at + first_entry<kLargest>(x + task / blocks * A + at, min_of(block, A - at));
    }
  });
  for (int64_t t = 0; t < args.T; ++t) {
    const T* row = x + t * A;
    int64_t best = first[t * blocks];
    for (int64_t b = 1; b < blocks; ++b)
      if (precedes<kLargest>(row[first[t * blocks + b]], row[best])) best = first[t * blocks + b];
    value[t] = row[best];
    args.index[t] = static_cast<int32_t>(best);
  }
}

constexpr int64_t kColumns = 512;  // that one task compares

// The first entries of the columns of x [rows, n], which starts at row `first` and whose rows are `stride` apart.
template <bool kLargest, class T>
static void of_column_rows(const T* __restrict x, int64_t first, int64_t rows, int64_t stride, int64_t n,
                           T* __restrict value, int32_t* __restrict index) {
  for (int64_t j = 0; j < n; ++j) {
    value[j] = x[j];
    index[j] = static_cast<int32_t>(first);
  }
  for (int64_t r = 1; r < rows; ++r)
    for (int64_t j = 0; j < n; ++j) {
      const T entry = x[r * stride + j];
      const bool better = precedes<kLargest>(entry, value[j]);
      value[j] = better ? entry : value[j];
      index[j] = better ? static_cast<int32_t>(first + r) : index[j];
    }
}

// x [T, A, I]. Splits rows into blocks if columns alone give too few tasks.
template <bool kLargest, class T>
static void of_columns(const Context& ctx, const ExtremumArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* value = static_cast<T*>(args.value);
  const int64_t A = args.A, I = args.I, chunks = ceil_div(I, kColumns);
  const int64_t rows = args.T * chunks >= kRowBlocks ? A : max_of<int64_t>(64, ceil_div(A, kRowBlocks));
  const int64_t blocks = ceil_div(A, rows), partials = blocks > 1 ? args.T * blocks * I : 0;
  const Scratch<T> values(partials);
  const Scratch<int32_t> indices(partials);
  const int64_t tasks = args.T * blocks * chunks, work = rows * min_of(kColumns, I);
  parallel_blocks(ctx, tasks, max_of<int64_t>(1, kElementBlock / work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t column = task % chunks * kColumns, tb = task / chunks, t = tb / blocks, row = tb % blocks * rows;
      const int64_t to = tb * I + column;  // blocks is 1 without partial results
      of_column_rows<kLargest>(x + (t * A + row) * I + column, row, min_of(rows, A - row), I,
                               min_of(kColumns, I - column), (partials ? values.get() : value) + to,
                               (partials ? indices.get() : args.index) + to);
    }
  });
  for (int64_t i = 0; i < (partials ? args.T * I : 0); ++i) {
    const int64_t from = i / I * blocks * I + i % I;
    int64_t best = from;
    for (int64_t b = 1; b < blocks; ++b)
      if (precedes<kLargest>(values[from + b * I], values[best])) best = from + b * I;
    value[i] = values[best];
    args.index[i] = indices[best];
  }
}

void extremum(const Context& ctx, const ExtremumArgs& args) {
  if (args.T == 0 || args.I == 0) return;
  const auto with_order = [&](auto largest) {
    dispatch_float(args.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (args.I == 1) return of_rows<largest.value, T>(ctx, args);
      of_columns<largest.value, T>(ctx, args);
    });
  };
  if (args.largest) return with_order(std::true_type{});
  with_order(std::false_type{});
}

}  // namespace st_moe::cpu::ST_MOE_ISA

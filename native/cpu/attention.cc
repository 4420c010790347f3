#include <cmath>
#include <cstring>

#include "core/ops/attention.h"
#include "core/formulas.h"
#include "cpu/attention_rows.h"
#include "cpu/gemm.h"
#include "cpu/subnormals.h"

// Blocks of query rows attend to all their visible keys. The probabilities of a block are in scratch memory, and the
// backward recomputes them from lse. In a causal block, keys visible to every row use a GEMM; the triangle at the
// diagonal is computed row by row, so that a NaN in a key or query never reaches a row that must not see it, not even
// times 0.
namespace st_moe::cpu::ST_MOE_ISA {

constexpr int64_t kQueryRows = 84;  // whole tiles of 14 and of 6 rows
constexpr int64_t kScoreBytes = int64_t{4} << 20;

template <class T, class Args>
struct AttentionShape {
  int64_t Nq, Nk, heads, group, d;  // group: heads that share the keys of one
  int64_t width, kv_width;          // row strides of q and y, of k and v
  int64_t block_rows, blocks, score_stride;
  const int32_t* mask;  // [B, Nk], or null
  int64_t visible;      // keys that the first query sees
  T factor;

  explicit AttentionShape(const Args& args)
      : Nq(args.Nq),
        Nk(args.Nk),
        heads(args.heads),
        group(args.heads / args.kv_heads),
        d(args.d),
        width(args.heads * args.d),
        kv_width(args.kv_heads * args.d),
        mask(args.mask),
        visible(args.visible),
        factor(static_cast<T>(args.scale)) {
    score_stride = ceil_div(Nk, 16) * 16 + 16;  // not a power of two, which would use few cache sets
    block_rows = kQueryRows;
    while (block_rows > 8 && block_rows * score_stride * static_cast<int64_t>(sizeof(T)) > kScoreBytes) block_rows /= 2;
    blocks = ceil_div(Nq, block_rows);
  }
  int64_t seen(int64_t query) const { return min_of(visible + query, Nk); }
  int64_t query_offset(int64_t b, int64_t h) const { return b * Nq * width + h * d; }
  int64_t key_offset(int64_t b, int64_t h) const { return b * Nk * kv_width + h / group * d; }
  const int32_t* mask_of(int64_t b) const { return mask ? mask + b * Nk : nullptr; }
};

struct QueryBlock {
  int64_t first, rows;
  int64_t shared, keys;  // keys visible to all rows, to any row

  template <class Shape>
  QueryBlock(const Shape& shape, int64_t index)
      : first(index * shape.block_rows),
        rows(min_of(shape.block_rows, shape.Nq - first)),
        shared(shape.seen(first)),
        keys(shape.seen(first + rows - 1)) {}
};

// s [rows, keys] = x [rows, d] · z [keys, d]ᵀ
template <class T, class Shape>
static void block_products(const Shape& shape, const QueryBlock& block, const T* x, const T* z, T* s) {
  GemmProblem<T> p{};
  p.M = block.rows, p.N = block.keys, p.K = shape.d;
  p.a = {x, shape.width, 1};
  p.b = {z, 1, shape.kv_width};
  p.c = s;
  p.c_stride = shape.score_stride;
  gemm_serial(p);
}

// out [rows, d] = s · z over the visible keys of each row
template <class T, class Shape>
static void block_combine(const Shape& shape, const QueryBlock& block, const T* s, const T* z, T* out) {
  GemmProblem<T> p{};
  p.M = block.rows, p.N = shape.d, p.K = block.shared;
  p.a = {s, shape.score_stride, 1};
  p.b = {z, shape.kv_width, 1};
  p.c = out;
  p.c_stride = shape.width;
  gemm_serial(p);
  // Some rows together, as far as all of them see, and then each alone.
  const T* keys = z + block.shared * shape.kv_width;
  const auto add = [&](int64_t row, int64_t rows, int64_t from, int64_t to) {
    const Factors<T> factors{s + row * shape.score_stride + block.shared + from, shape.score_stride, 1};
    add_rows(factors, rows, keys + from * shape.kv_width, shape.kv_width, to - from, out + row * shape.width,
             shape.width, shape.d);
  };
  const auto seen = [&](int64_t row) { return shape.seen(block.first + row) - block.shared; };
  for (int64_t i = 0; i < block.rows; i += kSums) {
    const int64_t rows = min_of(kSums, block.rows - i);
    add(i, rows, 0, seen(i));
    for (int64_t row = i + 1; row < i + rows; ++row) add(row, 1, seen(i), seen(row));
  }
}

// out [keys, d] += sᵀ · x over the rows that see each key
template <class T, class Shape>
static void block_scatter(const Shape& shape, const QueryBlock& block, const T* s, const T* x, T* out) {
  GemmProblem<T> p{};
  p.M = block.shared, p.N = shape.d, p.K = block.rows;
  p.a = {s, 1, shape.score_stride};
  p.b = {x, shape.width, 1};
  p.c = out;
  p.c_stride = shape.kv_width;
  p.accumulate = true;
  gemm_serial(p);
  // Some keys together for the rows that see all of them, and before that each for the rows that do not.
  const auto add = [&](int64_t key, int64_t keys, int64_t from, int64_t to) {
    const Factors<T> factors{s + from * shape.score_stride + key, 1, shape.score_stride};
    add_rows(factors, keys, x + from * shape.width, shape.width, to - from, out + key * shape.kv_width, shape.kv_width,
             shape.d);
  };
  const auto first = [&](int64_t key) { return key - block.shared + 1; };  // row that sees the key
  for (int64_t j = block.shared; j < block.keys; j += kSums) {
    const int64_t keys = min_of(kSums, block.keys - j), last = j + keys - 1;
    for (int64_t key = j; key < last; ++key) add(key, 1, first(key), first(last));
    add(j, keys, first(last), block.rows);
  }
}

// scale_and_max of keys that are not masked; the score of the others becomes −∞.
template <class T>
static T scale_and_max(T* s, int64_t n, T factor, const int32_t* mask) {
  T largest = -INFINITY;
  for (int64_t i = 0; i < n; ++i) {
    s[i] = mask[i] ? s[i] * factor : -static_cast<T>(INFINITY);
    largest = max_of(largest, s[i]);
  }
  return largest;
}

template <class T, class Shape>
static void forward_block(const Shape& shape, const QueryBlock& block, const int32_t* mask, const T* q, const T* k,
                          const T* v, T* y, T* lse, T* s) {
  block_products(shape, block, q, k, s);
  T total[kQueryRows];
  for (int64_t i = 0; i < block.rows; ++i) {
    T* row = s + i * shape.score_stride;
    const int64_t n = shape.seen(block.first + i);
    const T largest = mask ? scale_and_max(row, n, shape.factor, mask) : scale_and_max(row, n, shape.factor);
    const T shift = mask && largest == -static_cast<T>(INFINITY) ? T(0) : largest;  // sees nothing: e^−∞, not e^NaN
    for (int64_t j = 0; j < n; ++j) row[j] = exp_of(row[j] - shift);
    total[i] = sum(row, n);
    lse[i] = n > 0 ? largest + log_of(total[i]) : -INFINITY;
  }
  block_combine(shape, block, s, v, y);
  for (int64_t i = 0; i < block.rows; ++i) {
    const bool sees = shape.seen(block.first + i) > 0 && !(mask && total[i] == 0);
    const T inverse = sees ? T(1) / total[i] : T(0);
    for (int64_t c = 0; c < shape.d; ++c) y[i * shape.width + c] *= inverse;
  }
}

template <class T>
static void attention_forward(const Context& ctx, const AttentionArgs& args) {
  const AttentionShape<T, AttentionArgs> shape(args);
  parallel_for(ctx, args.B * shape.heads * shape.blocks, [&](int64_t task) {
    const WithoutSubnormals without_subnormals;
    const int64_t b = task / shape.blocks / shape.heads, h = task / shape.blocks % shape.heads;
    // the last blocks of a causal head have the most work, so they run first
    const QueryBlock block(shape, shape.blocks - 1 - task % shape.blocks);
    const int64_t rows_at = shape.query_offset(b, h) + block.first * shape.width, keys_at = shape.key_offset(b, h);
    const Scratch<T> s(block.rows * shape.score_stride);
    forward_block(shape, block, shape.mask_of(b), static_cast<const T*>(args.q) + rows_at,
                  static_cast<const T*>(args.k) + keys_at, static_cast<const T*>(args.v) + keys_at,
                  static_cast<T*>(args.y) + rows_at,
                  static_cast<T*>(args.lse) + (b * shape.heads + h) * shape.Nq + block.first, s.get());
  });
}

template <class T>
struct HeadGradients {  // one head of one sequence
  const int32_t* mask;
  const T *dy, *q, *k, *v, *lse;
  T *dq, *dk, *dv;
};

// Σ p and <p, x>
template <class T>
static inline void sum_and_dot(const T* p, const T* x, int64_t n, T* total, T* inner) {
  using S = Simd<T>;
  typename S::V s0{}, s1{}, d0{}, d1{};
  int64_t i = 0;
  for (; i + 2 * S::lanes <= n; i += 2 * S::lanes) {
    const typename S::V first = S::load(p + i), second = S::load(p + i + S::lanes);
    s0 += first, s1 += second;
    d0 += first * S::load(x + i), d1 += second * S::load(x + i + S::lanes);
  }
  T tail = 0, tail_dot = 0;
  for (; i < n; ++i) tail += p[i], tail_dot += p[i] * x[i];
  *total = S::sum(s0 + s1) + tail;
  *inner = S::sum(d0 + d1) + tail_dot;
}

template <class T, class Shape>
static void backward_block(const Shape& shape, const QueryBlock& block, const HeadGradients<T>& head, T* p, T* ds) {
  const int64_t at = block.first * shape.width;
  const T *dy = head.dy + at, *q = head.q + at;
  block_products(shape, block, q, head.k, p);
  block_products(shape, block, dy, head.v, ds);
  for (int64_t i = 0; i < block.rows; ++i) {
    T *p_row = p + i * shape.score_stride, *ds_row = ds + i * shape.score_stride;
    const int64_t n = shape.seen(block.first + i);
    const T lse = head.lse[block.first + i], factor = shape.factor;
    for (int64_t j = 0; j < n; ++j) p_row[j] = exp_of(p_row[j] * factor - lse);
    for (int64_t j = 0; head.mask && j < n; ++j) p_row[j] = head.mask[j] ? p_row[j] : T(0);
    // lse is rounded, and so large that e^−lse loses bits: their sum is 1 only nearly
    T total, inner;
    sum_and_dot(p_row, ds_row, n, &total, &inner);
    const T inverse = total == 0 ? T(0) : T(1) / total, delta = inner * inverse;
    for (int64_t j = 0; j < n; ++j) {
      p_row[j] *= inverse;
      ds_row[j] = p_row[j] * (ds_row[j] - delta) * factor;
    }
  }
  block_combine(shape, block, ds, head.k, head.dq + at);
  block_scatter(shape, block, p, dy, head.dv);
  block_scatter(shape, block, ds, q, head.dk);
}

template <class T>
static void attention_gradients(const Context& ctx, const AttentionBackwardArgs& args) {
  const AttentionShape<T, AttentionBackwardArgs> shape(args);
  parallel_for(ctx, args.B * args.kv_heads, [&](int64_t task) {  // one head of keys, and the queries that share it
    const WithoutSubnormals without_subnormals;
    const int64_t b = task / args.kv_heads, first = task % args.kv_heads * shape.group;
    const int64_t keys_at = shape.key_offset(b, first);
    T *dk = static_cast<T*>(args.dk) + keys_at, *dv = static_cast<T*>(args.dv) + keys_at;
    for (int64_t j = 0; j < shape.Nk; ++j) {
      std::memset(dk + j * shape.kv_width, 0, static_cast<size_t>(shape.d) * sizeof(T));
      std::memset(dv + j * shape.kv_width, 0, static_cast<size_t>(shape.d) * sizeof(T));
    }
    const Scratch<T> p(shape.block_rows * shape.score_stride), ds(shape.block_rows * shape.score_stride);
    for (int64_t h = first; h < first + shape.group; ++h) {
      const int64_t rows_at = shape.query_offset(b, h);
      const HeadGradients<T> head{shape.mask_of(b),
                                  static_cast<const T*>(args.dy) + rows_at,
                                  static_cast<const T*>(args.q) + rows_at,
                                  static_cast<const T*>(args.k) + keys_at,
                                  static_cast<const T*>(args.v) + keys_at,
                                  static_cast<const T*>(args.lse) + (b * shape.heads + h) * shape.Nq,
                                  static_cast<T*>(args.dq) + rows_at,
                                  dk,
                                  dv};
      for (int64_t i = 0; i < shape.blocks; ++i) backward_block(shape, QueryBlock(shape, i), head, p.get(), ds.get());
    }
  });
}

void attention(const Context& ctx, const AttentionArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { attention_forward<decltype(zero)>(ctx, args); });
}

void attention_backward(const Context& ctx, const AttentionBackwardArgs& args) {
  if (args.d == 0 || (args.Nq == 0 && args.Nk == 0)) return;  // nothing to write, however large the other sizes are
  dispatch_float(args.dtype, [&](auto zero) { attention_gradients<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

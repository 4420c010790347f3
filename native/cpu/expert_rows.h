#pragma once
#include "cpu/activation_rows.h"
#include "cpu/plan.h"
#include "cpu/processor.h"
#include "cpu/simd.h"

// Rows are processed in chunks, so that what one step writes is still in the cache for the next and scratch memory
// stays small. The chunks depend on the number of threads, the values do not: the forward computes each row alone, and
// the backward, which adds rows up, never splits an expert.
namespace st_moe::cpu::ST_MOE_ISA {

constexpr int64_t kChunkBytes = 16 << 20;  // activations of a chunk, for each thread
constexpr int64_t kPieceRows = 126;        // whole tiles of 14 and of 6 rows

template <class T>
static int64_t rows_per_chunk(const Context& ctx, int64_t columns, DType compute) {
  const int64_t row_bytes = ActivationRows<T>::stride_of(columns, compute) * static_cast<int64_t>(sizeof(T));
  return max_of(kPieceRows, max_of(1, ctx.threads) * kChunkBytes / max_of<int64_t>(1, row_bytes));
}

// The type of rows that combine_rows adds up: no operands, so f16, whose range is small, would only lose.
static inline DType summed_rows(DType dtype, DType compute) {
  return compute == DType::bf16 ? compute : dtype;
}

// A bias vector of each expert; where there is none, one row of its neutral value for all of them.
template <class T>
class ExpertBias {
 public:
  ExpertBias(const void* values, int64_t width, T neutral)
      : values_(static_cast<const T*>(values)), width_(width), absent_(values ? 0 : width) {
    for (int64_t j = 0; !values && j < width; ++j) absent_[j] = neutral;
  }
  const T* of(int64_t expert) const { return values_ ? values_ + expert * width_ : absent_.get(); }

 private:
  const T* values_;
  int64_t width_;
  Scratch<T> absent_;
};

// Rows [begin, end) of the sorted order, all of one expert.
struct Piece {
  int64_t expert, begin, end;
  int64_t rows() const { return end - begin; }
};

// Experts [first, last) and rows [begin, end) of the sorted order.
struct Span {
  int64_t first_expert, last_expert, begin, end;
  int64_t experts() const { return last_expert - first_expert; }
};

// Whether each thread takes pieces of kPieceRows rows from the first GEMM to the last, instead of all threads one GEMM
// after the other: small weights stay in its L2 cache then, and so does what one step writes for the next. Not worth it
// for experts with a few rows each.
static inline bool in_pieces(const Context& ctx, const Span& span, int64_t weight_bytes) {
  const int64_t rows = span.end - span.begin;
  return rows >= 8 * kPieceRows * ctx.threads && rows >= kSkinnyRows * span.experts() &&
         weight_bytes <= l2_bytes() * 3 / 4;
}

// The rows of experts [first, last) in pieces of kPieceRows. The last one of an expert is longer instead of leaving a
// few rows, which a GEMM would add up in another order.
class Pieces {
 public:
  Pieces(const Assignments& assignments, int64_t first, int64_t last)
      : pieces_(most(assignments.end(last - 1) - assignments.begin(first), last - first)) {
    for (int64_t e = first; e < last; ++e)
      for (int64_t begin = assignments.begin(e), end; begin < assignments.end(e); begin = end) {
        const int64_t left = assignments.end(e) - begin;
        end = begin + (left > kPieceRows + kSkinnyRows ? kPieceRows : left);
        pieces_[count_++] = {e, begin, end};
      }
  }
  static int64_t most(int64_t rows, int64_t experts) { return rows / kPieceRows + experts; }
  int64_t count() const { return count_; }
  const Piece& operator[](int64_t i) const { return pieces_[i]; }

 private:
  Scratch<Piece> pieces_;
  int64_t count_ = 0;
};

// y [T, D] = Σ_k weight_k · (the row of assignment k), weight [T, K] or null; row_of null: row t is token t
template <class T>
static void combine_rows(const Context& ctx, const int32_t* row_of, const ActivationRows<T>& rows, const T* weight,
                         T* y, int64_t tokens, int64_t K, int64_t D) {
  rows.with_read_type([&](auto zero) {
    using S = decltype(zero);
    parallel_blocks(ctx, tokens, rows_per_task(D * (K + 1) * sizeof(T)), [&](int64_t begin, int64_t end) {
      T buffer[kColumnBlock];
      for (int64_t t = begin; t < end; ++t)
        for (int64_t from = 0; from < D; from += rows.block()) {
          const int64_t n = min_of(D - from, rows.block());
          weighted_sum(y + t * D + from, n, K, weight ? weight + t * K : nullptr, [&](int64_t k) -> const S* {
            const int64_t row = row_of ? row_of[t * K + k] : t;
            return row < 0 ? nullptr : rows.template read<S>(row, from, n, buffer);
          });
        }
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

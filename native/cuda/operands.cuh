#pragma once
#include <type_traits>

#include "core/convert.h"
#include "cuda/blas.h"
#include "cuda/rows.cuh"

// Operands of GEMMs: unrounded, or rounded to bf16 or f16. Rounded operands have rows padded with zeros to multiples of
// 64, because tensor cores need aligned rows, unlike sizes such as 1365.
namespace st_moe::cuda {

#include "core/element_types.inc"

template <class O>
constexpr bool is_low_precision = sizeof(typename O::Stored) == 2;

template <class O>
__host__ __device__ static inline int64_t padded(int64_t n) {
  return is_low_precision<O> ? ceil_div(n, kOperandMultiple) * kOperandMultiple : n;
}

// Calls f(T{}, O{}) with the type of the values and of the operands.
template <class F>
void dispatch_operands(DType dtype, DType compute, F&& f) {
  if (dtype == DType::f64 && compute == DType::f64) return f(double{}, F64{});
  if (dtype == DType::f32 && compute == DType::f32) return f(float{}, F32{});
  if (dtype == DType::f32 && compute == DType::bf16) return f(float{}, Bf16{});
  if (dtype == DType::f32 && compute == DType::f16) return f(float{}, F16{});
  fail(ErrorCode::dtype, "GEMMs of %s cannot have operands of %s", dtype_name(dtype), dtype_name(compute));
}

// The source rows of an operand; −1: a row of zeros.
struct SameRow {
  __device__ int64_t operator()(int64_t row) const { return row; }
};
struct PaddedBatch {  // [batch, rows] in [batch, padded]
  int64_t rows, padded;
  __device__ int64_t operator()(int64_t row) const {
    const MatrixIndex at = matrix_index(row, padded);
    return at.column < rows ? at.row * rows + at.column : -1;
  }
};

// to [to_rows, padded columns] = rows of from [.., columns]. An element of the loop is four columns if they are padded.
template <class T, class O, class Rows>
struct FillOperand {
  static constexpr int kRun = is_low_precision<O> ? 4 : 1;
  struct alignas(kRun * sizeof(typename O::Stored)) Run {
    typename O::Stored value[kRun];
  };

  const T* from;
  typename O::Stored* to;
  int64_t to_rows, columns;
  Rows rows;

  int64_t size() const { return to_rows * padded<O>(columns) / kRun; }
  __device__ void operator()(int64_t i) const {
    const MatrixIndex at = matrix_index(i, padded<O>(columns) / kRun);
    const int64_t row = rows(at.row), first = at.column * kRun;
    Run run;
#pragma unroll
    for (int c = 0; c < kRun; ++c)
      run.value[c] = O::store(row >= 0 && first + c < columns ? from[row * columns + first + c] : T(0));
    reinterpret_cast<Run*>(to)[i] = run;
  }
};

// Element loops one after the other.
template <class... Fs>
struct Loops {
  int64_t size() const { return 0; }
  __device__ void operator()(int64_t) const {}
};
template <class F, class... Rest>
struct Loops<F, Rest...> {
  F first;
  int64_t split;
  Loops<Rest...> rest;

  explicit Loops(F f, Rest... others) : first(f), split(f.size()), rest(others...) {}
  int64_t size() const { return split + rest.size(); }
  __device__ void operator()(int64_t i) const {
    if (i < split) {
      first(i);
    } else {
      rest(i - split);
    }
  }
};

// Fills several operands in one launch.
template <class... Fs>
void fill_operands(const Context& ctx, Fs... fills) {
  const Loops<Fs...> loops(fills...);
  elementwise(ctx, loops.size(), loops);
}

// An activation [rows, columns] as an operand: itself, or a rounded copy for one call.
template <class T, class O>
class OperandRows {
 public:
  using Fill = FillOperand<T, O, SameRow>;

  OperandRows(const Context& ctx, const void* x, int64_t rows, int64_t columns)
      : copy_(ctx, is_low_precision<O> ? rows * padded<O>(columns) : 0),
        fill_{static_cast<const T*>(x), copy_.get(), is_low_precision<O> ? rows : 0, columns, {}},
        matrix_{is_low_precision<O> ? copy_.get() : x, rows, padded<O>(columns)} {}

  const Fill& fill() const { return fill_; }
  const Matrix& get() const { return matrix_; }

 private:
  Scratch<typename O::Stored> copy_;
  Fill fill_;
  Matrix matrix_;
};

// A weight [batch, rows, columns] as an operand: itself, or a rounded copy with padded rows and columns. A parameter
// keeps its copy until it changes.
template <class T, class O>
class OperandWeight {
 public:
  using Fill = FillOperand<T, O, PaddedBatch>;

  OperandWeight(const Context& ctx, const void* w, DType compute, int64_t batch, int64_t rows, int64_t columns,
                PackedCopies* copies)
      : ctx_(ctx), copies_(copies), key_{0, compute, batch, rows, columns} {
    const int64_t stored_columns = padded<O>(columns), stored_rows = padded<O>(rows);
    fill_ = {static_cast<const T*>(w), nullptr, 0, columns, {rows, stored_rows}};
    const void* data = w;
    if (is_low_precision<O> && !(data = copies ? copies->find(*copies, key_) : nullptr)) {
      bytes_ = static_cast<size_t>(batch * stored_rows * stored_columns) * sizeof(typename O::Stored);
      data = made_ = bytes_ > 0 ? stream_of(ctx).allocate(bytes_) : nullptr;
      fill_.to = static_cast<typename O::Stored*>(made_);
      fill_.to_rows = batch * stored_rows;
    }
    matrix_ = {data, stored_rows, stored_columns};
  }
  ~OperandWeight() {
    if (made_) stream_of(ctx_).release(made_, bytes_);
  }
  OperandWeight(const OperandWeight&) = delete;
  OperandWeight& operator=(const OperandWeight&) = delete;

  const Fill& fill() const { return fill_; }  // of size 0 if there is nothing to do
  void filled() {                             // fill() has been launched
    if (made_ && copies_ && copies_->keep(*copies_, key_, made_, bytes_)) made_ = nullptr;
  }
  const Matrix& get() const { return matrix_; }

 private:
  const Context& ctx_;
  PackedCopies* copies_;
  PackKey key_;
  Fill fill_{};
  Matrix matrix_{};
  void* made_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace st_moe::cuda

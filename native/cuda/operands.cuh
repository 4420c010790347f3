#pragma once
#include <type_traits>

#include "core/blocks.h"
#include "core/pack.h"
#include "cuda/blas.h"
#include "cuda/row_lanes.cuh"
#include "cuda/rows.cuh"
#include "cuda/vector.cuh"

// Operands of GEMMs: unrounded, or rounded to bf16 or f16. Rounded operands have rows padded with zeros to multiples of
// 64, because tensor cores need aligned rows, unlike sizes such as 1365.
namespace st_moe::cuda {

#include "core/element_types.inc"

template <class O>
using Stored = typename O::Stored;

template <class T>
using Unrounded = std::conditional_t<std::is_same_v<T, double>, F64, F32>;

template <class O>
constexpr bool is_low_precision = sizeof(Stored<O>) == 2;

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
  Divisor by_padded{padded};
  __device__ int64_t operator()(int64_t row) const {
    const int64_t b = by_padded.quotient(row), in_b = row - b * padded;
    return in_b < rows ? b * rows + in_b : -1;
  }
};

template <class O, class T, int N>
__device__ static inline Vector<Stored<O>, N> rounded(const Vector<T, N>& values) {
  Vector<Stored<O>, N> out;
  for (int c = 0; c < N; ++c) out[c] = O::store(values[c]);
  return out;
}

// What an operand is filled from, N values from column j of a row on: values in T, or a weight of any stored type.
template <class T>
struct Values {
  const T* data;
  int64_t columns;

  const void* address() const { return data; }
  template <int N>
  __device__ Vector<T, N> at(int64_t row, int64_t j) const {
    return load<N>(data + row * columns + j);
  }
};
template <class T>
struct WeightValues {
  const void* data;
  DType stored;
  int64_t rows, columns;

  const void* address() const { return data; }
  template <int N>
  __device__ Vector<T, N> at(int64_t row, int64_t j) const {
    const int64_t i = row * columns + j;
    if (stored == DType::bf16) return widened<Bf16, N>(i);
    if (stored == DType::f16) return widened<F16, N>(i);
    if (stored == DType::int8) return of_block<N>(row, j);
    return load<N>(static_cast<const T*>(data) + i);
  }

 private:
  template <class Low, int N>
  __device__ Vector<T, N> widened(int64_t i) const {
    const Vector<uint16_t, N> values = load<N>(static_cast<const uint16_t*>(data) + i);
    Vector<T, N> out;
    for (int c = 0; c < N; ++c) out[c] = Low::load(values[c]);
    return out;
  }
  template <int N>
  __device__ Vector<T, N> of_block(int64_t row, int64_t j) const {  // vectors are aligned, so they are in one block
    const auto* q = static_cast<const int8_t*>(data);
    const auto* scales = reinterpret_cast<const uint16_t*>(q + scales_at(rows * columns));
    const float scale = f16_to_float(scales[row * blocks_of(columns) + j / kBlockElements]);
    const Vector<int8_t, N> levels = load<N>(q + row * columns + j);
    Vector<T, N> out;
    for (int c = 0; c < N; ++c) out[c] = static_cast<float>(levels[c]) * scale;
    return out;
  }
};

// to [to_rows, padded columns] = rows of from [.., columns]
template <class T, class O, class Rows, class From>
struct FillOperand {
  static constexpr int kWidth = vector_width<Stored<O>>;

  From from;
  Stored<O>* to;
  int64_t to_rows, columns;
  Rows rows;

  bool vectors() const { return columns % kWidth == 0 && aligned(from.address(), to); }
  template <int N, class Lanes>
  __device__ void fill(int64_t to_row, Lanes lanes) const {
    const int64_t row = rows(to_row), width = padded<O>(columns);
    write_row<N>(to + to_row * width, width, lanes, [&](int64_t j) {
      Vector<T, N> values{};
      if (row >= 0 && j < columns) values = from.template at<N>(row, j);
      return rounded<O>(values);
    });
  }
};

// Fills one after the other.
template <class... Fs>
struct Fills {
  int64_t rows() const { return 0; }
  int64_t width() const { return 0; }
  template <class Lanes>
  __device__ void operator()(int64_t, Lanes) const {}
};
template <class F, class... Rest>
struct Fills<F, Rest...> {
  F first;
  bool vectors;
  Fills<Rest...> rest;

  explicit Fills(F f, Rest... others) : first(f), vectors(f.vectors()), rest(others...) {}
  int64_t rows() const { return first.to_rows + rest.rows(); }
  int64_t width() const { return max_of(first.to_rows > 0 ? first.columns : 0, rest.width()); }
  template <class Lanes>
  __device__ void operator()(int64_t row, Lanes lanes) const {
    if (row >= first.to_rows) {
      rest(row - first.to_rows, lanes);
    } else if (vectors) {
      first.template fill<F::kWidth>(row, lanes);
    } else {
      first.template fill<1>(row, lanes);
    }
  }
};

// Fills several operands in one launch.
template <class... Fs>
void fill_operands(const Context& ctx, Fs... fills) {
  const Fills<Fs...> all(fills...);
  for_rows(ctx, all.rows(), all.width(), all);
}

// An activation [rows, columns] as an operand: itself, or a rounded copy for one call.
template <class T, class O>
class OperandRows {
 public:
  using Fill = FillOperand<T, O, SameRow, Values<T>>;

  OperandRows(const Context& ctx, const void* x, int64_t rows, int64_t columns)
      : copy_(ctx, is_low_precision<O> ? rows * padded<O>(columns) : 0),
        fill_{{static_cast<const T*>(x), columns}, copy_.get(), is_low_precision<O> ? rows : 0, columns, {}},
        matrix_{is_low_precision<O> ? copy_.get() : x, rows, padded<O>(columns)} {}

  const Fill& fill() const { return fill_; }
  const Matrix& get() const { return matrix_; }

 private:
  Scratch<Stored<O>> copy_;
  Fill fill_;
  Matrix matrix_;
};

// The copy that OperandWeight keeps, for an op that changes the weight and the copy together.
class KeptCopy {
 public:
  struct Place {
    int64_t row, column;
  };

  // The copy that a change of the weight outdates; null if there is none.
  static PackedCopy* of(PackedCopies* copies) {
    PackedCopy* list = nullptr;
    const size_t count = copies ? copies->list(*copies, &list) : 0;
    for (size_t i = 0; i < count; ++i)
      if (list[i].outdated) return list + i;
    return nullptr;
  }

  KeptCopy() = default;
  explicit KeptCopy(const PackedCopy& copy)
      : to_(static_cast<uint16_t*>(copy.data)),
        is_f16_(copy.key.dtype == DType::f16),
        rows_(copy.key.rows),
        columns_(copy.key.columns),
        stored_rows_(padded<Bf16>(rows_)),
        stored_columns_(padded<Bf16>(columns_)),
        by_rows_(rows_),
        by_columns_(columns_) {}

  // Whether values are side by side N at a time.
  bool has_vectors(int N) const { return columns_ % N == 0; }
  __device__ Place place(int64_t i) const { return {i / columns_, i % columns_}; }
  // The values from `offset` on after a place, below 2^31 − columns.
  template <int N>
  __device__ void write(Place from, int64_t offset, const Vector<float, N>& values) const {
    const int64_t column = from.column + offset, rows_on = by_columns_.quotient(static_cast<uint32_t>(column));
    const int64_t row = from.row + rows_on, batch = by_rows_.quotient(static_cast<uint32_t>(row));
    uint16_t* to = to_ + (batch * stored_rows_ + row - batch * rows_) * stored_columns_ + column - rows_on * columns_;
    store(to, is_f16_ ? rounded<F16>(values) : rounded<Bf16>(values));
  }

 private:
  uint16_t* to_ = nullptr;
  bool is_f16_ = false;
  int64_t rows_ = 0, columns_ = 0, stored_rows_ = 0, stored_columns_ = 0;
  Divisor by_rows_, by_columns_;
};

// A weight [batch, parts · rows, columns] as an operand: itself, or a copy in the operand's type, of which each part
// has padded rows and columns. A parameter keeps its copy until it changes.
template <class T, class O>
class OperandWeight {
 public:
  using Fill = FillOperand<T, O, PaddedBatch, WeightValues<T>>;

  OperandWeight(const Context& ctx, const void* w, DType stored, DType compute, int64_t batch, int64_t rows,
                int64_t columns, PackedCopies* copies, int64_t parts = 1)
      : ctx_(ctx), copies_(copies), key_{0, compute, batch * parts, rows, columns} {
    const int64_t stored_columns = padded<O>(columns), stored_rows = padded<O>(rows);
    const int64_t all_rows = batch * parts * stored_rows;
    const bool is_operand = dtype_size(stored) == 2
                                ? stored == compute && stored_rows == rows && stored_columns == columns
                                : !is_low_precision<O> && !is_blocked(stored);
    fill_ = {{w, stored, batch * parts * rows, columns}, nullptr, 0, columns, {rows, stored_rows}};
    if (all_rows > INT32_MAX) fail(ErrorCode::shape, "a weight has too many rows");
    const void* data = w;
    if (!is_operand && !(data = copies ? copies->find(*copies, key_) : nullptr)) {
      bytes_ = static_cast<size_t>(all_rows * stored_columns) * sizeof(Stored<O>);
      data = made_ = bytes_ > 0 ? stream_of(ctx).allocate(bytes_) : nullptr;
      fill_.to = static_cast<Stored<O>*>(made_);
      fill_.to_rows = all_rows;
    }
    matrix_ = {data, parts * stored_rows, stored_columns};
  }
  ~OperandWeight() {
    if (made_) stream_of(ctx_).release(made_);
  }
  OperandWeight(const OperandWeight&) = delete;
  OperandWeight& operator=(const OperandWeight&) = delete;

  const Fill& fill() const { return fill_; }  // without rows if there is nothing to do
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

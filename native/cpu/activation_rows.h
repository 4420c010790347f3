#pragma once
#include <cstring>

#include "cpu/gemm.h"

// Rows between two GEMMs of the experts (pre-activations, hidden rows, outputs, and gradients of these), in the type of
// the GEMMs' operands, which halves them if that is bf16 or f16. What is computed of them is computed in T.
namespace st_moe::cpu::ST_MOE_ISA {

constexpr int64_t kColumnBlock = 256;  // columns of a row that are converted at a time: they stay in the L1 cache

template <class T>
class ActivationRows {
 public:
  // `stride` elements of T apart.
  ActivationRows(const Context& ctx, void* data, int64_t columns, int64_t stride, DType compute = dtype_of<T>)
      : data_(static_cast<char*>(data)),
        columns_(columns),
        low_(low_precision(ctx, compute)),
        type_(low_ ? compute : dtype_of<T>),
        bf16_(compute == DType::bf16),
        stride_(low_ ? 2 * stride : stride) {}
  ActivationRows(const Context& ctx, const Scratch<T>& memory, int64_t columns, DType compute)
      : ActivationRows(ctx, memory.get(), columns, stride_of(columns, compute), compute) {}

  // Elements of T that a row takes in scratch memory. Low-precision rows are padded, not to a power of two.
  static int64_t stride_of(int64_t columns, DType compute) {
    if (dtype_size(compute) != 2) return columns;
    return (ceil_div(columns, kLowPadding) | 1) * kLowPadding / 2;
  }

  // Columns that load() and place() may be asked for at a time.
  int64_t block() const { return low_ ? kColumnBlock : max_of<int64_t>(1, columns_); }
  ActivationRows from(int64_t r) const {
    ActivationRows rows = *this;
    rows.data_ = at(r, 0);
    return rows;
  }

  // Operands of a GEMM from row r on: the rows themselves, or their transpose; and its result.
  MatrixView<T> rows(int64_t r) const { return {as<T>(at(r, 0)), stride_, 1, nullptr, type_}; }
  MatrixView<T> transposed(int64_t r) const { return {as<T>(at(r, 0)), 1, stride_, nullptr, type_}; }
  void take_result(GemmProblem<T>& p, int64_t r) const {
    p.c = as<T>(at(r, 0)), p.c_stride = stride_, p.low_c = low_ != nullptr;
  }

  // n elements of a row: in place, or converted in the buffer.
  const T* load(int64_t r, int64_t first, int64_t n, T* buffer) const {
    if constexpr (std::is_same_v<T, float>)
      if (low_) return low_->widen(as<uint16_t>(at(r, first)), buffer, n), buffer;
    return as<T>(at(r, first));
  }
  // f(S()), where read() gives elements of S: the bits of bf16 as they are, everything else as load() does. Only where
  // bf16 is a fast type: the loops that read it are many.
  template <class F>
  void with_read_type(F&& f) const {
#if defined(__AVX512F__) || defined(__aarch64__)
    if constexpr (std::is_same_v<T, float>)
      if (bf16_) return f(uint16_t());
#endif
    f(T());
  }
  template <class S>
  const S* read(int64_t r, int64_t first, int64_t n, T* buffer) const {
    if constexpr (std::is_same_v<S, T>)
      return load(r, first, n, buffer);
    else
      return as<S>(at(r, first));
  }
  // Into the caches, if the row is one of `rows`: the parts of rows that load() reads next need not follow each other.
  void prefetch(int64_t r, int64_t rows, int64_t first, int64_t n) const {
    if (r >= rows) return;
    const char *begin = at(r, first), *end = at(r, first + n);
    for (begin -= reinterpret_cast<uintptr_t>(begin) % kLineBytes; begin < end; begin += kLineBytes)
      __builtin_prefetch(begin);
  }
  // Where to compute elements before they are stored.
  T* place(int64_t r, int64_t first, T* buffer) const { return low_ ? buffer : as<T>(at(r, first)); }
  // Nothing to do if they were computed in place. The last columns bring the padding.
  void store(int64_t r, int64_t first, int64_t n, const T* from) const {
    if constexpr (std::is_same_v<T, float>)
      if (low_) {
        uint16_t* to = as<uint16_t>(at(r, first));
        low_->round(from, to, n);
        if (first + n == columns_) memset(to + n, 0, static_cast<size_t>(stride_ - columns_) * sizeof *to);
        return;
      }
    T* to = as<T>(at(r, first));
    if (from != to && n > 0) memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
  }

 private:
  template <class S>
  static S* as(char* p) {
    return reinterpret_cast<S*>(p);
  }
  char* at(int64_t r, int64_t first) const {
    return data_ + (r * stride_ + first) * static_cast<int64_t>(low_ ? sizeof(uint16_t) : sizeof(T));
  }

  char* data_;
  int64_t columns_;
  const LowPrecision* low_;
  DType type_;
  bool bf16_;
  int64_t stride_;  // elements as they are stored
};

}  // namespace st_moe::cpu::ST_MOE_ISA

#pragma once
#include "core/convert.h"
#include "cpu/kernel.h"

// Pre-activations as expert_ffn saves them for its backward: in the type of the GEMMs' operands, which halves them if
// that is bf16 or f16. The forward itself goes on with what it has computed, so it is the same whether it saves or not.
namespace st_moe::cpu::ST_MOE_ISA {

#include "core/element_types.inc"

template <class T>
class SavedRows {
 public:
  // `columns` elements of T a row.
  SavedRows(void* data, int64_t columns, DType compute)
      : data_(static_cast<T*>(data)), columns_(columns), compute_(compute) {}

  bool low_precision() const { return dtype_size(compute_) < sizeof(T); }
  T* row(int64_t r) const { return data_ + r * columns_; }

  void store(const T* from, int64_t r, int64_t n) const {
    const auto as = [&](auto type) {
      auto* to = reinterpret_cast<typename decltype(type)::Stored*>(row(r));
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) to[j] = decltype(type)::store(from[j]);
    };
    compute_ == DType::bf16 ? as(Bf16{}) : as(F16{});
  }

  // Elements first … first + n of a row: in place, or converted in the buffer.
  const T* load(int64_t r, int64_t first, int64_t n, T* buffer) const {
    if (!low_precision()) return row(r) + first;
    const auto as = [&](auto type) {
      const auto* from = reinterpret_cast<const typename decltype(type)::Stored*>(row(r)) + first;
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) buffer[j] = decltype(type)::load(from[j]);
    };
    compute_ == DType::bf16 ? as(Bf16{}) : as(F16{});
    return buffer;
  }

 private:
  T* data_;
  int64_t columns_;
  DType compute_;
};

}  // namespace st_moe::cpu::ST_MOE_ISA

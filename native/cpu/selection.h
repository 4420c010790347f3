#pragma once
#include "cpu/kernel.h"

// The K largest of a row, sorted by a total order, so that a selection never has duplicates: NaN before everything,
// then larger values, then lower indices.
namespace st_moe::cpu::ST_MOE_ISA {

// By a heap. In topk.cc.
template <class T>
void select_many(const T* x, int64_t E, int64_t K, T* value, int32_t* index);

// The first K of x [E]. Few are inserted in their places; of equal entries the later one stays behind.
template <class T>
static inline void select_row(const T* x, int64_t E, int64_t K, T* value, int32_t* index) {
  constexpr int64_t few = 16;
  if (K > few) return select_many(x, E, K, value, index);
  const auto is_before = [](T later, T earlier) { return later > earlier || (later != later && earlier == earlier); };
  const auto insert = [=](int64_t e, int64_t k) {
    for (; k > 0 && is_before(x[e], value[k - 1]); --k) {
      value[k] = value[k - 1];
      index[k] = index[k - 1];
    }
    value[k] = x[e];
    index[k] = static_cast<int32_t>(e);
  };
  for (int64_t e = 0; e < K; ++e) insert(e, e);
  for (int64_t e = K; e < E; ++e)
    if (!(x[e] <= value[K - 1]) && is_before(x[e], value[K - 1])) insert(e, K - 1);
}

}  // namespace st_moe::cpu::ST_MOE_ISA

#pragma once
#include "cpu/kernel.h"

namespace st_moe::cpu::ST_MOE_ISA {

// The K largest of x [E], sorted: NaN before everything, then larger values, then lower indices. In topk.cc.
template <class T>
void select_row(const T* x, int64_t E, int64_t K, T* value, int32_t* index);

}  // namespace st_moe::cpu::ST_MOE_ISA

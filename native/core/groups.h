#pragma once
#include "core/error.h"

namespace st_moe {

// Sizes of G groups with R rows together; null if only the device knows them.
static inline void check_groups(const int32_t* sizes, int64_t G, int64_t R) {
  int64_t sum = 0;
  for (int64_t g = 0; sizes && g < G; ++g) {
    if (sizes[g] < 0)
      fail(ErrorCode::shape, "group sizes must not be negative, got %d for group %lld", sizes[g],
           static_cast<long long>(g));
    sum += sizes[g];
  }
  if ((sizes || G == 0) && sum != R)
    fail(ErrorCode::shape, "group sizes must sum to the %lld rows of x, got %lld", static_cast<long long>(R),
         static_cast<long long>(sum));
}

}  // namespace st_moe

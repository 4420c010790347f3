#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace st_moe::test {

// By how much the limit of a dot product of length K grows. Two orders of addition differ by about √K roundings if the
// terms have random signs: the sums grow like √k, and each addition rounds what there is by then, so that the
// errors, which are random too, are K roundings vs. a sum of √K. cuBLAS promises no order; one FMA after the other
// is the worst, and there a fixed limit fails by chance from some K on.
inline double sum_slack(int64_t K) {
  return std::max(1.0, std::sqrt(static_cast<double>(K)) / 8);
}

}  // namespace st_moe::test

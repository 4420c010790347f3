#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace st_moe::test {

using Sizes = std::vector<int64_t>;

// Around the widths of vectors and warps, and of the blocks that threads take.
const int64_t kSizes[] = {0, 1, 2, 3, 5, 31, 64, 100, 1027, 16384, 16385, 70001};

inline Sizes contiguous(const Sizes& shape) {
  Sizes strides(shape.size());
  int64_t size = 1;
  for (size_t d = shape.size(); d-- > 0; size *= shape[d]) strides[d] = size;
  return strides;
}

// The offsets of each element of `shape` in two tensors.
using Walk = std::pair<int64_t, int64_t>;
inline std::vector<Walk> walk(int32_t rank, const int64_t* shape, const int64_t* a, const int64_t* b) {
  std::vector<Walk> offsets{{0, 0}};
  for (int32_t d = 0; d < rank; ++d) {
    std::vector<Walk> inner;
    for (const Walk& at : offsets)
      for (int64_t i = 0; i < shape[d]; ++i) inner.emplace_back(at.first + i * a[d], at.second + i * b[d]);
    offsets = std::move(inner);
  }
  return offsets;
}

}  // namespace st_moe::test

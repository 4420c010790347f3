#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "core/context.h"

namespace st_moe {

// The dimensions of a tensor, or their strides. Stored inline: creating and copying one does not allocate.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    for (int64_t n : dims) push_back(n);
  }
  Shape(size_t rank, int64_t value) {
    while (rank_ < rank) push_back(value);
  }

  void push_back(int64_t n) {  // throws Error(shape)
    if (rank_ == kMaxRank) fail(ErrorCode::shape, "a shape has at most %d dimensions", kMaxRank);
    dims_[rank_++] = n;
  }

  size_t size() const { return rank_; }
  bool empty() const { return rank_ == 0; }
  int64_t& operator[](size_t i) { return dims_[i]; }
  int64_t operator[](size_t i) const { return dims_[i]; }
  const int64_t* begin() const { return dims_; }
  const int64_t* end() const { return dims_ + rank_; }
  bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

 private:
  size_t rank_ = 0;
  int64_t dims_[kMaxRank] = {};
};

}  // namespace st_moe

#pragma once
#include "cpu/kernel.h"

namespace st_moe::cpu::ST_MOE_ISA {

// The elements of all items of a batch in blocks, which are one job: small tensors keep all threads busy. The blocks do
// not depend on threads.
template <class Args>
class BatchBlocks {
 public:
  BatchBlocks(const Batch<Args>& batch, int64_t block) : batch_(batch), block_(block), ends_(batch.count) {
    for (int64_t i = 0; i < batch.count; ++i) ends_[i] = first(i) + ceil_div(batch.items[i].size, block);
  }

  int64_t first(int64_t item) const { return item ? ends_[item - 1] : 0; }
  int64_t count() const { return first(batch_.count); }

  // f(item, block, begin, end)
  template <class F>
  void parallel(const Context& ctx, F&& f) const {
    parallel_for(ctx, count(), [&](int64_t block) {
      const int64_t item = item_of(block), begin = (block - first(item)) * block_;
      f(item, block, begin, min_of(batch_.items[item].size, begin + block_));
    });
  }

 private:
  // The first that ends after the block.
  int64_t item_of(int64_t block) const {
    int64_t low = 0, high = batch_.count - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (ends_[middle] > block)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }

  const Batch<Args>& batch_;
  int64_t block_;
  Scratch<int64_t> ends_;
};

}  // namespace st_moe::cpu::ST_MOE_ISA

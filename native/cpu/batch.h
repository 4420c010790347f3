#pragma once
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

// The elements of all items of a batch in blocks, which are one job: small tensors keep all threads busy. The blocks do
// not depend on threads. `ends` has room for a number per item.
template <class Args>
class BatchBlocks {
 public:
  BatchBlocks(const Batch<Args>& batch, int64_t block, int64_t* ends) : batch_(batch), block_(block), ends_(ends) {
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
  int64_t* ends_;
};

// Calls f(args, begin, end) for the elements of all items. It takes no memory, so it cannot fail.
template <class Args, class F>
void for_elements(const Context& ctx, const Batch<Args>& batch, F&& f) {
  constexpr int64_t most = 256;
  int64_t ends[most];
  for (int64_t first = 0; first < batch.count; first += most) {
    const Batch<Args> part{batch.items + first, min_of(most, batch.count - first)};
    BatchBlocks(part, kElementBlock, ends).parallel(ctx, [&](int64_t i, int64_t, int64_t begin, int64_t end) {
      f(part.items[i], begin, end);
    });
  }
}

}  // namespace st_moe::cpu::ST_MOE_ISA

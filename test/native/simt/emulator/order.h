#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace simt {

// Which thread or block comes when: as SIMT_ORDER says.
class Order {
 public:
  Order() {
    const char* wanted = std::getenv("SIMT_ORDER");
    if (wanted && std::strcmp(wanted, "rev") == 0) kind_ = kReverse;
    if (wanted && std::strncmp(wanted, "rand", 4) == 0) {
      kind_ = kRandom;
      state_ = wanted[4] == ':' ? std::strtoull(wanted + 5, nullptr, 10) * 2 + 1 : 1;
    }
  }

  void arrange(int* items, int count) {
    if (kind_ == kReverse)
      for (int i = 0; i < count / 2; ++i) std::swap(items[i], items[count - 1 - i]);
    if (kind_ == kRandom)
      for (int i = count - 1; i > 0; --i) std::swap(items[i], items[draw(static_cast<uint64_t>(i) + 1)]);
  }

  // A bijection of [0, count): step i of a loop over the blocks of a grid.
  uint64_t permute(uint64_t i, uint64_t count, uint64_t offset) const {
    if (kind_ == kReverse) return count - 1 - i;
    return kind_ == kRandom ? (i + offset) % count : i;
  }

  uint64_t draw(uint64_t below) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 33) % below;
  }

 private:
  enum { kForward, kReverse, kRandom } kind_ = kForward;
  uint64_t state_ = 1;
};

}  // namespace simt

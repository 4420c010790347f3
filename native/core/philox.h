#pragma once
#include <cstdint>

#include "core/qualifiers.h"

namespace st_moe {

// Philox 4x32-10 of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC11).
// Key: the seed. Counter: (block index, step). Sampling n numbers uses one step; element i depends only on
// (seed, step, i), so every backend samples the same bits on any number of threads.
struct PhiloxBlock {
  uint32_t word[4];
};

ST_MOE_HOST_DEVICE static inline PhiloxBlock philox(uint64_t seed, uint64_t step, uint64_t block) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(step), c3 = static_cast<uint32_t>(step >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Word i of a sample, four words per block.
ST_MOE_HOST_DEVICE static inline uint32_t philox_word(uint64_t seed, uint64_t step, uint64_t i) {
  return philox(seed, step, i >> 2).word[i & 3];
}

// Uniform on [0, 1) with 24 bits: exact in float32, so float32 and float64 layers route alike.
ST_MOE_HOST_DEVICE static inline float uniform24(uint32_t word) {
  return static_cast<float>(word >> 8) * 0x1p-24f;
}

// Uniform on [0, 1) with 53 bits.
ST_MOE_HOST_DEVICE static inline double uniform53(uint32_t high, uint32_t low) {
  const uint64_t bits = (static_cast<uint64_t>(high) << 32 | low) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace st_moe

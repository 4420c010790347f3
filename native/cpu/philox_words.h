#pragma once
#include <cstring>

#include "core/philox.h"
#include "cpu/kernel.h"

namespace st_moe::cpu::ST_MOE_ISA {

constexpr int64_t kPhiloxBlocks = 32;
constexpr int64_t kPhiloxWords = 4 * kPhiloxBlocks;

// Words 4·block … 4·block + kPhiloxWords − 1 of a sample. Long vectors compute adjacent blocks in lanes; with 16 bytes
// scalar multiplication is faster.
static inline void philox_words(uint64_t seed, uint64_t step, uint64_t block, uint32_t* __restrict words) {
  if constexpr (kVectorBytes >= 32) {
    uint32_t lane[4][kPhiloxBlocks];
    for (int64_t i = 0; i < kPhiloxBlocks; ++i) {
      const PhiloxBlock b = philox(seed, step, block + static_cast<uint64_t>(i));
      for (int w = 0; w < 4; ++w) lane[w][i] = b.word[w];
    }
    for (int64_t i = 0; i < kPhiloxBlocks; ++i)
      for (int64_t w = 0; w < 4; ++w) words[4 * i + w] = lane[w][i];
  } else {
    for (int64_t i = 0; i < kPhiloxBlocks; ++i) {
      const PhiloxBlock b = philox(seed, step, block + static_cast<uint64_t>(i));
      std::memcpy(words + 4 * i, b.word, sizeof b.word);
    }
  }
}

}  // namespace st_moe::cpu::ST_MOE_ISA

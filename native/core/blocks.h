#pragma once
#include <cmath>

#include "core/convert.h"

// Weights in int8. Each row, of the last dimension, is divided into blocks of 32 elements that share a scale in f16;
// the last block may be shorter. element = scale · q, exact in float32. In memory: the q of all rows, and from the next
// multiple of 64 bytes on the scales [rows, blocks].
namespace st_moe {

constexpr int64_t kBlockElements = 32;

ST_MOE_HOST_DEVICE static inline constexpr int64_t blocks_of(int64_t columns) {
  return (columns + kBlockElements - 1) / kBlockElements;
}

// The first byte of the scales, of so many elements in all.
ST_MOE_HOST_DEVICE static inline constexpr int64_t scales_at(int64_t size) {
  return (size + 63) / 64 * 64;
}

// Bytes of a tensor of `size` elements with rows of `columns`.
static inline constexpr int64_t bytes_of(DType dtype, int64_t size, int64_t columns) {
  if (!is_blocked(dtype)) return size * static_cast<int64_t>(dtype_size(dtype));
  return size == 0 ? 0 : scales_at(size) + size / columns * blocks_of(columns) * 2;
}

// Rounds the elements x(0) … x(count − 1) of a block to nearest, q(i, value), and returns the scale: of a few, the one
// with the least sum of squared errors. A block with an element that is not finite, or above 8e6, is NaN.
template <class X, class Q>
ST_MOE_HOST_DEVICE static inline uint16_t quantize_block(int64_t count, X&& x, Q&& q) {
  constexpr float kMost = 127;
  constexpr float kSteps[] = {127, 126.5f, 126, 125.5f, 125};  // up to the largest; of 125, values in int8 keep theirs
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(x(i));
    finite &= magnitude <= 3.4028234664e38f;
    largest = magnitude > largest ? magnitude : largest;
  }
  uint16_t best = float_to_f16(largest / kMost);
  if (!finite || (best & 0x7c00u) == 0x7c00u) best = 0x7e00u;  // NaN
  double least = -1;
  if (finite && largest > 0)
    for (const float steps : kSteps) {
      const uint16_t bits = float_to_f16(largest / steps);
      const float scale = f16_to_float(bits);
      if (scale == 0 || (bits & 0x7c00u) == 0x7c00u) continue;
      double error = 0;
      for (int64_t i = 0; i < count; ++i) {
        const double level = std::fmax(-kMost, std::fmin(kMost, std::rint(x(i) / scale)));
        const double difference = std::fma(-double(scale), level, double(x(i)));
        error = std::fma(difference, difference, error);  // no compiler may round it otherwise
      }
      if (least < 0 || error < least) least = error, best = bits;
    }
  const float scale = f16_to_float(best);
  for (int64_t i = 0; i < count; ++i) {
    const float level = scale > 0 ? std::rint(x(i) / scale) : 0;
    q(i, static_cast<int8_t>(std::fmax(-kMost, std::fmin(kMost, level))));
  }
  return best;
}

}  // namespace st_moe

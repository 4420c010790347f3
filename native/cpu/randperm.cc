#include <cstring>

#include "core/ops/creation.h"
#include "cpu/philox_words.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

// A stable sort of random keys of 62 bits, each with its element: by digits, as many of the highest as tell most of
// them apart, then by insertion.
constexpr int kDigitBits = 11, kKeyBits = 62;
constexpr int64_t kDigits = int64_t{1} << kDigitBits;

struct Keyed {
  uint64_t key;
  int32_t element;
};

void randperm(const Context& ctx, const RandpermArgs& args) {
  const int64_t size = args.size, run = kPhiloxWords / 2;
  const Scratch<Keyed> halves(2 * size);
  Keyed *from = halves.get(), *to = from + size;
  parallel_blocks(ctx, ceil_div(size, run), kElementBlock / 2 / run, [&](int64_t begin, int64_t end) {
    uint32_t words[kPhiloxWords];
    for (int64_t r = begin; r < end; ++r) {
      philox_words(args.seed, args.step, static_cast<uint64_t>(r * kPhiloxBlocks), words);
      for (int64_t i = r * run; i < min_of(size, (r + 1) * run); ++i) {
        const uint32_t* word = words + 2 * (i - r * run);
        from[i] = {static_cast<uint64_t>(word[0] >> 1) << 31 | word[1] >> 1, static_cast<int32_t>(i)};
      }
    }
  });
  int bits = 0;
  while (size >> bits > 0) bits += kDigitBits;
  for (int shift = kKeyBits - bits; shift < kKeyBits; shift += kDigitBits) {
    int64_t next[kDigits + 1] = {};  // where the next key of each digit goes
    const auto digit = [=](const Keyed& keyed) { return static_cast<int64_t>(keyed.key >> shift) & (kDigits - 1); };
    for (int64_t i = 0; i < size; ++i) ++next[digit(from[i]) + 1];
    for (int64_t d = 0; d < kDigits; ++d) next[d + 1] += next[d];
    for (int64_t i = 0; i < size; ++i) to[next[digit(from[i])]++] = from[i];
    Keyed* sorted = to;
    to = from;
    from = sorted;
  }
  for (int64_t i = 1; i < size; ++i) {
    const Keyed keyed = from[i];
    int64_t at = i;
    for (; at > 0 && from[at - 1].key > keyed.key; --at) from[at] = from[at - 1];
    from[at] = keyed;
  }
  auto* out = static_cast<int32_t*>(args.out);
  for (int64_t i = 0; i < size; ++i) out[i] = from[i].element;
}

}  // namespace st_moe::cpu::ST_MOE_ISA

#include "core/philox.h"
#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

void dropout(const Context& ctx, const DropoutArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = static_cast<const T*>(args.x);
    T* y = static_cast<T*>(args.y);
    const T factor = static_cast<T>(1.0 / (1.0 - args.p));
    // A block of Philox gives four words; blocks here are multiples of it.
    parallel_blocks(ctx, args.size, kElementBlock / 2, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += 4) {
        const PhiloxBlock block = philox(args.seed, args.step, static_cast<uint64_t>(first) >> 2);
        for (int64_t j = 0; j < min_of<int64_t>(4, end - first); ++j) {
          const bool keep = static_cast<double>(uniform24(block.word[j])) >= args.p;
          y[first + j] = keep ? x[first + j] * factor : T(0);
        }
      }
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA

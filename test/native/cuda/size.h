#pragma once
#include <cstdlib>

namespace st_moe::test {

// ST_MOE_TEST_SMALL=1 leaves out dtypes of which another stands for the same kernels, and shapes that are nothing but
// large: under a sanitizer the emulator and the CPU ops take ten times as long.
inline bool small() {
  static const bool small = std::getenv("ST_MOE_TEST_SMALL") != nullptr;
  return small;
}

}  // namespace st_moe::test

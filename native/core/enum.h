#pragma once
#include <cstdint>

namespace st_moe {

constexpr int32_t count_names(const char* names) {
  int32_t count = 1;
  for (; *names; ++names) count += *names == ',';
  return count;
}

// An enum that crosses the boundary to a plugin: its names are also text, which the ABI number contains (core/abi.h).
#define ST_MOE_ENUM(Name, ...)                    \
  enum class Name : int32_t { __VA_ARGS__ };      \
  constexpr char k##Name##Names[] = #__VA_ARGS__; \
  constexpr int32_t k##Name##Count = count_names(k##Name##Names)

}  // namespace st_moe

#include "core/backend.h"

#include <cstdlib>
#include <cstring>

#include "cpu/pool.h"

namespace st_moe {
namespace cpu {
namespace baseline {
const OpTable& op_table();
}
#if defined(ST_MOE_X86)
namespace avx2 {
const OpTable& op_table();
}
namespace avx512 {
const OpTable& op_table();
}
#endif

namespace {

struct Variant {
  const char* name;
  const OpTable& (*table)();
  bool supported;
};

// The widest that the machine has; ST_MOE_ISA=baseline|avx2|avx512 asks for a narrower one.
Variant choose_variant() {
#if defined(ST_MOE_X86)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512cd");
  const Variant variants[] = {
      {"avx512", avx512::op_table, v4}, {"avx2", avx2::op_table, v3}, {"baseline", baseline::op_table, true}};
#else
  const Variant variants[] = {{"baseline", baseline::op_table, true}};
#endif
  const char* wanted = std::getenv("ST_MOE_ISA");
  for (const Variant& variant : variants)
    if (variant.supported && wanted && std::strcmp(wanted, variant.name) == 0) return variant;
  for (const Variant& variant : variants)
    if (variant.supported) return variant;
  return {"baseline", baseline::op_table, true};
}

void* allocate(const Context&, size_t bytes) {
  return cache_allocate(bytes);
}

void release(const Context&, void* data, size_t bytes) {
  cache_release(data, bytes);
}

Status copy(const Context&, void* to, const void* from, size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
  return Status{ErrorCode::none, {}};
}

}  // namespace
}  // namespace cpu

const Backend& cpu_backend() {
  static const Backend backend = [] {
    const cpu::Variant variant = cpu::choose_variant();
    return Backend{kBackendAbi, "cpu",     variant.name,   0, cpu::allocate, cpu::release,
                   cpu::copy,   cpu::copy, variant.table()};
  }();
  return backend;
}

}  // namespace st_moe

#include "core/backend.h"

#include <cstdlib>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/pool.h"

namespace st_moe {
namespace cpu {
namespace {

// The newest instruction set of the machine; ST_MOE_ISA selects an older one.
Isa choose_isa() {
  const char* wanted = std::getenv("ST_MOE_ISA");
  Isa widest{}, named{};
  for_each_isa([&](const Isa& isa) {
    if (!isa.supported) return;
    if (!widest.name) widest = isa;
    if (wanted && std::strcmp(wanted, isa.name) == 0) named = isa;
  });
  return named.name ? named : widest;
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

int64_t held_bytes(const Context&) {
  return static_cast<int64_t>(cached_bytes());
}

}  // namespace
}  // namespace cpu

const Backend& cpu_backend() {
  static const Backend backend = [] {
    const cpu::Isa isa = cpu::choose_isa();
    return Backend{kBackendAbi, "cpu",           isa.name,      1, cpu::allocate, cpu::release, cpu::copy,
                   cpu::copy,   cpu::held_bytes, isa.op_table()};
  }();
  return backend;
}

}  // namespace st_moe

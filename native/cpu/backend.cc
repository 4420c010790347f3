#include "core/backend.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "core/activation.h"
#include "core/error.h"
#include "cpu/isa.h"
#include "cpu/pool.h"

namespace st_moe {
namespace cpu {

Isa choose_isa(const char* wanted, double dot_speed) {
  Isa chosen{};
  std::string names;
  for_each_isa([&](const Isa& isa) {
    if (!isa.supported) return;
    names += (names.empty() ? "" : ", ") + std::string(isa.name);
    const bool fits = wanted && *wanted ? std::strcmp(wanted, isa.name) == 0 : dot_speed >= isa.default_from;
    if (fits && !chosen.name) chosen = isa;
  });
  if (!chosen.name)
    fail(ErrorCode::option, "ST_MOE_ISA must be one of %s on this machine, got \"%.60s\"", names.c_str(), wanted);
  return chosen;
}

namespace {

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

int64_t saved_values(Activation activation, int64_t H, DType) {
  return w1_rows(activation, H);
}

int64_t held_bytes(const Context&) {
  return static_cast<int64_t>(cached_bytes());
}

Status empty_cache(const Context&) {
  cache_trim();
  return Status{ErrorCode::none, {}};
}

int32_t trim_idle(const Context&) {
  return cache_trim_idle();
}

void limit_memory(const Context&, size_t bytes) {
  set_memory_limit(bytes);
}

Status allocation_error(const Context&) {
  Status status{ErrorCode::none, {}};
  describe_shortage(status.text, sizeof status.text);
  return status;
}

}  // namespace
}  // namespace cpu

const Backend& cpu_backend() {
  static const Backend backend = [] {
    const cpu::Isa isa = cpu::choose_isa(std::getenv("ST_MOE_ISA"), cpu::bf16_dot_speed());
    return Backend{
        .name = "cpu",
        .variant = isa.name,
        .allocate = cpu::allocate,
        .release = cpu::release,
        .copy_in = cpu::copy,
        .copy_out = cpu::copy,
        .ops = isa.op_table(),
        .held_bytes = cpu::held_bytes,
        .empty_cache = cpu::empty_cache,
        .trim_idle = cpu::trim_idle,
        .set_memory_limit = cpu::limit_memory,
        .saved_values = cpu::saved_values,
        .allocation_error = cpu::allocation_error,
        .usable_threads = cpu::usable_cpus,
        .bf16_dot_speed = cpu::bf16_dot_speed(),
        .bf16x3 = true,  // where it is not faster, it is float32
        .host_memory = true,
    };
  }();
  return backend;
}

}  // namespace st_moe

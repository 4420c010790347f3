#include "cpu/isa.h"

#include <cstdlib>
#include <set>
#include <string>

#include "check.h"
#include "core/backend.h"
#include "core/error.h"

using namespace st_moe;

namespace {

std::set<std::string> supported() {
  std::set<std::string> names;
  cpu::for_each_isa([&](const cpu::Isa& isa) {
    if (isa.supported) names.insert(isa.name);
  });
  return names;
}

// The rule in words: AMX if granted, else dot products if they pay, else the widest of the others.
std::string default_at(double dot_speed) {
  const std::set<std::string> names = supported();
  for (const std::string name : {"amx", "avx512bf16", "neonbf16", "avx512", "avx2"})
    if (names.count(name) && (name.find("bf16") == std::string::npos || dot_speed >= 1.3)) return name;
  return "baseline";
}

void test_defaults() {
  for (const char* unset : {static_cast<const char*>(nullptr), ""})
    for (const double speed : {0.0, 0.5, 1.2, 1.4, 1.85, 4.0}) {
      const std::string got = cpu::choose_isa(unset, speed).name, want = default_at(speed);
      check(got == want, "dot products %g times as fast: %s, not %s", speed, got.c_str(), want.c_str());
    }
}

void test_names() {
  const std::set<std::string> names = supported();
  for (const double speed : {0.0, 0.5, 2.0})
    for (const std::string& name : names) {
      const std::string got = cpu::choose_isa(name.c_str(), speed).name;
      check(got == name, "ST_MOE_ISA=%s selects %s", name.c_str(), got.c_str());
    }
  for (const char* wrong : {"amx", "avx512bf16", "neonbf16", "avx512", "avx2", "avx1024", "AVX2", "avx2 "}) {
    if (names.count(wrong)) continue;
    try {
      check(false, "ST_MOE_ISA=%s selects %s", wrong, cpu::choose_isa(wrong, 2).name);
    } catch (const Error& error) {
      const std::string text = error.what(), end = std::string("got \"") + wrong + "\"";
      check(error.code() == ErrorCode::option && text.find("ST_MOE_ISA must be one of ") == 0 &&
                text.find("baseline on this machine, " + end) != std::string::npos,
            "ST_MOE_ISA=%s: %s", wrong, error.what());
    }
  }
}

void test_machine() {
  const double speed = cpu::bf16_dot_speed();
  const std::set<std::string> names = supported();
  check((speed > 0) == (names.count("avx512bf16") + names.count("neonbf16") > 0), "dot products %g times as fast",
        speed);
  check(speed == cpu::bf16_dot_speed(), "the measurement is repeated");
  const std::string got = cpu_backend().variant, want = cpu::choose_isa(std::getenv("ST_MOE_ISA"), speed).name;
  check(got == want, "the backend has %s, not %s", got.c_str(), want.c_str());
}

}  // namespace

int main() {
  test_defaults();
  test_names();
  test_machine();
  return check_result();
}

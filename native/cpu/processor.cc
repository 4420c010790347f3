#include "cpu/processor.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "cpu/control_groups.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace st_moe::cpu {
namespace {

#if defined(__x86_64__) || defined(_M_X64)
struct Levels {
  bool v3, v4, bf16;
};

// Not __builtin_cpu_supports, which not every C library has.
Levels read_levels() {
  struct {
    unsigned a, b, c, d;
  } basic{}, more{}, features{}, extended{};
  __get_cpuid(1, &basic.a, &basic.b, &basic.c, &basic.d);
  __get_cpuid_count(7, 0, &features.a, &features.b, &features.c, &features.d);
  __get_cpuid_count(7, 1, &more.a, &more.b, &more.c, &more.d);
  __get_cpuid(0x80000001, &extended.a, &extended.b, &extended.c, &extended.d);
  const auto has = [](unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; };

  unsigned saved = 0;  // the registers that the system keeps for each thread
  if (has(basic.c, bit_OSXSAVE)) asm volatile("xgetbv" : "=a"(saved) : "c"(0) : "edx");
  constexpr unsigned kYmm = 0x6, kZmm = 0xe6;
#if defined(__APPLE__)
  const bool zmm = has(saved, kYmm);  // macOS adds the others when a thread first uses them
#else
  const bool zmm = has(saved, kZmm);
#endif
  constexpr unsigned kAvx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
  Levels levels;
  levels.v3 = has(saved, kYmm) && has(basic.c, bit_AVX | bit_FMA | bit_F16C | bit_MOVBE) &&
              has(features.b, bit_AVX2 | bit_BMI | bit_BMI2) && has(extended.c, bit_LZCNT);
  levels.v4 = levels.v3 && zmm && has(features.b, kAvx512);
  levels.bf16 = levels.v4 && has(more.a, bit_AVX512BF16);
  return levels;
}

const Levels& levels() {
  static const Levels levels = read_levels();
  return levels;
}
#elif defined(__aarch64__)
bool read_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16
  return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has;
#elif defined(_WIN32)
  constexpr DWORD kBf16 = 68;  // PF_ARM_V86_BF16_INSTRUCTIONS_AVAILABLE, of Windows 11 24H2 and newer
  return IsProcessorFeaturePresent(kBf16);
#else
  return false;
#endif
}
#endif

struct Cache {
  int64_t ways, way_bytes;
};

Cache read_l2() {
#if defined(__x86_64__) || defined(_M_X64)
  constexpr unsigned kIntel = 4, kAmd = 0x8000001d;  // the leaf of the caches; those of the other vendor are empty
  for (const unsigned leaf : {kIntel, kAmd}) {
    unsigned a, b, c, d;
    for (unsigned i = 0; __get_cpuid_count(leaf, i, &a, &b, &c, &d) && (a & 31) != 0; ++i) {
      const int64_t ways = (b >> 22) + 1, partitions = (b >> 12 & 1023) + 1, line = (b & 4095) + 1,
                    sets = int64_t{c} + 1;
      if ((a >> 5 & 7) == 2) return {ways, partitions * line * sets};
    }
  }
#endif
  return {8, 128 << 10};
}

const Cache& l2() {
  static const Cache cache = read_l2();
  return cache;
}

bool ask_for_amx() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr unsigned kFeatures = 7, kBf16 = 1u << 22, kTile = 1u << 24;
  constexpr int64_t kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, a state of XSAVE
  unsigned a, b, c, d;
  return __get_cpuid_count(kFeatures, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTile) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// The time of 12 · 400 instructions, none of which waits for the one before it: bf16 dot products or float32 FMA. In
// assembly, since this file is compiled for every processor.
template <bool dots>
std::chrono::steady_clock::duration time_multiplications() {
  const auto start = std::chrono::steady_clock::now();
  [[maybe_unused]] int rounds = 400;
#if defined(__x86_64__) || defined(_M_X64)
  asm volatile(
      "vzeroall\n"  // no denormals, which may be slow
      "1:\n"
      ".irp i,0,1,2,3,4,5,6,7,8,9,10,11\n"
      ".if %c1\n"
      "vdpbf16ps %%zmm15, %%zmm15, %%zmm\\i\n"
      ".else\n"
      "vfmadd231ps %%zmm15, %%zmm15, %%zmm\\i\n"
      ".endif\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper"
      : "+r"(rounds)
      : "i"(dots)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15");
#elif defined(__aarch64__)
  asm volatile(
      ".arch_extension bf16\n"
      "movi v15.4s, #0\n"
      ".irp i,0,1,2,3,4,5,6,7,16,17,18,19\n"
      "movi v\\i\\().4s, #0\n"
      ".endr\n"
      "1:\n"
      ".irp i,0,1,2,3,4,5,6,7,16,17,18,19\n"
      ".if %c1\n"
      "bfdot v\\i\\().4s, v15.8h, v15.8h\n"
      ".else\n"
      "fmla v\\i\\().4s, v15.4s, v15.4s\n"
      ".endif\n"
      ".endr\n"
      "subs %w0, %w0, #1\n"
      "b.ne 1b"
      : "+r"(rounds)
      : "i"(dots)
      : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v15", "v16", "v17", "v18", "v19");
#endif
  return std::chrono::steady_clock::now() - start;
}

double measure_dots() {
  if (!has_bf16()) return 0;
  auto fma = time_multiplications<false>(), dots = time_multiplications<true>();
  for (int i = 1; i < 7; ++i) {  // the best of some, in turns: interruptions and a rising clock slow down the others
    fma = std::min(fma, time_multiplications<false>());
    dots = std::min(dots, time_multiplications<true>());
  }
  return 2.0 * static_cast<double>(fma.count()) / static_cast<double>(dots.count());  // each does two in a lane
}

}  // namespace

#if defined(__x86_64__) || defined(_M_X64)
bool has_v3() {
  return levels().v3;
}
bool has_v4() {
  return levels().v4;
}
bool has_bf16() {
  return levels().bf16;
}
#elif defined(__aarch64__)
bool has_bf16() {
  static const bool has = read_bf16();
  return has;
}
#else
bool has_bf16() {
  return false;
}
#endif

double bf16_dot_speed() {
  static const double speed = measure_dots();
  return speed;
}

int64_t l2_bytes() {
  return l2().ways * l2().way_bytes;
}

int64_t l2_way_bytes() {
  return l2().way_bytes;
}

int usable_cpus() {
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t mask;  // hardware_concurrency counts the CPUs that are online
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) cpus = CPU_COUNT(&mask);
  if (const int quota = group_cpus(control_groups("cpu"))) cpus = std::min(cpus, quota);
#endif
  return std::max(cpus, 1);
}

bool may_use_amx() {
  static const bool may = ask_for_amx();
  return may;
}

}  // namespace st_moe::cpu

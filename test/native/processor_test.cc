#include "cpu/processor.h"

#include <thread>

#include "check.h"
#if defined(__linux__)
#include <sched.h>
#endif

using namespace st_moe;
using namespace st_moe::cpu;

namespace {

void test_quota() {
  const struct {
    const char* text;
    int cpus;
  } samples[] = {{"max 100000\n", 0},
                 {"200000 100000\n", 2},
                 {"150000 100000\n", 2},
                 {"10000 100000\n", 1},
                 {"6400000 100000\n", 64},
                 {"-1 100000", 0},
                 {"-1 -1", 0},
                 {"0 100000", 0},
                 {"200000", 0},
                 {"200000 0", 0},
                 {"", 0},
                 {"9000000000000000000 1", INT32_MAX}};
  for (const auto& [text, cpus] : samples)
    check(quota_cpus(text) == cpus, "a quota of '%s' gave %d CPUs instead of %d", text, quota_cpus(text), cpus);
}

// In a thread, because the mask belongs to the thread.
void test_affinity() {
  check(usable_cpus() >= 1, "%d usable CPUs", usable_cpus());
#if defined(__linux__)
  std::thread([] {
    cpu_set_t mask, one;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return;
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i)
      if (CPU_ISSET(i, &mask)) CPU_SET(i, &one);
    if (sched_setaffinity(0, sizeof one, &one) == 0)
      check(usable_cpus() == 1, "%d usable CPUs with a mask of one", usable_cpus());
  }).join();
#endif
}

}  // namespace

int main() {
  test_quota();
  test_affinity();
  return check_result();
}

#include "cpu/processor.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/control_groups.h"
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

// What a system would have under /.
class FakeRoot {
 public:
  FakeRoot() { std::filesystem::create_directories(path_); }
  ~FakeRoot() { std::filesystem::remove_all(path_); }

  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(path_ + name).parent_path());
    std::ofstream(path_ + name) << text;
  }
  int cpus() const { return group_cpus(control_groups("cpu", path_)); }
  int64_t bytes() const { return group_bytes(control_groups("memory", path_)); }

 private:
  const std::string path_ =
      (std::filesystem::temp_directory_path() / ("control-groups-" + std::to_string(std::rand()))).string();
};

void test_nested_groups() {
  const FakeRoot systemd;  // a unit of a slice with limits, on a system of version 2
  systemd.write("/proc/self/mountinfo", "35 23 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n");
  systemd.write("/proc/self/cgroup", "0::/apps.slice/node.service\n");
  check(systemd.cpus() == 0 && systemd.bytes() == -1, "limits without a file");
  systemd.write("/sys/fs/cgroup/apps.slice/node.service/cpu.max", "max 100000\n");
  systemd.write("/sys/fs/cgroup/apps.slice/cpu.max", "250000 100000\n");
  check(systemd.cpus() == 3, "the quota of the outer group gave %d CPUs", systemd.cpus());
  systemd.write("/sys/fs/cgroup/apps.slice/node.service/cpu.max", "50000 100000\n");
  check(systemd.cpus() == 1, "the quota of the own group gave %d CPUs", systemd.cpus());
  systemd.write("/sys/fs/cgroup/apps.slice/node.service/memory.max", "max\n");
  systemd.write("/sys/fs/cgroup/apps.slice/node.service/memory.current", "300\n");
  systemd.write("/sys/fs/cgroup/apps.slice/memory.max", "1000\n");
  systemd.write("/sys/fs/cgroup/apps.slice/memory.current", "900\n");
  systemd.write("/sys/fs/cgroup/apps.slice/memory.stat", "anon 640\ninactive_file 200\n");
  check(systemd.bytes() == 300, "%lld bytes are left in the outer group", static_cast<long long>(systemd.bytes()));
  systemd.write("/sys/fs/cgroup/apps.slice/node.service/memory.max", "310\n");
  check(systemd.bytes() == 10, "%lld bytes are left in the own group", static_cast<long long>(systemd.bytes()));
  systemd.write("/sys/fs/cgroup/apps.slice/node.service/memory.max", "200\n");
  check(systemd.bytes() == 0, "%lld bytes are left in a full group", static_cast<long long>(systemd.bytes()));

  const FakeRoot first;  // of version 1, where each controller has a path of its own, in a container without namespace
  first.write("/proc/self/mountinfo",
              "32 31 0:29 /docker/ab /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
              "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
              "36 31 0:33 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n");
  first.write("/proc/self/cgroup", "9:cpuset:/x\n4:memory:/y/z\n3:cpu,cpuacct:/docker/ab/job\n0::/\n");
  first.write("/sys/fs/cgroup/cpuset/x/cpu.cfs_quota_us", "100000");
  first.write("/sys/fs/cgroup/cpuset/x/cpu.cfs_period_us", "100000");
  check(first.cpus() == 0, "a quota in the hierarchy of another controller gave %d CPUs", first.cpus());
  first.write("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "150000");
  first.write("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000");
  check(first.cpus() == 2, "the quota of the own group gave %d CPUs", first.cpus());
  first.write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "80000");
  first.write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
  check(first.cpus() == 1, "the quota of the container gave %d CPUs", first.cpus());
  first.write("/sys/fs/cgroup/memory/y/memory.limit_in_bytes", "5000");
  first.write("/sys/fs/cgroup/memory/y/memory.usage_in_bytes", "4000");
  first.write("/sys/fs/cgroup/memory/y/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n");
  check(first.bytes() == 1500, "%lld bytes are left in a group", static_cast<long long>(first.bytes()));

  const FakeRoot plain;  // no control groups
  check(plain.cpus() == 0 && plain.bytes() == -1, "limits without control groups");
}

}  // namespace

int main() {
  test_quota();
  test_nested_groups();
  test_affinity();
  return check_result();
}

#pragma once
#include <cstdint>
#include <string>
#include <vector>

// The limits that Linux sets this process through control groups, of version 1 and of version 2. A limit of any group
// above the one of the process holds for it too.
namespace st_moe::cpu {

// The folders of the groups that `controller` ("cpu", "memory") counts this process in: first its own, last the
// outermost that is mounted. Some may not be visible to it. `root` is in front of each path that is read.
std::vector<std::string> control_groups(const char* controller, const std::string& root = "");

// The quota in CPUs, rounded up, of the text "quota period" in µs, as in cpu.max; 0 if it is not a limit, such as "max"
// or −1 for the quota.
int quota_cpus(std::string text);

// The least quota of the groups in CPUs; 0 without one.
int group_cpus(const std::vector<std::string>& groups);

// The bytes that the fullest of the groups still lets its processes take, with its reclaimable file cache; −1 without
// a limit.
int64_t group_bytes(const std::vector<std::string>& groups);

}  // namespace st_moe::cpu

#include "cpu/control_groups.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "cpu/system_files.h"

namespace st_moe::cpu {
namespace {

bool lists(const std::string& words, const std::string& word) {
  return ("," + words + ",").find("," + word + ",") != std::string::npos;
}

bool lies_in(const std::string& path, const std::string& folder) {
  return folder == "/" || path == folder || path.rfind(folder + "/", 0) == 0;
}

// The folders from `mount` + `below` up to `mount`.
void add_up(std::vector<std::string>& groups, const std::string& mount, std::string below) {
  while (!below.empty() && below != "/") {
    groups.push_back(mount + below);
    below.erase(below.find_last_of('/'));
  }
  groups.push_back(mount);
}

// The path of this process in the hierarchy of the controller; of version 2, whose line names no controllers, without.
std::string own_path(const std::string& controller, const std::string& root) {
  std::ifstream lines(root + "/proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {  // number:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? controllers.empty() : lists(controllers, controller)) return line.substr(second + 1);
  }
  return "";
}

template <class Read>
int64_t least(const std::vector<std::string>& groups, const Read& read) {
  int64_t found = -1;
  for (const std::string& group : groups)
    if (const int64_t limit = read(group); limit >= 0) found = found < 0 ? limit : std::min(found, limit);
  return found;
}

// −1 if the group has no limit of this version.
int64_t bytes_left(const std::string& limit_path, const std::string& usage_path, const std::string& stat_path,
                   const char* cache_key) {
  const int64_t limit = number_in(limit_path.c_str()), usage = number_in(usage_path.c_str());
  if (limit < 0 || usage < 0) return -1;
  const int64_t cache = number_in(stat_path.c_str(), cache_key), used = usage - std::max<int64_t>(cache, 0);
  return std::max<int64_t>(limit - used, 0);
}

}  // namespace

std::vector<std::string> control_groups(const char* controller, const std::string& root) {
  std::vector<std::string> groups;
  std::ifstream mounts(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    // number, parent, device, folder of the file system, where it is, options …, "-", type, source, options of the type
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line), after(line.substr(dash + 3));
    std::string number, parent, device, folder, mount, type, source, options;
    before >> number >> parent >> device >> folder >> mount;
    after >> type >> source >> options;
    const bool second = type == "cgroup2";
    if (!second && !(type == "cgroup" && lists(options, controller))) continue;
    const std::string path = own_path(second ? "" : controller, root);
    // A container may see but its own folder of the file system, while the path begins at the top.
    const std::string below = folder == "/" ? path : path.substr(std::min(folder.size(), path.size()));
    add_up(groups, root + mount, lies_in(path, folder) ? below : "");
  }
  return groups;
}

int quota_cpus(std::string text) {
  const int64_t quota = take_number(text), period = take_number(text);
  return quota > 0 && period > 0 ? static_cast<int>(std::min<int64_t>((quota - 1) / period + 1, INT32_MAX)) : 0;
}

int group_cpus(const std::vector<std::string>& groups) {
  const int64_t cpus = least(groups, [](const std::string& group) -> int64_t {
    const std::string first_version = std::to_string(number_in((group + "/cpu.cfs_quota_us").c_str())) + " " +
                                      std::to_string(number_in((group + "/cpu.cfs_period_us").c_str()));
    for (const std::string& text : {text_in((group + "/cpu.max").c_str()), first_version})
      if (const int quota = quota_cpus(text)) return quota;
    return -1;
  });
  return static_cast<int>(std::max<int64_t>(cpus, 0));
}

int64_t group_bytes(const std::vector<std::string>& groups) {
  return least(groups, [](const std::string& group) {
    const int64_t second =
        bytes_left(group + "/memory.max", group + "/memory.current", group + "/memory.stat", "inactive_file ");
    return second >= 0 ? second
                       : bytes_left(group + "/memory.limit_in_bytes", group + "/memory.usage_in_bytes",
                                    group + "/memory.stat", "total_inactive_file ");
  });
}

}  // namespace st_moe::cpu

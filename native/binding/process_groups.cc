#include "binding/process_groups.h"

#include <map>
#include <mutex>

#include "binding/call.h"
#include "core/process_group.h"
#include "mpi/job.h"

// MPI is initialized once per process, so one environment owns the process group.
namespace st_moe {
namespace {

std::string text_of(Call& c, const char* name) {
  const Napi::Value value = c.value();
  if (!value.IsString()) fail(ErrorCode::option, "%s must be a string", name);
  return value.As<Napi::String>().Utf8Value();
}

Napi::Value probe_process_library(Call& c) {  // (path) → { version, reason }
  const mpi::LibraryProbe& probe = mpi::open_library(text_of(c, "path"));
  Napi::Object answer = Napi::Object::New(c.env);
  answer["version"] = probe.library ? probe.library->version() : "";
  answer["reason"] = probe.reason;
  return answer;
}

struct Groups {
  std::mutex mutex;  // of the owner and its name
  const Environment* owner = nullptr;
  std::string owner_name;                                   // empty before the first
  mpi::Job* job = nullptr;                                  // null once it is finished
  std::map<int64_t, std::shared_ptr<ProcessGroup>> groups;  // only for the owner; recorded ops hold theirs too
  int64_t last = 0;
};

Groups& all_groups() {
  static auto* const groups = new Groups;
  return *groups;
}

#if !defined(_WIN32)

// The groups, if this environment owns them.
Groups& own_groups(Call& c) {
  Groups& all = all_groups();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.owner != &c.environment)
    fail(ErrorCode::unsupported, "the process group belongs to %s",
         all.owner_name.empty() ? "no thread yet" : all.owner_name.c_str());
  return all;
}

std::shared_ptr<ProcessGroup> group_at(Groups& all, int64_t handle) {
  const auto found = all.groups.find(handle);
  if (found == all.groups.end()) fail(ErrorCode::disposed, "the process group has been destroyed");
  return found->second;
}

ProcessGroup& group_of(Call& c, Groups& all) {
  return *group_at(all, c.integer("group", 1, int64_t{1} << 50));
}

Napi::Value keep(Call& c, Groups& all, std::unique_ptr<ProcessGroup> group) {
  all.groups.emplace(++all.last, std::move(group));
  return Napi::Number::New(c.env, static_cast<double>(all.last));
}

// (path, timeout in s, expected size or 0, name of this thread, call, debug) → { group, rank, hosts, version }
Napi::Value start_process_group(Call& c) {
  const std::string path = text_of(c, "path");
  const double timeout = c.number("timeout");
  const auto expected = static_cast<int>(c.integer("expectedSize", 0, 1 << 24));
  const std::string thread = text_of(c, "thread"), call = text_of(c, "call");
  const bool debug = c.boolean("debug");
  if (!(timeout > 0 && timeout < 1e9)) fail(ErrorCode::option, "timeout must be a number of seconds, got %g", timeout);
  const mpi::LibraryProbe& probe = mpi::open_library(path);
  if (!probe.library) fail(ErrorCode::backend_unavailable, "%s: %s", path.c_str(), probe.reason.c_str());
  Groups& all = all_groups();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (!all.owner_name.empty() && all.owner != &c.environment)
      fail(ErrorCode::unsupported, "the process group belongs to %s, and a process has only one",
           all.owner_name.c_str());
    if (!all.owner_name.empty()) fail(ErrorCode::option, "MPI cannot be initialized a second time in a process");
    all.owner = &c.environment;
    all.owner_name = thread.empty() ? "another thread" : thread;
  }
  all.job = new mpi::Job(*probe.library, {timeout, expected, call, debug});
  const std::vector<int>& hosts = all.job->hosts();
  Napi::Array list = Napi::Array::New(c.env, hosts.size());
  for (uint32_t i = 0; i < hosts.size(); ++i) list[i] = hosts[i];
  Napi::Object answer = Napi::Object::New(c.env);
  answer["group"] = keep(c, all, all.job->world());
  answer["rank"] = all.job->rank();
  answer["hosts"] = list;
  answer["version"] = probe.library->version();
  return answer;
}

// (group, call, ranks) → the group of these ranks; 0 for a rank that is none of them
Napi::Value new_process_group(Call& c) {
  Groups& all = own_groups(c);
  ProcessGroup& group = group_of(c, all);
  const std::string call = text_of(c, "call");
  const Napi::Float64Array given = c.numbers("ranks");
  std::vector<int> ranks;
  std::vector<bool> taken(group.size(), false);
  for (size_t i = 0; i < given.ElementLength(); ++i) {
    const double rank = given[i];
    if (!(rank >= 0 && rank < group.size() && rank == static_cast<int>(rank)) || taken[static_cast<int>(rank)])
      fail(ErrorCode::option, "ranks must be different ranks of the group");
    ranks.push_back(static_cast<int>(rank));
    taken[ranks.back()] = true;
  }
  group.agree(call);
  if (!taken[group.rank()]) return Napi::Number::New(c.env, 0);
  return keep(c, all, group.subgroup(ranks));
}

Napi::Value process_group_barrier(Call& c) {  // (group)
  Groups& all = own_groups(c);
  ProcessGroup& group = group_of(c, all);
  group.expect_same({"barrier", "barrier()"});
  group.barrier("barrier");
  return c.env.Undefined();
}

Napi::Value destroy_process_groups(Call& c) {  // collective
  Groups& all = own_groups(c);
  if (!all.job) fail(ErrorCode::disposed, "the process group has been destroyed");
  all.job->finish();
  all.groups.clear();
  all.job = nullptr;
  return c.env.Undefined();
}

#else

Napi::Value unavailable(Call&) {
  fail(ErrorCode::backend_unavailable, "process groups are not available on Windows in this version");
}
constexpr Method start_process_group = unavailable, new_process_group = unavailable,
                 process_group_barrier = unavailable, destroy_process_groups = unavailable;

#endif

}  // namespace

void abandon_process_groups(const Environment* owner) {
  Groups& all = all_groups();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.owner != owner || !owner) return;
  all.owner = nullptr;  // the address may be that of another environment later
  all.owner_name += ", which has ended";
  all.groups.clear();
#if !defined(_WIN32)
  if (all.job) all.job->abandon();
#endif
}

std::shared_ptr<ProcessGroup> process_group_of([[maybe_unused]] Call& c, int64_t handle) {
  if (handle == 0) return self_group();
#if !defined(_WIN32)
  return group_at(own_groups(c), handle);
#else
  fail(ErrorCode::disposed, "there is no such process group");
#endif
}

const std::vector<Entry> kProcessGroupEntries = {
    {"probeProcessLibrary", probe_process_library, Order::free},
    {"startProcessGroup", start_process_group, Order::waiting},
    {"newProcessGroup", new_process_group, Order::waiting},
    {"processGroupBarrier", process_group_barrier, Order::waiting},
    {"destroyProcessGroups", destroy_process_groups, Order::waiting},
};

}  // namespace st_moe

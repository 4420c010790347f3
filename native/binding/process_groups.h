#pragma once
#include <cstdint>
#include <memory>

namespace st_moe {

class Call;
class Environment;
class ProcessGroup;

// An environment ends. If the process group was its, the other ranks learn that this one is lost.
void abandon_process_groups(const Environment* owner);

// The group that JavaScript holds as a number; 0 is that of a process alone. Throws Error(unsupported) if another
// environment owns it, Error(disposed) if it has been destroyed.
std::shared_ptr<ProcessGroup> process_group_of(Call& call, int64_t handle);

}  // namespace st_moe

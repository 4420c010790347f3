#pragma once

namespace st_moe {

class Environment;

// An environment ends. If the process group was its, the other ranks learn that this one is lost.
void abandon_process_groups(const Environment* owner);

}  // namespace st_moe

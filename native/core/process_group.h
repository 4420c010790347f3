#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"

namespace st_moe {

// The ranks of a job that work together. Every function is collective: all ranks call it, and it returns or throws on
// all of them. After Error(peer_lost), Error(timeout) or Error(process_group) each later call on a group of the job
// throws the same error. One thread calls a group.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // `what` names the operation in errors.
  virtual void barrier(const char* what) = 0;

  // Throws Error(process_group), which names both sides, unless all ranks pass the same call.
  virtual void agree(const std::string& call) = 0;

  // A group of some ranks of this one, in that order, which only they call.
  virtual std::unique_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks) = 0;
};

}  // namespace st_moe

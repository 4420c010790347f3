#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"

namespace st_moe {

// The ranks of a job that work together. Every function is collective: all ranks call it, and it returns or throws on
// all of them. After Error(peer_lost), Error(timeout) or Error(process_group) each later call on a group of the job
// throws the same error. One thread calls a group. `what` names the operation in errors.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual void barrier(const char* what) = 0;

  // Throws Error(process_group), which names both sides, unless all ranks pass the same call.
  virtual void agree(const std::string& call) = 0;

  // A group of some ranks of this one, in that order, which only they call.
  virtual std::unique_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks) = 0;

  // What the ranks do next. The libraries move the wrong bytes in silence where the ranks differ.
  struct Collective {
    const char *what, *call;        // compared the first time that the call has this text; each time if it is debugged
    const int64_t* rows = nullptr;  // by rank, the same on all; compared with the text
    // By rank: what this one sends to rank r, rank r expects.
    const int64_t *sent = nullptr, *received = nullptr;
  };
  virtual void expect_same(const Collective& collective) = 0;

  // Moves bytes, after expect_same. Lists of bytes are by rank, and parts follow each other in that order.
  virtual void all_to_all(const char* what, const void* in, const int64_t* sent, void* out,
                          const int64_t* received) = 0;
  virtual void all_gather(const char* what, void* all, const int64_t* bytes) = 0;  // the own part is in its place
  virtual void broadcast(const char* what, void* data, int64_t bytes, int root) = 0;
  // Of two ranks. `message` says what it is, and must be the same on both.
  virtual void send(const char* what, const char* message, const void* data, int64_t bytes, int to) = 0;
  virtual void recv(const char* what, const char* message, void* data, int64_t bytes, int from) = 0;

  // Whether an operation that has failed still uses the memory that it was given, which then must never be freed.
  virtual bool holds_memory() const = 0;
};

// That of a process alone.
const std::shared_ptr<ProcessGroup>& self_group();

}  // namespace st_moe

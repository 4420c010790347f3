#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/process_group.h"
#include "mpi/mpi_library.h"
#include "mpi/watch.h"

namespace st_moe::mpi {

// The job of this process: MPI can be initialized once per process. Never destroyed, because threads that the library
// did not return to may still use it.
class Job {
 public:
  struct Options {
    double timeout;     // seconds until an operation that not all ranks have entered fails
    int expected_size;  // that the launcher has announced; 0 if none
    std::string call;   // which all ranks must make alike
    bool debug;         // each collective is compared between the ranks
  };

  // Initializes MPI. Throws Error(backend_unavailable) if the library does not fit the launcher.
  Job(const Library& library, Options options);

  const Library& mpi;
  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::vector<int>& hosts() const { return hosts_; }  // by rank: the lowest rank on the same machine
  bool debug() const { return debug_; }
  bool holds_memory() const { return holds_memory_; }
  std::unique_ptr<ProcessGroup> world();

  // What is waited for: ranks of the job that have to come, and a number that they all have for it; 0 if they cannot
  // tell.
  struct Wait {
    const char* what;
    const std::vector<int>& ranks;
    uint64_t place;
  };
  // Waits for a request, with yields, because another rank may need this core. A request that does not end still owns
  // its buffers.
  void wait(Request* request, const Wait& wait);
  // A function that the library has only as a blocking one, on a thread, which is left behind if it does not return.
  void call(const char* what, std::function<int()> function);
  void check(int code, const char* what);
  void expect_sound(const char* what);  // throws the error after which nothing works
  [[noreturn]] void fail_with(ErrorCode code, const std::string& text);

  // A communicator of some ranks of another, which only they call. Collective.
  Comm make_comm(Comm of, const std::vector<int>& ranks, const char* what);

  void finish();   // collective: finalizes MPI
  void abandon();  // the owner has ended; the others are told

 private:
  void initialize(int expected_size);
  void find_hosts();
  void start_watch();
  int lost() const;  // as Watch::lost, and in the start what the launcher has told
  void check_watch(const char* what);
  void poll(Request* request, const Wait& wait);
  std::string missing(const Wait& wait);
  Clock::time_point deadline() const;

  const std::chrono::duration<double> timeout_;
  const bool debug_;
  bool is_started_ = false;    // all ranks have come
  bool holds_memory_ = false;  // of a request that has not ended
  int rank_ = 0, size_ = 1;
  std::vector<int> hosts_;
  Comm comparing_ = nullptr;  // of all ranks
  std::unique_ptr<Watch> watch_;
  std::unique_ptr<Error> broken_;
};

// What the library reads and writes until a request ends. Kept for ever if it does not.
template <class T>
class Buffer {
 public:
  Buffer(const Job& job, T value) : job_(job), value_(std::make_unique<T>(std::move(value))) {}
  ~Buffer() {
    if (job_.holds_memory()) (void)value_.release();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T& operator*() { return *value_; }
  T* operator->() { return value_.get(); }

 private:
  const Job& job_;
  std::unique_ptr<T> value_;
};

// Removes the names of the shared memory that MPICH has mapped, once all ranks have: no name is left if they are
// killed.
void unlink_shared_memory();

}  // namespace st_moe::mpi

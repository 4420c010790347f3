#pragma once
#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "core/recorded_op.h"

namespace st_moe {

class Environment;

// The asynchronous calls of one environment. JavaScript runs first: between begin and end, ops are recorded. They run
// afterwards, in their order, on a thread of this object, one call at a time. Everything else that needs the values of
// tensors waits for them, and is an error while ops are recorded. If one fails, or an abort comes, what the ops before
// have updated gets its values back; a call has copies of them only as long as either can happen.
class AsyncCalls {
 public:
  explicit AsyncCalls(Environment& environment) : environment_(environment) {}
  ~AsyncCalls() { stop(); }
  AsyncCalls(const AsyncCalls&) = delete;
  AsyncCalls& operator=(const AsyncCalls&) = delete;

  bool is_recording() const { return recording_ != nullptr; }
  void begin();                // throws Error(unsupported)
  void record(RecordedOp op);  // throws std::bad_alloc
  void record(std::vector<RecordedOp> ops);
  // The promise of a boolean: whether all of it has run. `can_abort`: cancel may be called.
  Napi::Value end(Napi::Env env, bool can_abort);
  void drop();    // instead of end: nothing more of it runs
  void cancel();  // the ops of the running call that have not begun will not run
  void wait() {   // until the thread is idle
    if (running_) wait_for_thread();
  }

 private:
  struct Recording {
    std::vector<RecordedOp> ops;
    std::vector<Device*> devices;  // to wait for at the end
    bool can_abort = false;
    std::atomic<bool> is_cancelled{false};
    bool was_aborted = false;    // it has not run as a whole
    std::optional<Error> error;  // of the first op that failed: no other has run after it
    const char* failed = "";     // its name
    napi_deferred promise = nullptr;

    void run();
    size_t end_of_failures() const;  // behind the last op that can fail
    void attempt(const char* op, const auto& work);
    void note(const char* op, const Error& thrown);
  };

  void wait_for_thread();
  void start(Napi::Env env);
  void stop();  // waits for the op that is running
  void work();
  static void settle(napi_env env, napi_value, void* calls, void* recording);

  Environment& environment_;
  std::unique_ptr<Recording> recording_;

  std::thread thread_;
  napi_threadsafe_function settle_ = nullptr;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<Recording*> running_{nullptr};  // set with the mutex; owned by the thread, then by settle
  bool stopping_ = false;                     // with the mutex
};

}  // namespace st_moe

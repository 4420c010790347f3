#pragma once
#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/op_fields.h"
#include "core/tensor.h"

namespace st_moe {

class Environment;

// What an op does with a tensor; or its packed copies or the values that the host remembers, if it has them. The host
// remembers what is made_on_host.
enum class Use : uint8_t { read, made, made_on_host, updated, packed, host_copy };
constexpr bool is_made(Use use) {
  return use == Use::made || use == Use::made_on_host;
}

// A tensor and the pointer to it among the arguments of an op.
struct Operand {
  Operand() = default;
  template <class Pointer>
  Operand(Pointer& at, const Tensor& tensor, Use use = Use::read) : at(&at), tensor(&tensor), use(use) {}

  void* at;  // the address of the pointer
  const Tensor* tensor;
  Use use;
};

// What the pointer is when the op runs.
const void* pointer_to(const Storage& storage, Use use);

// The values that a storage had before an asynchronous call; nobody reads it meanwhile.
class Backup {
 public:
  Backup(std::shared_ptr<Storage> storage, DType dtype);  // throws Error(out_of_memory)
  ~Backup() { --storage_->recorded; }
  Backup(const Backup&) = delete;
  Backup& operator=(const Backup&) = delete;

  void restore();  // throws Error

 private:
  std::shared_ptr<Storage> storage_;
  Storage copy_;
  DType dtype_;
};
using Backups = std::unordered_map<const Storage*, Backup>;

// An op that was called but has not run. It keeps its tensors alive; those that it makes have memory only from the
// moment it runs, so the memory of an asynchronous call is that of a synchronous one.
class RecordedOp {
 public:
  RecordedOp(const char* name, OpFunction function, const void* args, size_t size, int64_t count,
             std::span<const Operand> operands);
  ~RecordedOp();
  RecordedOp(RecordedOp&&) = default;
  RecordedOp& operator=(RecordedOp&&) = delete;

  bool can_fail() const;
  void back_up(Backups& backups) const;  // what it updates, unless it is there; throws Error(out_of_memory)
  void run();                            // throws Error
  const char* name() const { return name_; }

 private:
  struct Bound {
    size_t offset;  // of the pointer in args_
    std::shared_ptr<Storage> storage;
    Use use;
    DType dtype;
    bool existed;               // before the call
    std::vector<int32_t> list;  // of a host_copy that is known: its storage may forget it before the op runs
  };

  bool makes_tensors() const;
  void set_pointers();  // throws Error

  const char* name_;
  Device* device_;
  OpFunction function_;
  int64_t count_;
  std::vector<char> args_;
  std::vector<Bound> operands_;
};

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

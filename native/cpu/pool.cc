#include "cpu/pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include "core/wait.h"

namespace st_moe::cpu {
namespace {

constexpr int kMaxWorkers = 255;
constexpr auto kSpin = std::chrono::microseconds(100);  // longer than most gaps between two jobs of a step

thread_local bool inside_task = false;

// The indices of a job that one thread takes first. Threads keep the same share from job to job, because their cache
// holds what they wrote in the last one.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

struct alignas(64) Job {
  void (*task)(void*, int64_t);
  void* argument;
  int threads = 0;
  std::atomic<bool> failed{false};
  std::exception_ptr error = nullptr;  // written by the one thread that set `failed`

  // Takes share `own` first, then the rest of the others. Looks before it takes, because an empty share is read by
  // every thread, and writing to it would move its cache line from one to the next.
  void run(Share* shares, int own) {
    const bool outer = inside_task;
    inside_task = true;
    try {
      for (int i = 0; i < threads; ++i) {
        Share& share = shares[(own + i) % threads];
        while (!failed.load(std::memory_order_relaxed) && share.next.load(std::memory_order_relaxed) < share.end) {
          const int64_t index = share.next.fetch_add(1, std::memory_order_relaxed);
          if (index < share.end) task(argument, index);
        }
      }
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
    inside_task = outer;
  }
};

// Where the caller and one worker hand over a job. The lock is for sleeping and waking only.
struct alignas(64) Seat {
  enum State : int { idle, offered, taken };
  std::atomic<State> state{idle};
  std::atomic<int> sleepers{0};
  std::mutex mutex;
  std::condition_variable signal;

  bool change(State from, State to) { return state.load() == from && state.compare_exchange_strong(from, to); }

  // After a change of state. A sleeper counts itself before it looks at the state, so one of the two sees the other.
  void wake() {
    if (sleepers.load() == 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex);
    }  // it waits, or has seen the new state
    signal.notify_all();
  }

  // Yields while it spins, because a machine with few cores needs them.
  void wait_while(State old) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    while (state.load() == old && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    if (state.load() != old) return;
    std::unique_lock<std::mutex> lock(mutex);
    ++sleepers;
    wait_until(signal, lock, [&] { return state.load() != old; });
    --sleepers;
  }
};
// Sleeping workers need the code of this library, also when a worker_thread that alone had loaded it has ended. Windows
// counts the reference of a thread; on Linux the linker's flag -z nodelete does the same, which macOS lacks.
void keep_loaded() {
#if !defined(_WIN32)
  Dl_info own;
  if (dladdr(reinterpret_cast<const void*>(&keep_loaded), &own) != 0)
    dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);  // never closed
#endif
}

// A call offers its job to one worker per further thread. When the caller runs out of work it withdraws the job from
// those that have not taken it, so a call never waits for a worker that is slow to wake. No two workers wait for the
// same lock or write to the same cache line, except where one takes what is left of another's share.
class Pool {
 public:
  // Runs indices [0, count). False if another call uses the workers.
  bool run(Job& job, int64_t count, int helpers) {
    std::unique_lock<std::mutex> caller(caller_, std::try_to_lock);
    if (!caller.owns_lock()) return false;
    start_workers(helpers);
    job_ = &job;
    job.threads = (helpers < workers_ ? helpers : workers_) + 1;
    for (int i = 0; i < job.threads; ++i) {
      shares_[i].next.store(count * i / job.threads, std::memory_order_relaxed);
      shares_[i].end = count * (i + 1) / job.threads;
    }
    for (int i = job.threads - 1; i > 0; --i) seats_[i].state.store(Seat::offered);
    take_part(job, 0);
    for (int i = 1; i < job.threads; ++i)
      if (!seats_[i].change(Seat::offered, Seat::idle)) seats_[i].wait_while(Seat::taken);
    return true;
  }

 private:
  void start_workers(int wanted) {
    if (wanted > kMaxWorkers) wanted = kMaxWorkers;
    if (workers_ == 0 && wanted > 0) keep_loaded();
    try {
      for (; workers_ < wanted; ++workers_) std::thread([this, number = workers_ + 1] { work(number); }).detach();
    } catch (const std::exception&) {
      // The system has no more threads; the existing ones do the work.
    }
  }

  [[noreturn]] void work(int number) {
    Seat& seat = seats_[number];
    for (;;) {
      seat.wait_while(Seat::idle);
      if (!seat.change(Seat::offered, Seat::taken)) continue;
      take_part(*job_, number);
      seat.state.store(Seat::idle);
      seat.wake();
    }
  }

  // Each thread wakes two others, if they sleep: one that woke all would start late.
  void take_part(Job& job, int number) {
    for (int i = 2 * number + 1; i <= 2 * number + 2 && i < job.threads; ++i) seats_[i].wake();
    job.run(shares_, number);
  }

  std::mutex caller_;  // held during a call; workers read job_ while the call waits for them
  int workers_ = 0;
  Job* job_ = nullptr;
  Seat seats_[kMaxWorkers + 1];  // by number of the worker; the caller is 0
  Share shares_[kMaxWorkers + 1];
};

// Never destroyed, because workers still wait on it while the process exits.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

void pool_run(int threads, int64_t count, void (*task)(void* argument, int64_t i), void* argument) {
  if (count <= 0) return;
  const int64_t helpers = (threads < count ? threads : count) - 1;
  if (helpers > 0 && !inside_task) {
    Job job{task, argument};
    if (pool().run(job, count, static_cast<int>(helpers))) {
      if (job.error) std::rethrow_exception(job.error);
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) task(argument, i);
}

}  // namespace st_moe::cpu

#include "cpu/pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace st_moe::cpu {
namespace {

constexpr int kMaxWorkers = 255;
constexpr auto kSpin = std::chrono::microseconds(30);

thread_local bool inside_task = false;

// The indices of a job that one thread takes first. Threads keep the same share from job to job, because their cache
// holds what they wrote in the last one.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

struct Job {
  void (*task)(void*, int64_t);
  void* argument;
  std::atomic<bool> failed{false};
  std::exception_ptr error = nullptr;  // written by the one thread that set `failed`

  // Takes share `own` of `count` first, then the rest of the others.
  void run(Share* shares, int count, int own) {
    const bool outer = inside_task;
    inside_task = true;
    try {
      for (int i = 0; i < count; ++i) {
        Share& share = shares[(own + i) % count];
        while (!failed.load(std::memory_order_relaxed)) {
          const int64_t index = share.next.fetch_add(1, std::memory_order_relaxed);
          if (index >= share.end) break;
          task(argument, index);
        }
      }
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
    inside_task = outer;
  }
};

// A call posts a job and one work ticket per helper. When the caller runs out of work it withdraws the remaining
// tickets, so a call never waits for a worker that is slow to wake.
class Pool {
 public:
  // Runs indices [0, count). False if another call uses the workers.
  bool run(Job& job, int64_t count, int helpers) {
    std::unique_lock<std::mutex> caller(caller_, std::try_to_lock);
    if (!caller.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start_workers(helpers);
      job_ = &job;
      helpers = helpers < workers_ ? helpers : workers_;
      share_count_ = helpers + 1;
      for (int i = 0; i < share_count_; ++i) {
        shares_[i].next.store(count * i / share_count_, std::memory_order_relaxed);
        shares_[i].end = count * (i + 1) / share_count_;
      }
      tickets_.store(helpers);
      for (int i = 0; i < helpers && i < sleeping_; ++i) wake_.notify_one();
    }
    job.run(shares_, share_count_, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    tickets_.store(0);
    if (active_.load() > 0) {
      lock.unlock();
      spin_while([this] { return active_.load() > 0; });
      lock.lock();
      sleep_until(done_, lock, [this] { return active_.load() == 0; });
    }
    job_ = nullptr;
    return true;
  }

 private:
  void start_workers(int wanted) {
    if (wanted > kMaxWorkers) wanted = kMaxWorkers;
    try {
      for (; workers_ < wanted; ++workers_) std::thread([this, number = workers_ + 1] { work(number); }).detach();
    } catch (const std::exception&) {
      // The system has no more threads; the existing ones do the work.
    }
  }

  [[noreturn]] void work(int number) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (tickets_.load() == 0) {
        lock.unlock();
        spin_while([this] { return tickets_.load() == 0; });
        lock.lock();
        ++sleeping_;
        sleep_until(wake_, lock, [this] { return tickets_.load() > 0; });
        --sleeping_;
      }
      tickets_.fetch_sub(1);
      active_.fetch_add(1);
      Job& job = *job_;
      const int count = share_count_;
      lock.unlock();
      job.run(shares_, count, number % count);
      lock.lock();
      if (active_.fetch_sub(1) == 1) done_.notify_one();
    }
  }

  // Yields in each iteration, because a machine with few cores needs them.
  template <class Condition>
  static void spin_while(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    while (condition() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  }

  // A timed wait, because GCC 12 compiles the untimed one so that it does not load with the libstdc++ of GCC 11.
  template <class Condition>
  static void sleep_until(std::condition_variable& signal, std::unique_lock<std::mutex>& lock, Condition condition) {
    while (!signal.wait_for(lock, std::chrono::hours(1), condition)) {
    }
  }

  std::mutex caller_;  // held during a call
  std::mutex mutex_;   // guards the following members; spinning threads read the two atomics without it
  std::condition_variable wake_, done_;
  std::atomic<int> tickets_{0}, active_{0};
  int workers_ = 0, sleeping_ = 0;
  Job* job_ = nullptr;
  int share_count_ = 0;
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

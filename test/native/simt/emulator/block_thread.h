#pragma once
#include <atomic>
#include <thread>

// An OS thread that runs one job after another for a thread that waits for each. ThreadSanitizer does not see how they
// wait (this is for code that it does not instrument): it knows of no order but what grid.cc tells it.
namespace simt {

class BlockThread {
 public:
  BlockThread() { std::thread(&BlockThread::loop, this).detach(); }

  void start(void (*job)(void*), void* argument) {
    job_ = job;
    argument_ = argument;
    set(kBusy);
  }
  void wait() { state_.wait(kBusy, std::memory_order_acquire); }

 private:
  enum State : int { kIdle, kBusy };

  void loop() {
    for (;;) {
      state_.wait(kIdle, std::memory_order_acquire);
      job_(argument_);
      set(kIdle);
    }
  }
  void set(State state) {
    state_.store(state, std::memory_order_release);
    state_.notify_one();
  }

  std::atomic<int> state_ = kIdle;
  void (*job_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace simt

#pragma once
#if defined(SIMT_TSAN)
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

// An OS thread that runs one job after another for a thread that waits for each, by futexes that ThreadSanitizer does
// not see: it knows of no order but what engine.cc tells it.
namespace simt {

class BlockThread {
 public:
  BlockThread() {
    pthread_t thread;
    pthread_create(&thread, nullptr, [](void* self) { return static_cast<BlockThread*>(self)->loop(); }, this);
    pthread_detach(thread);
  }

  void run(void (*job)(void*), void* argument) {
    job_ = job;
    argument_ = argument;
    set(kJob);
    wait_for(kIdle);
  }

 private:
  enum { kIdle, kJob };

  void* loop() {
    for (;;) {
      wait_for(kJob);
      job_(argument_);
      set(kIdle);
    }
  }
  void set(int state) {
    __atomic_store_n(&state_, state, __ATOMIC_RELEASE);
    syscall(SYS_futex, &state_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
  void wait_for(int state) {
    for (int now; (now = __atomic_load_n(&state_, __ATOMIC_ACQUIRE)) != state;)
      syscall(SYS_futex, &state_, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
  }

  int state_ = kIdle;
  void (*job_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace simt
#endif

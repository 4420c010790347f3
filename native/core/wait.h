#pragma once
#include <chrono>
#include <condition_variable>
#include <mutex>

namespace st_moe {

// Until `is_done` holds, which is asked with the lock. Waits by timed waits, because GCC 12 compiles the untimed one so
// that it does not load with the libstdc++ of GCC 11.
void wait_until(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, const auto& is_done) {
  while (!changed.wait_for(lock, std::chrono::hours(1), is_done)) {
  }
}

}  // namespace st_moe

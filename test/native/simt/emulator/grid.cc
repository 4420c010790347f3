#include "emulator/grid.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator/block_thread.h"
#include "emulator/counting.h"
#include "emulator/engine.h"
#include "emulator/order.h"
#include "emulator/runtime_device.h"
#include "emulator/sanitizers.h"

// The blocks of a grid on the OS threads that SIMT_THREADS allows.
namespace simt {
namespace {

constexpr int kMostThreads = 64;

[[noreturn]] void refuse(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::exit(2);
}

int os_threads() {
  static const int threads = [] {
    const int64_t asked = setting("SIMT_THREADS", 1);
    if (asked < 1 || asked > kMostThreads) refuse("SIMT_THREADS must be from 1 to 64");
    if (kCounting && asked > 1) refuse("a build that counts accesses runs on one thread, without SIMT_THREADS");
    if (races_between_blocks() && asked == 1) refuse("SIMT_RACES=blocks needs SIMT_THREADS=2 or more");
    return static_cast<int>(asked);
  }();
  return threads;
}

// The OS threads besides the callers': taken for a launch, made when there is none left, and never ended.
class IdleThreads {
 public:
  std::vector<BlockThread*> take(size_t count) {
    std::vector<BlockThread*> taken;
    std::lock_guard<std::mutex> lock(mutex_);
    for (; taken.size() < count && !idle_.empty(); idle_.pop_back()) taken.push_back(idle_.back());
    while (taken.size() < count) taken.push_back(new BlockThread);
    return taken;
  }
  void give_back(const std::vector<BlockThread*>& threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.insert(idle_.end(), threads.begin(), threads.end());
  }

  static IdleThreads& instance() {
    static auto* const threads = new IdleThreads;
    return *threads;
  }

 private:
  std::mutex mutex_;
  std::vector<BlockThread*> idle_;
};

struct Launch {
  const Grid& grid;
  const Order& order;
  uint64_t offset, threads;
  char begin_fence = 0, end_fence = 0;
};

// Every `threads`-th block in the order of the launch, so that it does not depend on time which of them share an OS
// thread, whose blocks are in order to ThreadSanitizer. Blocks on different OS threads are ordered by nothing.
struct Share {
  Launch* launch;
  uint64_t first;

  void run() const {
    const Launch& l = *launch;
    const uint64_t blocks = l.grid.blocks();
    acquire(&launch->begin_fence);
    for (uint64_t i = first; i < blocks; i += l.threads) run_block(l.grid, l.order.permute(i, blocks, l.offset));
    release(&launch->end_fence);
  }
};

void run_on_threads(Launch launch) {
  std::vector<Share> shares;
  for (uint64_t i = 0; i < launch.threads; ++i) shares.push_back({&launch, i});
  const std::vector<BlockThread*> others = IdleThreads::instance().take(shares.size() - 1);
  release(&launch.begin_fence);
  for (size_t i = 0; i < others.size(); ++i)
    others[i]->start([](void* share) { static_cast<const Share*>(share)->run(); }, &shares[i + 1]);
  shares[0].run();
  for (BlockThread* thread : others) thread->wait();
  acquire(&launch.end_fence);
  IdleThreads::instance().give_back(others);
}

}  // namespace

bool races_between_blocks() {
#if defined(SIMT_TSAN)
  static const bool asked = is("SIMT_RACES", "blocks");
  return asked;
#else
  return false;
#endif
}

void run_grid(dim3 size, dim3 block, size_t dynamic_shared, void (*body)(void*), void* argument) {
  thread_local Order order;
  const Grid grid{size, block, dynamic_shared, body, argument};
  const uint64_t blocks = grid.blocks(), threads = static_cast<uint64_t>(os_threads());
  if constexpr (kCounting) {
    uint64_t index;
    for (uint64_t i = 0; next_block(i, blocks, &index); ++i) {
      run_block(grid, index);
      end_block(static_cast<int>(block.x * block.y * block.z));
    }
    return;
  }
  run_on_threads({grid, order, order.draw(blocks), std::min(threads, blocks)});
}

}  // namespace simt

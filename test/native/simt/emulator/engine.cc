#include "emulator/engine.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "emulator/counting.h"
#include "emulator/fiber.h"
#include "emulator/grid.h"
#include "emulator/order.h"
#include "emulator/sanitizers.h"

thread_local __align__(16) unsigned char shared_memory[simt::kMaxDynamicShared];

namespace simt {
namespace {

#if defined(SIMT_ASAN) || defined(SIMT_TSAN) || !defined(__OPTIMIZE__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kGuardBytes = 4096;
[[maybe_unused]] constexpr size_t kTopBytes = 4096;

// Threads that have ended pass their stacks on. To ThreadSanitizer that would look like sharing memory.
#if defined(SIMT_TSAN)
constexpr bool kSharedStacks = false;
#else
constexpr bool kSharedStacks = true;
#endif

struct Stack {
  char* bottom;  // above the guard page
  Stack* next_free;
};

enum class State { fresh, ready, at_collective, at_barrier, done };

struct Warp;

struct Thread {
  uint3 index;
  Warp* warp;
  int lane;
  State state;
  Stack* stack;
  void* stack_pointer;
  const char* waits_at;
  int line;
  unsigned mask;
  SanitizerFiber sanitizer;
};

struct Warp {
  unsigned live, arrived;
  Thread* threads[kLanes];
  Exchange exchange;
  char fence[kLanes][2];  // tokens for ThreadSanitizer, by lowest lane of the mask and parity
  unsigned meetings[kLanes];
};

struct Engine {
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / kLanes];
  int queue[kMaxThreads + 1];
  int queue_begin, queue_end;
  int count, live;
  int arrived, barrier_line;  // at the barrier
  unsigned barriers;
  char barrier_fence[2], block_fence;
  const Grid* grid;
  Thread* current;
  void* scheduler_pointer;
  SanitizerFiber scheduler;
  Stack* free_stacks;
  Order order;

  void push(int thread) {
    queue[queue_end] = thread;
    queue_end = queue_end == kMaxThreads ? 0 : queue_end + 1;
  }
  int pop() {
    if (queue_begin == queue_end) return -1;
    const int thread = queue[queue_begin];
    queue_begin = queue_begin == kMaxThreads ? 0 : queue_begin + 1;
    return thread;
  }
  void wake(int* items, int n) {
    order.arrange(items, n);
    for (int i = 0; i < n; ++i) {
      threads[items[i]].state = State::ready;
      push(items[i]);
    }
  }
};

thread_local Engine* engine = nullptr;  // never freed: a worker's thread is as rare as it is short of them

Stack* take_stack(Engine& e) {
  if (Stack* stack = e.free_stacks) {
    e.free_stacks = stack->next_free;
#if defined(SIMT_ASAN)  // frames that never returned are at its top
    __asan_unpoison_memory_region(stack->bottom + kStackBytes - kTopBytes, kTopBytes);
#endif
    return stack;
  }
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) die("no memory for the stack of a thread");
  mprotect(memory, kGuardBytes, PROT_NONE);
  return new Stack{static_cast<char*>(memory) + kGuardBytes, nullptr};
}

void suspend(Engine& e, Thread& thread) {
  before_switch(thread.sanitizer, e.scheduler, thread.state == State::done);
  simt_switch(&thread.stack_pointer, e.scheduler_pointer);
  after_switch(thread.sanitizer);
}

void release_barrier(Engine& e) {
  e.arrived = 0;
  ++e.barriers;
  if constexpr (kCounting) count_barrier();
  int waiting[kMaxThreads], n = 0;
  for (int i = 0; i < e.count; ++i)
    if (e.threads[i].state == State::at_barrier) waiting[n++] = i;
  e.wake(waiting, n);
}

void thread_main() {
  Engine& e = *engine;
  Thread& thread = *e.current;
  enter_fiber(e.scheduler);
  acquire(&e.block_fence);
  e.grid->body(e.grid->argument);
  release(&e.block_fence);
  thread.state = State::done;
  thread.warp->live &= ~(1u << thread.lane);
  --e.live;
  if (e.arrived > 0 && e.arrived == e.live) release_barrier(e);  // threads that have ended count as arrived
  suspend(e, thread);
  __builtin_trap();
}

void resume(Engine& e, Thread& thread) {
  if (thread.state == State::fresh) {
    if (!thread.stack) thread.stack = take_stack(e);
    thread.sanitizer.bottom = thread.stack->bottom;
    thread.sanitizer.size = kStackBytes;
    thread.sanitizer.fake_stack = nullptr;
#if defined(SIMT_TSAN)
    if (!races_between_blocks() && !thread.sanitizer.tsan) thread.sanitizer.tsan = __tsan_create_fiber(0);
#endif
    thread.stack_pointer = first_stack_pointer(thread.stack->bottom + kStackBytes, thread_main);
  }
  thread.state = State::ready;
  e.current = &thread;
  threadIdx = thread.index;
  before_switch(e.scheduler, thread.sanitizer, false);
  simt_switch(&e.scheduler_pointer, thread.stack_pointer);
  after_switch(e.scheduler);
  if (thread.state == State::done && kSharedStacks) {
    thread.stack->next_free = e.free_stacks;
    e.free_stacks = thread.stack;
    thread.stack = nullptr;
  }
}

void run_threads(Engine& e) {
  e.count = e.live = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  e.queue_begin = e.queue_end = e.arrived = 0;
  int first[kMaxThreads];
  for (int i = 0; i < e.count; ++i) {
    const unsigned n = static_cast<unsigned>(i);
    Thread& thread = e.threads[i];
    Warp& warp = e.warps[i / kLanes];
    thread.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / (blockDim.x * blockDim.y)};
    thread.warp = &warp;
    thread.lane = i % kLanes;
    thread.state = State::fresh;
    if (thread.lane == 0) warp.live = warp.arrived = 0;
    warp.live |= 1u << thread.lane;
    warp.threads[thread.lane] = &thread;
    first[i] = i;
  }
  e.order.arrange(first, e.count);
  for (int i = 0; i < e.count; ++i) e.push(first[i]);
  release(&e.block_fence);
  for (int next; (next = e.pop()) >= 0;) resume(e, e.threads[next]);
  if (e.live > 0) die("deadlock: no thread can run");
  acquire(&e.block_fence);
}

}  // namespace

void die(const char* what) {
  static std::atomic<bool> dying = false;
  while (dying.exchange(true)) pause();  // another thread ends the process
  std::fprintf(stderr, "simt: %s", what);
  if (engine && engine->current) {
    std::fprintf(stderr, ", block (%u, %u, %u), thread (%u, %u, %u)\n", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
                 threadIdx.y, threadIdx.z);
    int shown = 0;
    for (int i = 0; i < engine->count && shown < 40; ++i) {
      const Thread& thread = engine->threads[i];
      if (thread.state != State::at_barrier && thread.state != State::at_collective) continue;
      std::fprintf(stderr, "  thread %d waits at %s in line %d, mask %08x\n", i, thread.waits_at, thread.line,
                   thread.mask);
      ++shown;
    }
  }
  std::fputc('\n', stderr);
  std::fflush(stderr);
  std::abort();
}

void run_block(const Grid& grid, uint64_t index) {
  if (!engine) engine = new Engine{};
  Engine& e = *engine;
#if defined(SIMT_TSAN)
  if (!races_between_blocks()) e.scheduler.tsan = __tsan_get_current_fiber();
#endif
  e.grid = &grid;
  blockDim = grid.block;
  gridDim = grid.size;
  blockIdx = {static_cast<unsigned>(index % grid.size.x), static_cast<unsigned>(index / grid.size.x % grid.size.y),
              static_cast<unsigned>(index / (uint64_t{grid.size.x} * grid.size.y))};
  std::memset(shared_memory, 0xff, grid.dynamic_shared);
#if defined(SIMT_ASAN)
  __asan_poison_memory_region(shared_memory + grid.dynamic_shared, sizeof shared_memory - grid.dynamic_shared);
#endif
  run_threads(e);
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(shared_memory, sizeof shared_memory);
#endif
  e.current = nullptr;
}

int lane() {
  return engine->current->lane;
}

int running_thread() {
  return engine && engine->current ? static_cast<int>(engine->current - engine->threads) : -1;
}

void fence() {
  static char token;  // of all fences: to ThreadSanitizer each orders what is before it with what is after later ones
  release(&token);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  acquire(&token);
}

void barrier(int line) {
  Engine& e = *engine;
  Thread& thread = *e.current;
  thread.waits_at = "__syncthreads";
  thread.line = line;
  thread.mask = 0xffffffffu;
  thread.state = State::at_barrier;
  if (e.arrived == 0) {
    e.barrier_line = line;
  } else if (e.barrier_line != line) {
    die("threads of one block meet at different barriers");
  }
  void* fence = &e.barrier_fence[e.barriers & 1];
  release(fence);
  if (++e.arrived == e.live) release_barrier(e);
  suspend(e, thread);
  acquire(fence);
}

Cell collective(const char* name, int line, unsigned mask, Cell in, int source, Collective kind) {
  Engine& e = *engine;
  Thread& thread = *e.current;
  Warp& warp = *thread.warp;
  thread.waits_at = name;
  thread.line = line;
  thread.mask = mask;
  thread.state = State::at_collective;
  if (!(mask >> thread.lane & 1)) die("the calling lane is not in the mask of a warp collective");
  if (mask & ~warp.live) die("the mask of a warp collective names a lane that has ended or does not exist");
  warp.exchange.in[thread.lane] = in;
  warp.exchange.source[thread.lane] = source;
  warp.arrived |= 1u << thread.lane;
  const int lowest = __builtin_ctz(mask);
  void* token = &warp.fence[lowest][warp.meetings[lowest] & 1];
  if (kind == Collective::barrier) release(token);
  if ((warp.arrived & mask) == mask) {
    int others[kLanes], n = 0;
    for (int l = 0; l < kLanes; ++l) {
      if (!(mask >> l & 1)) continue;
      if (warp.threads[l]->mask != mask) die("lanes disagree on the mask of a warp collective");
      if (std::strcmp(warp.threads[l]->waits_at, name) != 0)
        die("lanes of one mask meet at different warp collectives");
      others[n++] = static_cast<int>(warp.threads[l] - e.threads);
    }
    warp.exchange.mask = mask;
    finish(warp.exchange, kind);
    warp.arrived &= ~mask;
    ++warp.meetings[lowest];
    e.wake(others, n);
  }
  suspend(e, thread);
  if (kind == Collective::barrier) acquire(token);
  return warp.exchange.out[thread.lane];
}

}  // namespace simt

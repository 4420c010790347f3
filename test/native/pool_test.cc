#include "cpu/pool.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "core/error.h"

using namespace st_moe;
using namespace st_moe::cpu;

#if !defined(_WIN32) && !defined(__SANITIZE_ADDRESS__)
namespace {
std::atomic<int> small_blocks{0}, large_blocks{0};
}

// In the place of the C library's, as a program's own allocator is.
extern "C" int posix_memalign(void** data, size_t alignment, size_t bytes) {
  ++(alignment < (size_t{2} << 20) && bytes < (size_t{2} << 20) ? small_blocks : large_blocks);
  *data = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  return *data ? 0 : ENOMEM;
}

// The one of Chromium ends the process where a block is large.
void test_foreign_malloc() {
  cache_trim();
  for (size_t bytes : {size_t{100}, size_t{1} << 20, size_t{2} << 20, size_t{5000000}, size_t{40} << 20}) {
    auto* data = static_cast<unsigned char*>(cache_allocate(bytes));
    check(data != nullptr, "%zu bytes are not to be had", bytes);
    if (data) data[0] = data[bytes - 1] = 1;
    cache_release(data, bytes);
  }
  cache_trim();
  check(small_blocks > 0 && large_blocks == 0, "malloc: %d blocks below 2 MB, %d above", small_blocks.load(),
        large_blocks.load());
}
#else
void test_foreign_malloc() {}  // there is none on Windows; under ASan all blocks are its own
#endif

namespace {

template <class F>
void run(int threads, int64_t count, F&& f) {
  using Fn = std::remove_reference_t<F>;
  pool_run(threads, count, [](void* fn, int64_t i) { (*static_cast<Fn*>(fn))(i); }, &f);
}

// Every index once, for many sizes and numbers of threads.
void test_coverage() {
  for (int threads : {0, 1, 2, 3, 8, 300})
    for (int64_t count : {-1, 0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(count > 0 ? static_cast<size_t>(count) : 0);
      run(threads, count, [&](int64_t i) { ++seen[static_cast<size_t>(i)]; });
      for (auto& n : seen)
        check(n == 1, "threads %d count %lld: an index ran %d times", threads, static_cast<long long>(count), n.load());
    }
}

// Each index waits for all others to have begun, so it takes as many threads as there are.
void test_threads() {
  for (const int threads : {2, 4, 7}) {
    std::atomic<int> begun{0}, late{0};
    run(threads, threads, [&](int64_t) {
      ++begun;
      const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      while (begun < threads && std::chrono::steady_clock::now() < until) std::this_thread::yield();
      late += begun < threads;
    });
    check(late == 0, "of %d threads %d were used", threads, threads - late.load());
  }
}

void test_many_small_calls() {
  std::atomic<int64_t> sum{0};
  for (int call = 0; call < 2000; ++call) run(3, 4, [&](int64_t i) { sum += i; });
  check(sum == 2000 * 6, "small calls: sum %lld", static_cast<long long>(sum.load()));
}

void test_nested() {
  std::atomic<int> runs{0};
  run(3, 8, [&](int64_t) { run(3, 8, [&](int64_t) { ++runs; }); });
  check(runs == 64, "nested calls ran %d of 64", runs.load());
}

// Callers that meet do not wait for each other and do not mix their work.
void test_contention() {
  std::vector<std::thread> users;
  std::atomic<int> wrong{0};
  for (int user = 0; user < 3; ++user)
    users.emplace_back([&wrong] {
      for (int call = 0; call < 300; ++call) {
        std::atomic<int> runs{0};
        run(3, 16, [&](int64_t) { ++runs; });
        if (runs != 16) ++wrong;
      }
    });
  for (std::thread& user : users) user.join();
  check(wrong == 0, "%d contended calls lost or repeated work", wrong.load());
}

void test_exceptions() {
  for (int threads : {1, 3}) {
    for (int round = 0; round < 50; ++round) {
      bool caught = false;
      try {
        run(threads, 64, [&](int64_t i) {
          if (i % 8 == 5) fail(ErrorCode::option, "index %lld", static_cast<long long>(i));
        });
      } catch (const Error& error) {
        caught = error.code() == ErrorCode::option && std::strncmp(error.what(), "index ", 6) == 0;
      }
      check(caught, "threads %d: the exception of a task did not arrive", threads);
    }
    std::atomic<int> runs{0};
    run(threads, 10, [&](int64_t) { ++runs; });
    check(runs == 10, "the pool does not work after an exception");
  }
}

void test_allocator() {
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{64}, size_t{65}, size_t{4096}, size_t{4097}, size_t{5000000}}) {
    void* data = cache_allocate(bytes);
    check(data && reinterpret_cast<uintptr_t>(data) % 64 == 0, "allocate(%zu) gave %p", bytes, data);
    if (data) std::memset(data, 1, bytes);
    cache_release(data, bytes);
  }
  check(cache_allocate((size_t{1} << 46) + 1) == nullptr && cache_allocate(SIZE_MAX) == nullptr, "absurd sizes");
  cache_release(nullptr, 10);
  bool threw = false;
  try {
    scratch_allocate(SIZE_MAX);
  } catch (const Error& error) {
    threw = error.code() == ErrorCode::out_of_memory;
  }
  check(threw, "scratch of an absurd size must throw");
  cache_trim();
  check(cached_bytes() == 0, "%zu bytes are cached after a trim", cached_bytes());
}

// A class must hold every size that maps to it, and waste little.
void test_size_classes() {
  TestRandom random{3};
  for (int i = 0; i < 3000; ++i) {
    const size_t bytes = 1 + (random.next() >> (random.below(24) + 6));
    cache_trim();
    void* data = cache_allocate(bytes);
    if (!data) continue;
    static_cast<char*>(data)[0] = static_cast<char*>(data)[bytes - 1] = 1;
    cache_release(data, bytes);
    const size_t held = cached_bytes();  // 0 where the sanitizer takes blocks back at once
    check(held == 0 || (held >= bytes && held <= bytes + bytes / 8 + 64), "%zu bytes took %zu", bytes, held);
  }
}

void test_allocator_threads() {
  std::vector<std::thread> users;
  std::atomic<int> wrong{0};
  for (int user = 0; user < 3; ++user)
    users.emplace_back([user, &wrong] {
      TestRandom random{static_cast<uint64_t>(user)};
      for (int i = 0; i < 2000; ++i) {
        const size_t bytes = 64 + static_cast<size_t>(random.below(3000));
        auto* a = static_cast<unsigned char*>(cache_allocate(bytes));
        auto* b = static_cast<unsigned char*>(scratch_allocate(bytes));
        std::memset(a, user, bytes);
        std::memset(b, user + 8, bytes);
        if (a[bytes / 2] != user || b[bytes / 2] != user + 8) ++wrong;
        cache_release(a, bytes);
        scratch_release(b, bytes);
      }
    });
  for (std::thread& user : users) user.join();
  check(wrong == 0, "%d blocks were shared between threads", wrong.load());
}

}  // namespace

int main() {
  test_coverage();
  test_threads();
  test_many_small_calls();
  test_nested();
  test_contention();
  test_exceptions();
  test_allocator();
  test_foreign_malloc();
  test_size_classes();
  test_allocator_threads();
  return check_result();
}

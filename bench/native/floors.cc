#include "bench.h"
#include "cpu/pool.h"

namespace st_moe::bench {
namespace {

constexpr int64_t kRounds = 200000;  // of a task: some tenths of a millisecond
constexpr int64_t kTasksPerThread = 16;
volatile float sink;  // so that nothing is left out

constexpr int64_t kReadBlock = 1 << 18;  // floats

template <class F>
void on_pool(int threads, int64_t count, F&& task) {
  cpu::pool_run(threads, count, [](void* f, int64_t i) { (*static_cast<std::remove_reference_t<F>*>(f))(i); }, &task);
}

Case register_floor(const Bench& bench, const char* name, int threads, std::function<double(int64_t)> kernel) {
  const int64_t rounds = bench.quick ? kRounds / 50 : kRounds;
  const int64_t tasks = kTasksPerThread * threads;
  return {.name = name,
          .params = {{"threads", std::to_string(threads)}},
          .run = [=] { on_pool(threads, tasks, [&](int64_t) { kernel(rounds); }); },
          .flops = kernel(1) * static_cast<double>(rounds * tasks)};
}

}  // namespace

Case fma_floor(const Bench& bench, int threads) {
  return register_floor(bench, "fma", threads, bench.kernels.multiply_add);
}

Case bf16_floor(const Bench& bench, int threads) {
  return register_floor(bench, "bf16-dot", threads, bf16_dot);
}

Case dram_floor(const Bench& bench, int threads) {
  // Some times the largest cache, read once: nothing is left in it from the last time.
  static const Buffer<float> data(bench, bench.quick ? 4 * kReadBlock : int64_t{1} << 26);
  const auto read = bench.kernels.read;
  return {.name = "dram-read",
          .params = {{"threads", std::to_string(threads)}},
          .run =
              [=] {
                on_pool(threads, data.size() / kReadBlock,
                        [&](int64_t i) { sink = read(data.get() + i * kReadBlock, kReadBlock); });
              },
          .bytes = static_cast<double>(data.size()) * sizeof(float)};
}

void floor_suite(const Bench& bench, Results& results) {
  for (const int threads : bench.threads) {
    Group group;
    group.add(fma_floor(bench, threads));
    if (has_bf16_dot()) group.add(bf16_floor(bench, threads));
    group.add(dram_floor(bench, threads));
    run_into(bench, results, group);
  }
}

}  // namespace st_moe::bench

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "cpu/pool.h"
#include "layer.h"

// What many cores would do, on a machine that has few. This program links the CPU backend with the pool below, which
// asks for as many threads as it is told but runs every index alone, one after the other, and times it. The least time
// of several runs counts. From these times it computes when each of the threads would end. bench/README.md says what
// that leaves out.
namespace st_moe::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Job {
  int threads;                  // at most one per index
  double before;                // µs since the last job, on the calling thread
  std::vector<double> indices;  // µs of each
};

std::vector<Job>* recorded = nullptr;
Clock::time_point job_end;
bool inside_job = false;

double since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

void keep_least(std::vector<Job>& all, const std::vector<Job>& run) {
  if (all.empty()) all = run;
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].before = std::min(all[i].before, run.at(i).before);
    for (size_t k = 0; k < all[i].indices.size(); ++k)
      all[i].indices[k] = std::min(all[i].indices[k], run[i].indices.at(k));
  }
}

struct Outcome {
  double work = 0, longest_share = 0, end = 0, moved = 0;  // µs; moved: of indices in the share of another thread
};

// The pool's rule: a thread takes the indices of its own share, then what is left of the next ones.
Outcome outcome_of(const Job& job) {
  const int n = job.threads;
  const int64_t count = static_cast<int64_t>(job.indices.size());
  Outcome out;
  std::vector<int64_t> next(static_cast<size_t>(n));
  std::vector<double> clock(static_cast<size_t>(n));
  const auto begin = [&](int i) { return count * i / n; };
  for (int i = 0; i < n; ++i) {
    double share = 0;
    for (int64_t k = begin(i); k < begin(i + 1); ++k) share += job.indices[static_cast<size_t>(k)];
    out.work += share;
    out.longest_share = std::max(out.longest_share, share);
    next[static_cast<size_t>(i)] = begin(i);
  }
  for (int64_t done = 0; done < count; ++done) {
    const size_t first = static_cast<size_t>(std::min_element(clock.begin(), clock.end()) - clock.begin());
    int owner = static_cast<int>(first);
    while (next[static_cast<size_t>(owner)] == begin(owner + 1)) owner = (owner + 1) % n;
    const double time = job.indices[static_cast<size_t>(next[static_cast<size_t>(owner)]++)];
    clock[first] += time;
    out.end = std::max(out.end, clock[first]);
    if (owner != static_cast<int>(first)) out.moved += time;
  }
  return out;
}

void report(const LayerSizes& s, int threads, const std::vector<Job>& jobs, bool list, double& one_thread) {
  double outside = 0, indices = 0, few_time = 0;
  int few = 0;
  Outcome sum;
  for (const Job& job : jobs) {
    const Outcome out = outcome_of(job);
    outside += job.before;
    sum.work += out.work, sum.longest_share += out.longest_share, sum.end += out.end, sum.moved += out.moved;
    indices += static_cast<double>(job.indices.size());
    if (job.threads < threads) ++few, few_time += out.end;
    if (list)
      std::printf("%5zu indices, %3d threads: before %7.0f, work %8.0f, longest share %7.0f, end %7.0f µs\n",
                  job.indices.size(), job.threads, job.before, out.work, out.longest_share, out.end);
  }
  const double mean = sum.work / threads, time = outside + sum.end;
  if (threads == 1) one_thread = time;
  std::printf("| D %lld, E %lld, %lld × %lld | %d ", static_cast<long long>(s.D), static_cast<long long>(s.E),
              static_cast<long long>(s.B), static_cast<long long>(s.N), threads);
  std::printf("| %zu | %.0f | %d (%.0f %%) | %.2f ", jobs.size(), indices / static_cast<double>(jobs.size()) / threads,
              few, 100 * few_time / time, sum.longest_share / mean);
  std::printf("| %.2f | %.0f %% | %.2f | %.0f %% | %.1f× |\n", sum.end / mean, 100 * sum.moved / sum.work,
              (outside + sum.work) / one_thread, 100 * outside / time, one_thread / time);
}

int run(bool list, int repetitions) {
  Options options;
  options.threads = {1};
  const std::unique_ptr<Platform> platform = make_platform(options);
  Harness harness(*platform, options.settings, "");
  const Bench bench{*platform, harness, options};
  std::printf(
      "| layer | threads | jobs | indices per thread | jobs with fewer | own shares | with the rest | moved | work | "
      "outside | limit |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  for (const LayerSizes& sizes : {LayerSizes{}, LayerSizes{.B = 16, .N = 128, .D = 128, .E = 8}}) {
    const Layer layer(bench, sizes);
    const Layer::Pass forward = layer.forward(DType::f32, true), backward = layer.backward(DType::f32);
    std::map<int, std::vector<Job>> least;
    for (int i = 0; i < repetitions; ++i)
      for (const int threads : {1, 2, 8, 16, 64}) {
        std::vector<Job> jobs;
        recorded = &jobs;
        job_end = Clock::now();
        forward(threads), backward(threads);
        recorded = nullptr;
        keep_least(least[threads], jobs);
      }
    double one_thread = 0;
    for (const auto& [threads, jobs] : least) report(sizes, threads, jobs, list, one_thread);
  }
  return 0;
}

}  // namespace
}  // namespace st_moe::bench

namespace st_moe::cpu {

void pool_run(int threads, int64_t count, void (*task)(void* argument, int64_t i), void* argument) {
  using namespace bench;
  const bool outer = inside_job, records = recorded && !outer && threads > 0 && count > 0;
  Job job{static_cast<int>(std::min<int64_t>(threads, count)), since(job_end), {}};
  inside_job = true;
  for (int64_t i = 0; i < count; ++i) {
    const Clock::time_point start = Clock::now();
    task(argument, i);
    if (records) job.indices.push_back(since(start));
  }
  inside_job = outer;
  if (!records) return;
  recorded->push_back(std::move(job));
  job_end = Clock::now();
}

}  // namespace st_moe::cpu

// Arguments: how often each layer runs; and anything, to list every job.
int main(int count, char** values) {
  return st_moe::bench::run(count > 2, count > 1 ? std::max(1, std::atoi(values[1])) : 5);
}

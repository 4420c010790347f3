#pragma once
#include <memory>
#include <stdexcept>
#include <string>

#include "harness.h"
#include "kernels.h"

// What the suites share: the backend, memory, and floors to compare with.
namespace st_moe::bench {

struct Bench {
  const Backend& backend;
  const Kernels& kernels;
  Settings settings;
  std::vector<int> threads;
  bool quick;  // small shapes: a test of the program, not of the machine

  const OpTable& ops() const { return backend.ops; }
};

// Throws where an op failed.
void expect_ok(const Status& status);

template <class Args>
void call(Op<Args> op, int threads, const Args& args) {
  expect_ok(op(Context{threads, nullptr}, args));
}

template <class T>
class Buffer {  // of the backend, filled with zeros
 public:
  Buffer(const Bench& bench, int64_t count);
  T* get() const { return data_.get(); }
  operator T*() const { return data_.get(); }
  int64_t size() const { return count_; }

 private:
  int64_t count_;
  std::shared_ptr<T> data_;
};

Buffer<float> normals(const Bench& bench, int64_t count, double deviation = 1);
Buffer<float> uniforms(const Bench& bench, int64_t count, double bound);
Buffer<int32_t> integers(const Bench& bench, int64_t count, int64_t below);

// Floors, with the work that a thread count does at best.
Case fma_floor(const Bench& bench, int threads);
Case bf16_floor(const Bench& bench, int threads);
Case dram_floor(const Bench& bench, int threads);

struct Group {
  std::vector<Case> cases;
  size_t add(Case one) {
    cases.push_back(std::move(one));
    return cases.size() - 1;
  }
};

// Each suite runs its groups and appends what it found.
using Results = std::vector<Result>;
void floor_suite(const Bench& bench, Results& results);
void gemm_suite(const Bench& bench, Results& results);
void op_suite(const Bench& bench, Results& results);
void layer_suite(const Bench& bench, Results& results);
void scaling_suite(const Bench& bench, Results& results);

inline void run_into(const Bench& bench, Results& results, const Group& group) {
  for (Result& result : run_group(group.cases, bench.settings)) {
    print_result(result);
    results.push_back(std::move(result));
  }
}

}  // namespace st_moe::bench

#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/blas.h"
#include "cuda/kernel.cuh"
#include "../../check.h"

// Work outside capture while a step is captured, and what environments do to each other.
using namespace st_moe;
using namespace st_moe::cuda;

namespace {

__global__ void set_kernel(float* x) {
  if (threadIdx.x == 0) *x = 1;
}

struct Environment {
  Environment() : stream(0), ctx{1, &stream} {}
  Stream stream;
  Context ctx;

  // The step, or null if the capture was broken.
  CapturedStep* end_capture(const char* what) {
    Status status{};
    size_t bytes = 0;
    CapturedStep* step = stream.end_capture(true, &status, &bytes);
    check(status.code == ErrorCode::none, "%s: %s", what, status.text);
    return step;
  }
};

int64_t graph_work(Environment& e, CapturedStep* step) {
  simt::Counters before, after;
  simt::simt_counters(&before);
  e.stream.replay(*step, nullptr, 0);
  float value;
  const Scratch<float> any(e.ctx, 1);
  e.stream.copy_out(&value, any.get(), sizeof value);
  simt::simt_counters(&after);
  return after.graph_launches - before.graph_launches;
}

// Work outside capture runs at once, on the stream that is not captured: copies, kernels and GEMMs in their order.
void test_outside_capture() {
  Environment e;
  const Scratch<float> x(e.ctx, 3);
  const std::vector<float> first{2, 3, 0}, second{5, 7, 0};
  std::vector<float> got(3);
  const Gemm product{1, 1, 1, x.get(), x.get() + 1, x.get() + 2, 1, 1, 1};
  e.stream.copy_in(x.get(), first.data(), 12);
  e.stream.begin_capture();
  multiply(e.ctx, DType::f32, DType::f32, product);
  e.stream.set_outside(true);
  e.stream.copy_in(x.get(), second.data(), 12);
  multiply(e.ctx, DType::f32, DType::f32, product);
  e.stream.copy_out(got.data(), x.get(), 12);
  check(got == std::vector<float>({5, 7, 35}), "a GEMM outside capture runs at once");
  e.stream.copy_in(x.get(), first.data(), 12);
  e.stream.set_outside(false);
  CapturedStep* step = e.end_capture("a step with work outside capture");
  if (!step->graph) return;
  e.stream.copy_out(got.data(), x.get(), 12);
  check(got == first, "a GEMM that is captured does not run");
  check(graph_work(e, step) == 1, "a replay is one launch");
  e.stream.copy_out(got.data(), x.get(), 12);
  check(got == std::vector<float>({2, 3, 6}), "a replay multiplies what is there");
  multiply(e.ctx, DType::f32, DType::f32, product);
  e.stream.destroy_step(step);
}

// A full device makes an environment wait for the others' memory, but not for the device while one of them captures.
void test_full_while_another_captures() {
  Environment capturing, full;
  const Scratch<float> x(capturing.ctx, 1);
  capturing.stream.begin_capture();
  launch(capturing.ctx, set_kernel, 1, 32, 0, x.get());
  setenv("SIMT_FULL_AT", "1", 1);
  check(full.stream.try_allocate(64) == nullptr, "a full device");
  unsetenv("SIMT_FULL_AT");
  CapturedStep* step = capturing.end_capture("a capture while another environment runs out of memory");
  capturing.stream.destroy_step(step);
  setenv("SIMT_FULL_AT", "1", 1);
  check(full.stream.try_allocate(64) == nullptr, "a full device, and nobody captures");
  unsetenv("SIMT_FULL_AT");
  void* memory = full.stream.try_allocate(64);
  check(memory != nullptr, "memory again");
  full.stream.release(memory);
}

// A device that is full of memory whose release is pending on another environment's stream waits for it.
void test_full_of_freed_memory() {
  constexpr size_t kMost = size_t{10} << 20;
  setenv("SIMT_MEMORY_MB", "16", 1);
  Environment freeing, full;
  freeing.stream.release(freeing.stream.allocate(kMost));
  void* memory = full.stream.try_allocate(kMost);
  check(memory != nullptr, "memory that another environment has freed");
  check(full.stream.try_allocate(kMost) == nullptr, "a full device");
  full.stream.release(memory);
  unsetenv("SIMT_MEMORY_MB");
}

}  // namespace

int main() {
  test_outside_capture();
  test_full_while_another_captures();
  test_full_of_freed_memory();
  simt::Counters counters;
  simt::simt_counters(&counters);
  check(counters.live_allocations == 0, "streams leave no memory behind");
  return check_result();
}

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "cuda/blas.h"
#include "cuda/blas_library.h"
#include "cuda/kernel.cuh"
#include "../../check.h"

// A kernel faults, and the error that comes next says so, whatever call it comes from: `simt_fault_test CASE`, a
// process for each, since a device does not recover.
using namespace st_moe;
using namespace st_moe::cuda;

namespace {

__global__ void innocent_kernel(float* x) {
  x[threadIdx.x] = 1;
}
template <class T>
__global__ void faulting_kernel(T* x) {
  x[threadIdx.x] = 2;
}

const char* const kText =
    "a fault occurred on the device, an illegal memory access was encountered (cudaErrorIllegalAddress), in ";

// The text of the error that `call` throws.
std::string thrown(const std::function<void()>& call, ErrorCode code = ErrorCode::device_fault) {
  try {
    call();
  } catch (const Error& error) {
    check(error.code() == code, "code of: %s", error.what());
    return error.what();
  }
  check(false, "nothing is thrown");
  return "";
}

void expect_text(const std::string& text, const std::string& kernels) {
  check(text == kText + kernels + "; this process cannot use the device again", "%s", text.c_str());
}

class Case {
 public:
  Case() : stream(0), ctx{1, &stream}, x(ctx, 64) {}

  void launch_all(bool fault = true) {
    launch(ctx, innocent_kernel, 1, 32, 0, x.get());
    if (fault) setenv("SIMT_FAULT_AT", "1", 1);
    launch(ctx, faulting_kernel<float>, 1, 32, 0, x.get());
  }
  void read() {
    float value;
    stream.copy_out(&value, x.get(), sizeof value);
  }
  void multiply_small() { multiply(ctx, DType::f32, DType::f32, {1, 1, 1, x.get(), x.get(), x.get() + 1, 1, 1, 1}); }

  Stream stream;
  Context ctx;
  Scratch<float> x;
};

const char* const kBoth =
    "one of the kernels since the last wait: faulting_kernel<float>, innocent_kernel "
    "(ST_MOE_CUDA_SYNC=1 tells which)";

struct Row {
  const char* name;
  void (*run)(Case& c);
};

const Row kRows[] = {
    {"copy",
     [](Case& c) {
       c.launch_all();
       const std::string first = thrown([&] { c.read(); });
       expect_text(first, kBoth);
       check(thrown([&] { c.read(); }) == first, "the same text again");
       check(thrown([&] { c.stream.copy_in(c.x.get(), &first, 4); }) == first, "the same text of a copy in");
     }},
    {"allocation",
     [](Case& c) {
       c.launch_all();
       check(c.stream.try_allocate(64) == nullptr, "no memory after a fault");
       expect_text(thrown([&] { c.stream.expect_memory_is_short(); }), kBoth);
     }},
    {"scratch",
     [](Case& c) {
       c.launch_all();
       expect_text(thrown([&] { c.stream.allocate(64); }), kBoth);
     }},
    {"launch",
     [](Case& c) {
       c.launch_all();
       expect_text(thrown([&] { launch(c.ctx, innocent_kernel, 1, 32, 0, c.x.get()); }), kBoth);
     }},
    {"blas",
     [](Case& c) {
       c.multiply_small();
       c.read();
       c.launch_all();
       expect_text(thrown([&] { c.multiply_small(); }), kBoth);
     }},
    {"new_handle",
     [](Case& c) {
       blas_library();
       c.launch_all();
       expect_text(thrown([&] { prepare_blas(c.stream); }), kBoth);
     }},
    {"gemm",
     [](Case& c) {
       c.multiply_small();
       c.read();
       setenv("SIMT_FAULT_AT", "1", 1);
       c.multiply_small();
       expect_text(thrown([&] { c.read(); }), "cublasGemmStridedBatchedEx");
     }},
    {"waits",
     [](Case& c) {
       c.launch_all(false);
       c.read();  // waits: those two are not to blame
       setenv("SIMT_FAULT_AT", "1", 1);
       launch(c.ctx, innocent_kernel, 1, 32, 0, c.x.get());
       expect_text(thrown([&] { c.read(); }), "innocent_kernel");
     }},
    {"sync",  // with ST_MOE_CUDA_SYNC=1
     [](Case& c) { expect_text(thrown([&] { c.launch_all(); }), "faulting_kernel<float>"); }},
    {"begin_capture",
     [](Case& c) {
       c.multiply_small();
       c.read();
       c.launch_all();
       expect_text(thrown([&] { c.stream.begin_capture(); }), kBoth);
     }},
    {"end_capture",  // another stream faults meanwhile
     [](Case& c) {
       Case other;
       c.stream.begin_capture();
       other.launch_all();
       const std::string text = thrown([&] { other.read(); });
       Status status{};
       size_t bytes = 0;
       CapturedStep* step = c.stream.end_capture(true, &status, &bytes);
       check(status.code == ErrorCode::device_fault && text == status.text, "%s", status.text);
       c.stream.destroy_step(step);
     }},
    {"replay",
     [](Case& c) {
       c.stream.begin_capture();
       c.launch_all();
       Status status{};
       size_t bytes = 0;
       CapturedStep* step = c.stream.end_capture(true, &status, &bytes);
       check(status.code == ErrorCode::none, "%s", status.text);
       expect_text(thrown([&] {
                     c.stream.replay(*step, nullptr, 0);
                     c.read();
                   }),
                   "the graph of a captured step");
       c.stream.destroy_step(step);
     }},
    {"environments",
     [](Case& c) {
       Case other;
       c.launch_all();
       const std::string text = thrown([&] { c.read(); });
       check(thrown([&] { other.read(); }) == text, "another environment says the same");
       check(thrown([] { Stream late(0); }) == text, "so does one that comes later");
     }},
    {"second_device",  // with SIMT_DEVICES=2
     [](Case& c) {
       Stream second(1);
       const Context ctx{1, &second};
       c.launch_all();
       thrown([&] { c.read(); });
       unsetenv("SIMT_FAULT_AT");
       float value = 0;
       Scratch<float> x(ctx, 32);
       launch(ctx, innocent_kernel, 1, 32, 0, x.get());
       second.copy_out(&value, x.get(), sizeof value);
       check(value == 1, "another device goes on");
     }},
    {"error",  // SIMT_FAULT_ERROR: another that ends the process's use of the device
     [](Case& c) {
       c.launch_all();
       const std::string text = thrown([&] { c.read(); });
       check(text.find(kBoth) != std::string::npos, "%s", text.c_str());
     }},
    {"memory",
     [](Case& c) {
       setenv("SIMT_FULL_AT", "1", 1);
       const std::string text = thrown([&] { c.stream.allocate(64); }, ErrorCode::out_of_memory);
       check(text.find("64 bytes of scratch") != std::string::npos, "%s", text.c_str());
       check(c.stream.try_allocate(64) == nullptr, "a full device");
       c.stream.expect_memory_is_short();
       unsetenv("SIMT_FULL_AT");
       c.read();
     }},
};

}  // namespace

int main(int count, char** words) {
  for (const Row& row : kRows) {
    if (count != 2 || std::strcmp(words[1], row.name) != 0) continue;
    {
      Case c;
      row.run(c);
    }
    return check_result();
  }
  std::fprintf(stderr, "usage: simt_fault_test CASE\n");
  return 2;
}

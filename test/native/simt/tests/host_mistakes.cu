#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cublas_api.h"

// Mistakes of the host with streams, events and memory, which a GPU may or may not show. `simt_host_mistakes <name>`
// must not end well, and `simt_host_mistakes none` must.
namespace {

constexpr int kCount = 64;
constexpr size_t kBytes = kCount * sizeof(float);

__global__ void double_kernel(const float* in, float* out) {
  out[threadIdx.x] = 2 * in[threadIdx.x];
}

// Doubles numbers on the device. What a mistake leaves out or adds, it does between these calls.
class Program {
 public:
  Program() {
    for (cudaStream_t* made : {&stream, &other}) cudaStreamCreateWithFlags(made, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    for (float** staging : {&sent, &received}) cudaMallocHost(staging, kBytes);
    for (float** memory : {&in, &out}) cudaMallocAsync(memory, kBytes, stream);
    for (int i = 0; i < kCount; ++i) sent[i] = static_cast<float>(i + 1);
  }
  ~Program() {
    for (float* memory : {in, out})
      if (memory) cudaFreeAsync(memory, stream);
    cudaDeviceSynchronize();
    if (event) cudaEventDestroy(event);
    for (float* staging : {sent, received})
      if (staging) cudaFreeHost(staging);
    for (cudaStream_t made : {stream, other}) cudaStreamDestroy(made);
  }

  void send() { cudaMemcpyAsync(in, sent, kBytes, cudaMemcpyHostToDevice, stream); }
  void compute(cudaStream_t on) {
    cudaLaunchConfig_t config{};
    config.blockDim = kCount;
    config.stream = on;
    cudaLaunchKernelEx(&config, double_kernel, static_cast<const float*>(in), out);
  }
  void receive(cudaStream_t from) { cudaMemcpyAsync(received, out, kBytes, cudaMemcpyDeviceToHost, from); }
  void wait() { cudaStreamSynchronize(stream); }
  bool right() const {
    for (int i = 0; i < kCount; ++i)
      if (received[i] != static_cast<float>(2 * (i + 1))) return false;
    return true;
  }
  bool usual() {
    send();
    compute(stream);
    receive(stream);
    wait();
    return right();
  }

  cudaStream_t stream = nullptr, other = nullptr;
  cudaEvent_t event = nullptr;
  float *sent = nullptr, *received = nullptr;  // pinned
  float *in = nullptr, *out = nullptr;         // of the device
};

// Whether the result is right.
const std::map<std::string, bool (*)(Program&)> kPrograms = {
    {"none",  // and nothing that may be done while work has not run
     [](Program& p) {
       std::vector<float> pageable(p.sent, p.sent + kCount);
       cudaMemcpyAsync(p.in, pageable.data(), kBytes, cudaMemcpyHostToDevice, p.stream);
       pageable.assign(kCount, 0);  // has been read
       p.compute(p.stream);
       p.receive(p.stream);
       cudaEventRecord(p.event, p.stream);
       cudaEventSynchronize(p.event);
       if (!p.right()) return false;
       std::memset(p.received, 0, kBytes);
       p.receive(p.stream);
       cudaDeviceSynchronize();
       if (!p.right()) return false;
       p.compute(p.stream);
       cudaFree(std::exchange(p.out, nullptr));  // waits for the device
       return true;
     }},
    {"sent_memory_changed",
     [](Program& p) {
       p.send();
       p.sent[0] = 5;
       p.compute(p.stream);
       p.receive(p.stream);
       p.wait();
       return p.right();
     }},
    {"sent_memory_freed",
     [](Program& p) {
       p.send();
       cudaFreeHost(std::exchange(p.sent, nullptr));
       p.compute(p.stream);
       p.receive(p.stream);
       p.wait();
       return p.right();
     }},
    {"received_memory_freed",
     [](Program& p) {
       p.send();
       p.compute(p.stream);
       p.receive(p.stream);
       cudaFreeHost(std::exchange(p.received, nullptr));
       p.wait();
       return true;
     }},
    {"pageable_copy_as_wait",
     [](Program& p) {
       p.send();
       p.compute(p.stream);
       p.receive(p.stream);
       const std::vector<float> next(kCount);
       cudaMemcpyAsync(p.in, next.data(), kBytes, cudaMemcpyHostToDevice, p.stream);
       return p.right();
     }},
    {"event_destroyed_as_wait",
     [](Program& p) {
       p.send();
       p.compute(p.stream);
       p.receive(p.stream);
       cudaEventRecord(p.event, p.stream);
       cudaEventDestroy(std::exchange(p.event, nullptr));
       return p.right();
     }},
    {"event_recorded_too_early",
     [](Program& p) {
       p.send();
       p.compute(p.stream);
       cudaEventRecord(p.event, p.stream);
       p.receive(p.stream);
       cudaEventSynchronize(p.event);
       return p.right();
     }},
    {"stream_destroyed_as_wait",
     [](Program& p) {
       p.send();
       p.compute(p.stream);
       p.receive(p.stream);
       cudaStreamDestroy(std::exchange(p.stream, p.other));
       cudaStreamCreateWithFlags(&p.other, cudaStreamNonBlocking);
       return p.right();
     }},
    {"default_stream_not_waited_for",
     [](Program& p) {
       p.send();
       p.wait();
       p.compute(nullptr);
       p.receive(nullptr);
       return p.right();
     }},
    {"streams_without_order",
     [](Program& p) {
       p.send();
       p.compute(p.stream);
       p.receive(p.other);
       cudaStreamSynchronize(p.other);
       return p.right();
     }},
    {"freed_by_another_stream",
     [](Program& p) {
       p.send();
       p.wait();
       p.compute(p.stream);
       cudaFreeAsync(std::exchange(p.in, nullptr), p.other);
       cudaStreamSynchronize(p.other);
       p.receive(p.stream);
       p.wait();
       return p.right();
     }},
    {"copied_after_it_is_freed",
     [](Program& p) {
       p.send();
       p.compute(p.stream);
       p.receive(p.stream);
       cudaFreeAsync(std::exchange(p.out, nullptr), p.other);
       cudaStreamSynchronize(p.other);
       p.wait();
       return p.right();
     }},
    {"workspace_freed",
     [](Program& p) {
       cublasHandle_t handle = nullptr;
       float* workspace = nullptr;
       const float one = 1, zero = 0;
       cublasCreate_v2(&handle);
       cublasSetStream_v2(handle, p.stream);
       cudaMallocAsync(&workspace, kBytes, p.stream);
       cublasSetWorkspace_v2(handle, workspace, kBytes);
       p.send();
       cublasGemmStridedBatchedEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 1, &one, p.in, CUDA_R_32F, 1, 1, p.in,
                                  CUDA_R_32F, 1, 1, &zero, p.out, CUDA_R_32F, 1, 1, 1, CUBLAS_COMPUTE_32F,
                                  CUBLAS_GEMM_DEFAULT);
       cublasDestroy_v2(handle);
       cudaFreeAsync(workspace, p.other);
       cudaStreamSynchronize(p.other);
       return true;
     }},
    {"used_after_it_is_freed",
     [](Program& p) {
       p.send();
       p.wait();
       cudaFreeAsync(p.in, p.stream);
       p.compute(p.stream);
       p.in = nullptr;
       p.receive(p.stream);
       p.wait();
       return p.right();
     }},
    {"freed_before_the_replay",
     [](Program& p) {
       p.send();
       p.wait();
       cudaGraph_t graph = nullptr;
       cudaGraphExec_t step = nullptr;
       cudaStreamBeginCapture(p.stream, cudaStreamCaptureModeRelaxed);
       p.compute(p.stream);
       cudaStreamEndCapture(p.stream, &graph);
       cudaGraphInstantiate(&step, graph);
       cudaGraphDestroy(graph);
       cudaGraphLaunch(step, p.stream);
       cudaGraphExecDestroy(step);  // this may be done
       cudaFreeAsync(std::exchange(p.in, nullptr), p.other);
       cudaStreamSynchronize(p.other);
       p.receive(p.stream);
       p.wait();
       return p.right();
     }},
    {"blocking_stream",
     [](Program&) {
       cudaStream_t blocking = nullptr;  // with the default stream, whose order the emulator does not know
       return cudaStreamCreateWithFlags(&blocking, 0) == cudaSuccess;
     }},
};

}  // namespace

int main(int count, char** words) {
  const auto found = count == 2 ? kPrograms.find(words[1]) : kPrograms.end();
  if (found == kPrograms.end()) {
    std::fprintf(stderr, "usage: simt_host_mistakes <mistake>\n");
    return 2;
  }
  Program program;
  const bool right = found->second(program);
  std::printf("%s\n", right ? "right" : "wrong");
  return right ? 0 : 1;
}

#include <algorithm>

#include "emulator/fault.h"
#include "emulator/runtime_device.h"
#include "emulator/streams.h"

// CUDA graphs: captured work of a stream, and its replays.
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Operation>> nodes;
  std::vector<const void*> uses;
};

namespace simt {
namespace {

struct Captures {
  std::mutex mutex;
  std::vector<CUstream_st*> streams;  // that are being captured
};
Captures& captures() {
  static auto* const instance = new Captures;
  return *instance;
}

}  // namespace

bool spoils_capture(cudaStream_t stream) {
  CUgraph_st* capture = queue_of(stream).capture.get();
  if (capture) capture->spoilt = true;
  return capture != nullptr;
}

bool spoils_captures_of_device() {
  int device = 0;
  cudaGetDevice(&device);
  bool any = false;
  std::lock_guard<std::mutex> lock(captures().mutex);
  for (CUstream_st* stream : captures().streams)
    if (stream->device == device) any = stream->capture->spoilt = true;
  return any;
}

}  // namespace simt

using namespace simt;

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  if (!stream || stream->capture) return report(cudaErrorStreamCaptureUnsupported);
  if (mode != cudaStreamCaptureModeRelaxed) return report(cudaErrorNotSupported);
  std::lock_guard<std::mutex> lock(captures().mutex);
  stream->capture = std::make_unique<CUgraph_st>();
  captures().streams.push_back(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!stream || !stream->capture) return report(cudaErrorStreamCaptureUnmatched);
  std::unique_ptr<CUgraph_st> capture;
  {
    std::lock_guard<std::mutex> lock(captures().mutex);
    std::vector<CUstream_st*>& streams = captures().streams;
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    capture = std::move(stream->capture);
  }
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  if (capture->spoilt) return report(cudaErrorStreamCaptureInvalidated);
  *graph = capture.release();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  auto made = std::make_unique<CUgraphExec_st>();
  made->nodes = std::make_shared<const std::vector<Operation>>(graph->nodes);
  for (const Operation& node : *made->nodes) made->uses.insert(made->uses.end(), node.uses.begin(), node.uses.end());
  *exec = made.release();
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  count(&Counters::graph_launches);
  const auto run = [nodes = exec->nodes] {
    for (const Operation& node : *nodes) node.work();
  };
  enqueue(stream, run, exec->uses);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return report(usable());
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return report(usable());
}

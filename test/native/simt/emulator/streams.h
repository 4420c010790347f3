#pragma once
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator/runtime_api.h"

// Streams and what is recorded of them, as the parts of the runtime share them.
using Work = std::function<void()>;

struct Operation {
  Work work;
  std::vector<const void*> uses;  // addresses of its memory; those of a kernel are unknown
  uint64_t number = 0;            // in the order in which the host asked for operations, of all streams
};
struct CUgraph_st {
  std::vector<Operation> nodes;
  std::atomic<bool> spoilt = false;  // another thread may spoil a capture
};
struct CUstream_st {
  int device = 0;
  std::mutex mutex;
  std::deque<Operation> queue;
  std::mutex running;                   // held while an operation runs: they run in order, whoever waits for them
  std::unique_ptr<CUgraph_st> capture;  // touched by the stream's own thread, and under the mutex of captures
};

namespace simt {

CUstream_st& queue_of(cudaStream_t stream);

// Work that cannot be captured ends the capture of a stream, if there is one.
bool spoils_capture(cudaStream_t stream);

bool run_one(CUstream_st& stream);  // one operation, in order; false: there is none
void drain(CUstream_st& stream);
void drain_device();  // every stream of the current device

// How many operations the host has asked for.
uint64_t operations();

// Ends the process if an operation that has not run uses the memory, which is to be freed: one of the first `count`.
void expect_unused(const void* memory, size_t bytes, uint64_t count = UINT64_MAX);

bool is_pinned_memory(const void* pointer);

void count(int64_t Counters::* counter);
size_t live_bytes();
void add_live(int64_t allocations, int64_t bytes);

// Whether any stream of the current device is being captured: then all these captures are spoilt.
bool spoils_captures_of_device();

}  // namespace simt

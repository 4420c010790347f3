#pragma once
#include <string>

#include "emulator/runtime_api.h"

// Errors and GPUs, for the rest of the runtime.
namespace simt {

cudaError_t driver();                   // success if there is one, and a GPU
cudaError_t report(cudaError_t error);  // the last error of this thread from now on, unless it is success

// Settings in the environment.
int64_t setting(const char* name, int64_t fallback);
bool is(const char* name, const char* value);
size_t gpu_bytes();
bool pool_holds_all();  // SIMT_POOL=full: there is no memory outside of the pool until it is trimmed

// An event that is to come at number n, where n is the value of a variable of the environment: counted from when it is
// set. Not for several threads at once.
class Trigger {
 public:
  explicit Trigger(const char* name) : name_(name) {}
  bool reached();  // counts; true from number n on

 private:
  const char* name_;
  std::string value_;
  int64_t asked_ = 0;
};

}  // namespace simt

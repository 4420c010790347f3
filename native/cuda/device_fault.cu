#include "cuda/device_fault.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"

namespace st_moe::cuda {

// The faults of each device, for all environments.
struct Faults {
  std::mutex mutex;
  std::vector<LaunchLog*> logs;
  std::map<int, std::string> texts;  // of the devices that have had one

  static Faults& instance() {
    static auto* const faults = new Faults;  // streams may outlive static objects
    return *faults;
  }

  // The latest kernel first: earlier ones have most likely ended.
  std::string kernels(int device) {
    constexpr size_t kMaxText = 700;
    std::string text;
    int named = 0, more = 0;
    for (LaunchLog* log : logs) {
      if (log->device_ != device) continue;
      std::lock_guard<std::mutex> lock(log->mutex_);
      more += log->forgotten_;
      for (int i = log->count_ - 1; i >= 0; --i) {
        if (text.size() + std::strlen(log->names_[i]) > kMaxText) {
          ++more;
          continue;
        }
        text += (named++ ? ", " : "") + std::string(log->names_[i]);
      }
    }
    if (named + more == 0) return "no kernel of this process was running";
    if (named + more == 1) return "in " + text;
    if (more) text += " and " + std::to_string(more) + " more";
    return "in one of the kernels since the last wait: " + text + " (ST_MOE_CUDA_SYNC=1 tells which)";
  }
};

// The errors after which, by the CUDA runtime reference, the process must restart.
static bool is_fault(cudaError_t status) {
  switch (static_cast<int>(status)) {
    case 226:  // cudaErrorContained, cudaErrorTensorMemoryLeak, cudaErrorMpsClientTerminated and
               // cudaErrorExternalDevice,
    case 721:  // which older toolkits do not name
    case 810:
    case 911:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorUnknown: return true;
    default: return false;
  }
}

void expect_no_fault(cudaError_t status) {
  int device = 0;
  cudaGetDevice(&device);
  Faults& faults = Faults::instance();
  std::lock_guard<std::mutex> lock(faults.mutex);
  auto found = faults.texts.find(device);
  if (found == faults.texts.end()) {
    if (!is_fault(status)) return;
    const std::string text = std::string("a fault occurred on the device, ") + cudaGetErrorString(status) + " (" +
                             cudaGetErrorName(status) + "), " + faults.kernels(device) +
                             "; this process cannot use the device again";
    found = faults.texts.emplace(device, text).first;
  }
  throw Error(ErrorCode::device_fault, found->second.c_str());
}

static void remove_all(std::string& text, const std::string& part) {
  for (size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
}

static std::string short_name(const char* mangled) {
  char* demangled = abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr);
  std::string name = demangled ? demangled : mangled;
  std::free(demangled);
  remove_all(name, "st_moe::cuda::");
  remove_all(name, "st_moe::");
  remove_all(name, "(anonymous namespace)::");
  if (name.rfind("void ", 0) == 0) name.erase(0, 5);
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (name[i] == '(' && depth == 0) return name.substr(0, i);
  }
  return name;
}

const char* kernel_name(const void* kernel) {
  static std::mutex mutex;
  static auto* const names = new std::map<const void*, std::string>;
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = names->find(kernel);
  if (found != names->end()) return found->second.c_str();
  const char* mangled = nullptr;
#if CUDART_VERSION >= 12030
  if (cudaFuncGetName(&mangled, kernel) != cudaSuccess) mangled = nullptr;
  cudaGetLastError();
#endif
  return names->emplace(kernel, mangled ? short_name(mangled) : "a kernel without a name").first->second.c_str();
}

bool waits_after_launch() {
  static const bool waits = [] {
    const char* wanted = std::getenv("ST_MOE_CUDA_SYNC");
    return wanted && std::strcmp(wanted, "1") == 0;
  }();
  return waits;
}

LaunchLog::LaunchLog(int device) : device_(device) {
  Faults& faults = Faults::instance();
  std::lock_guard<std::mutex> lock(faults.mutex);
  faults.logs.push_back(this);
}

LaunchLog::~LaunchLog() {
  Faults& faults = Faults::instance();
  std::lock_guard<std::mutex> lock(faults.mutex);
  faults.logs.erase(std::find(faults.logs.begin(), faults.logs.end(), this));
}

void LaunchLog::add(const char* name) {
  std::lock_guard<std::mutex> lock(mutex_);
  const char** end = names_ + count_;
  const char** at = std::find(names_, end, name);
  if (at == end && count_ == kNames) at = names_, ++forgotten_;
  if (at == end) {
    names_[count_++] = name;
    return;
  }
  std::rotate(at, at + 1, end);
  end[-1] = name;
}

void LaunchLog::clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  count_ = forgotten_ = 0;
}

}  // namespace st_moe::cuda

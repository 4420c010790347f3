#pragma once

// A range of NVTX, which profilers show, from the constructor to the destructor. It costs a call through a null pointer
// where no profiler has loaded its library. A toolkit without the headers compiles to no ranges.
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>

namespace st_moe::cuda {

class ProfileRange {
 public:
  explicit ProfileRange(const char* name) {
    nvtxEventAttributes_t range{};
    range.version = NVTX_VERSION;
    range.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
    range.messageType = NVTX_MESSAGE_TYPE_ASCII;
    range.message.ascii = name;
    nvtxDomainRangePushEx(domain(), &range);
  }
  ~ProfileRange() { nvtxDomainRangePop(domain()); }
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;

 private:
  static nvtxDomainHandle_t domain() {
    static const nvtxDomainHandle_t instance = nvtxDomainCreateA("st-moe");
    return instance;
  }
};

}  // namespace st_moe::cuda
#else
namespace st_moe::cuda {

struct ProfileRange {
  explicit ProfileRange(const char*) {}
};

}  // namespace st_moe::cuda
#endif

#pragma once
#include <cstdint>

// Replaces the header of NVTX, with the part that the backend uses. The emulator keeps what it was told
// (emulator/ranges.h).
#define NVTX_VERSION 3
#define NVTX_EVENT_ATTRIB_STRUCT_SIZE static_cast<uint16_t>(sizeof(nvtxEventAttributes_t))

enum nvtxMessageType_t { NVTX_MESSAGE_UNKNOWN = 0, NVTX_MESSAGE_TYPE_ASCII = 1 };
struct nvtxEventAttributes_t {
  uint16_t version, size;
  int32_t messageType;
  union {
    const char* ascii;
  } message;
};
typedef struct nvtxDomainRegistration_st* nvtxDomainHandle_t;

nvtxDomainHandle_t nvtxDomainCreateA(const char* name);
int nvtxDomainRangePushEx(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* attributes);
int nvtxDomainRangePop(nvtxDomainHandle_t domain);

#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>

#include "core/enum.h"

namespace st_moe {

// The binding maps them to the `code` of a MoeError. device_fault: a kernel faulted, the device is unusable in this
// process. peer_lost, timeout, process_group: a process group that no longer works.
ST_MOE_ENUM(ErrorCode, none, shape, dtype, device, disposed, option, out_of_memory, unsupported, non_finite,
            backend_unavailable, device_fault, peer_lost, timeout, process_group, internal);
constexpr size_t kErrorText = 1000;  // bytes of a text, the end included

// The one exception type of the native code. Text without the operation's name: the binding adds it.
class Error : public std::exception {
 public:
  Error(ErrorCode code, const char* text, const char* op = nullptr) noexcept;
  ErrorCode code() const noexcept { return code_; }
  const char* what() const noexcept override { return text_; }
  const char* op() const noexcept { return op_; }  // if it is another than the one that was called, else null

 private:
  ErrorCode code_;
  const char* op_;
  char text_[kErrorText];
};

// printf-style; throws Error.
[[noreturn]] void fail(ErrorCode code, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace st_moe

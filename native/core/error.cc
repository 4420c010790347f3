#include "core/error.h"

#include <cstdarg>
#include <cstdio>

namespace st_moe {

Error::Error(ErrorCode code, const char* text, const char* op) noexcept : code_(code), op_(op) {
  std::snprintf(text_, sizeof text_, "%s", text);
}

void fail(ErrorCode code, const char* format, ...) {
  char text[kErrorText];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw Error(code, text);
}

}  // namespace st_moe

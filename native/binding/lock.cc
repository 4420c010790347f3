#include <cerrno>
#include <climits>

#ifndef _WIN32
#include <sys/file.h>
#endif

#include "binding/call.h"

// Node has no kernel file locks.
namespace st_moe {

// (file) → 0, or the error number: EWOULDBLOCK if another process holds the lock. Released with the process, or when
// the file is closed.
static Napi::Value lock_file(Call& c) {
  const int file = static_cast<int>(c.integer("file", 0, INT_MAX));
#ifdef _WIN32
  static_cast<void>(file);
  return Napi::Number::New(c.env, ENOTSUP);
#else
  int result;
  do result = flock(file, LOCK_EX | LOCK_NB);
  while (result != 0 && errno == EINTR);
  return Napi::Number::New(c.env, result == 0 ? 0 : errno);
#endif
}

const std::vector<Entry> kLockEntries = {
    {"lockFile", lock_file, Order::free},
};

}  // namespace st_moe

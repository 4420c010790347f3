#include <cerrno>
#include <climits>

#ifdef _WIN32
#include <windows.h>
#else
#include <sys/file.h>
#endif

#include "binding/call.h"

// Node has no kernel file locks.
namespace st_moe {
namespace {

#ifdef _WIN32
// The descriptors of Node are known to its own C library alone.
HANDLE handle_of(int file) {
  using Find = HANDLE (*)(int);
  const auto find =
      reinterpret_cast<Find>(reinterpret_cast<void*>(GetProcAddress(GetModuleHandleW(nullptr), "uv_get_osfhandle")));
  return find ? find(file) : INVALID_HANDLE_VALUE;
}

int try_lock(int file) {
  const HANDLE handle = handle_of(file);
  if (handle == INVALID_HANDLE_VALUE) return ENOTSUP;
  OVERLAPPED place{};  // a byte behind every content: others can still read what is locked
  place.OffsetHigh = 0x40000000;
  if (LockFileEx(handle, LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &place)) return 0;
  return GetLastError() == ERROR_LOCK_VIOLATION ? EAGAIN : ENOTSUP;
}
#else
int try_lock(int file) {
  int result;
  do result = flock(file, LOCK_EX | LOCK_NB);
  while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}
#endif

// (file) → 0, or the error number: EAGAIN if another process holds the lock. Released with the process, or when the
// file is closed.
Napi::Value lock_file(Call& c) {
  return Napi::Number::New(c.env, try_lock(static_cast<int>(c.integer("file", 0, INT_MAX))));
}

}  // namespace

const std::vector<Entry> kLockEntries = {
    {"lockFile", lock_file, Order::free},
};

}  // namespace st_moe

#pragma once
#include <string>

#include "mpi/mpi_api.h"

namespace st_moe::mpi {

// The functions of an MPI library with the standard ABI.
struct Library {
#define FUNCTION(name, ...) int (*name)(__VA_ARGS__);
  ST_MOE_MPI_FUNCTIONS(FUNCTION)
#undef FUNCTION

  std::string version() const;          // one line
  std::string text_of(int code) const;  // of an error
};

struct LibraryProbe {
  const Library* library;  // null if it cannot be used; never closed
  std::string reason;      // then
};

// Opens a library, once per process and path. Does not initialize MPI. Never throws.
const LibraryProbe& open_library(const std::string& path);

// Restores the handlers of signals: libraries take SIGHUP and SIGUSR1 from the program.
class SignalHandlers {
 public:
  SignalHandlers();
  ~SignalHandlers();
  SignalHandlers(const SignalHandlers&) = delete;
  SignalHandlers& operator=(const SignalHandlers&) = delete;

 private:
  struct Saved;
  Saved* saved_;
};

}  // namespace st_moe::mpi

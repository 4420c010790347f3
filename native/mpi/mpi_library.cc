#include "mpi/mpi_library.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#include <signal.h>
#endif

#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

namespace st_moe::mpi {

std::string Library::version() const {
  std::string text(kMaxVersionString, '\0');
  int length = 0;
  if (Get_library_version(text.data(), &length) != kSuccess) return "unknown version";
  text.resize(text.find_first_of(std::string("\n\0", 2)));
  for (char& c : text)
    if (c == '\t') c = ' ';
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

std::string Library::text_of(int code) const {
  std::array<char, kMaxErrorString> text{};
  int length = 0;
  if (Error_string(code, text.data(), &length) != kSuccess) return "error " + std::to_string(code);
  return text.data();
}

#if defined(_WIN32)

struct SignalHandlers::Saved {};
SignalHandlers::SignalHandlers() : saved_(nullptr) {}
SignalHandlers::~SignalHandlers() = default;

static LibraryProbe open(const std::string&) {
  return {nullptr, "process groups are not available on Windows in this version"};
}

#else

struct SignalHandlers::Saved {
  std::array<struct sigaction, NSIG> actions;
  std::array<bool, NSIG> known;
};

SignalHandlers::SignalHandlers() : saved_(new Saved) {
  for (int i = 1; i < NSIG; ++i) saved_->known[i] = sigaction(i, nullptr, &saved_->actions[i]) == 0;
}

SignalHandlers::~SignalHandlers() {
  for (int i = 1; i < NSIG; ++i)
    if (saved_->known[i]) sigaction(i, &saved_->actions[i], nullptr);
  delete saved_;
}

static LibraryProbe open(const std::string& path) {
  // UCX, which MPICH uses, would replace the code of munmap and its like while other threads run it. It needs that only
  // to keep memory registered with a network adapter.
  setenv("UCX_MEM_EVENTS", "n", 0);
  setenv("UCX_LOG_FILE", "stderr", 0);  // by default it logs to standard output, which is the program's
  const SignalHandlers handlers;
  void* file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!file) {
    const char* reason = dlerror();
    return {nullptr, reason ? reason : "cannot be opened"};
  }
  auto library = std::make_unique<Library>();
  for (const char* name : {"MPI_Init_thread", "MPI_Abi_get_version"})
    if (!dlsym(file, name)) {
      const bool is_mpi = dlsym(file, "MPI_Init");
      return {nullptr, std::string(is_mpi ? "this MPI library lacks the standard ABI of MPI 5.0"
                                          : "this is not an MPI library") +
                           ": it has no " + name};
    }
#define FUNCTION(name, ...)                                                             \
  library->name = reinterpret_cast<decltype(library->name)>(dlsym(file, "MPI_" #name)); \
  if (!library->name) return {nullptr, "it has no MPI_" #name};
  ST_MOE_MPI_FUNCTIONS(FUNCTION)
#undef FUNCTION
  int major = 0, minor = 0;
  if (library->Abi_get_version(&major, &minor) != kSuccess || major != 1)
    return {nullptr, "this MPI library has its own ABI, not the standard one of MPI 5.0"};
  return {library.release(), ""};  // never closed
}

#endif

const LibraryProbe& open_library(const std::string& path) {
  static std::mutex mutex;
  static auto* const probes = new std::map<std::string, LibraryProbe>;
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = probes->find(path);
  if (found != probes->end() && found->second.library) return found->second;
  return probes->insert_or_assign(path, open(path)).first->second;  // a failure is tried again
}

}  // namespace st_moe::mpi

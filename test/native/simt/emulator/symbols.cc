#include "emulator/symbols.h"

#if defined(__linux__)
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "emulator/runtime_device.h"

namespace simt {
namespace {

struct Symbols {
  std::map<uintptr_t, std::string> functions;
  std::map<std::string, size_t> thread_locals;  // __shared__ arrays, by mangled names

#if defined(__linux__)
  uintptr_t base = 0;
  std::string path;

  Symbols() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* self) {
          const auto here = reinterpret_cast<uintptr_t>(&symbol_of);
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const ElfW(Phdr)& part = info->dlpi_phdr[i];
            const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
            if (part.p_type != PT_LOAD || here < begin || here >= begin + part.p_memsz) continue;
            auto& symbols = *static_cast<Symbols*>(self);
            symbols.base = info->dlpi_addr;
            symbols.path = *info->dlpi_name ? info->dlpi_name : "/proc/self/exe";
            return 1;
          }
          return 0;
        },
        this);
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status{};
    if (file < 0 || fstat(file, &status) != 0) return;
    const auto size = static_cast<size_t>(status.st_size);
    void* memory = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (memory == MAP_FAILED) return;
    read(static_cast<const char*>(memory));
    munmap(memory, size);
  }

  void read(const char* file) {
    const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(file);
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(file + header->e_shoff);
    for (int s = 0; s < header->e_shnum; ++s) {
      if (sections[s].sh_type != SHT_SYMTAB) continue;
      const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(file + sections[s].sh_offset);
      const char* names = file + sections[sections[s].sh_link].sh_offset;
      for (size_t i = 0; i < sections[s].sh_size / sizeof *symbols; ++i) {
        const char* name = names + symbols[i].st_name;
        if (std::strncmp(name, "_Z", 2) != 0) continue;
        const int type = symbols[i].st_info & 15;  // ELF64_ST_TYPE
        if (type == STT_FUNC && symbols[i].st_value) functions[base + symbols[i].st_value] = name;
        if (type == STT_TLS) thread_locals[name] = symbols[i].st_size;
      }
    }
  }
#endif

  static const Symbols& instance() {
    static const auto* const symbols = new Symbols;
    return *symbols;
  }
};

// Arrays of the function itself: _ZZ<function>E<name>.
size_t static_shared(const void* kernel) {
  const char* name = symbol_of(kernel);
  if (!name) return 0;
  const std::string prefix = std::string("_ZZ") + (name + 2) + "E";
  size_t bytes = 0;
  const auto& all = Symbols::instance().thread_locals;
  for (auto it = all.lower_bound(prefix); it != all.end() && it->first.rfind(prefix, 0) == 0; ++it) bytes += it->second;
  return bytes;
}

struct Kernel {
  size_t own, most_dynamic;
};

std::mutex mutex;

// Called with the mutex held.
Kernel& kernel_of(const void* function) {
  static auto* const kernels = new std::map<const void*, Kernel>;
  const auto found = kernels->find(function);
  if (found != kernels->end()) return found->second;
  constexpr size_t kDefault = 48 * 1024;
  const size_t own = static_shared(function);
  return kernels->emplace(function, Kernel{own, own < kDefault ? kDefault - own : 0}).first->second;
}

}  // namespace

const char* symbol_of(const void* kernel) {
  const auto& functions = Symbols::instance().functions;
  const auto found = functions.find(reinterpret_cast<uintptr_t>(kernel));
  return found == functions.end() ? nullptr : found->second.c_str();
}

bool shared_memory_fits(const void* kernel, size_t dynamic_bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  const Kernel& limits = kernel_of(kernel);
  return dynamic_bytes <= limits.most_dynamic && limits.own <= shared_memory_optin();
}

size_t shared_memory_optin() {
  switch (setting("SIMT_CAPABILITY", 90)) {
    case 75: return 64 * 1024;
    case 80:
    case 87: return 163 * 1024;
    case 86:
    case 89:
    case 120: return 99 * 1024;
    default: return 227 * 1024;
  }
}

}  // namespace simt

using namespace simt;

cudaError_t simt::allow_shared(const void* kernel, int bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  Kernel& limits = kernel_of(kernel);
  if (bytes < 0 || static_cast<size_t>(bytes) + limits.own > shared_memory_optin())
    return report(cudaErrorInvalidValue);
  limits.most_dynamic = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t cudaFuncGetName(const char** name, const void* function) {
  *name = symbol_of(function);
  return *name ? cudaSuccess : report(cudaErrorInvalidDeviceFunction);
}

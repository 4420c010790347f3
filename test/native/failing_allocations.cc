// Makes the allocations of one shared library of this process fail, and of no other: the entries of its import table
// are replaced, so nothing is built into it for this. A Node addon for test/children/out-of-memory.mjs; Linux only.
#include <elf.h>
#include <link.h>
#include <node_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<bool> armed{false};
std::atomic<int64_t> asked{0};
int64_t first = 0;     // number of the allocation that fails, from 1
bool forever = false;  // and all after it

bool fails() {
  if (!armed.load(std::memory_order_relaxed)) return false;
  const int64_t number = asked.fetch_add(1) + 1;
  return forever ? number >= first : number == first;
}

void* failing_new(size_t bytes) {
  if (fails()) throw std::bad_alloc();
  return ::operator new(bytes);
}

void* failing_new_array(size_t bytes) {
  if (fails()) throw std::bad_alloc();
  return ::operator new[](bytes);
}

void* failing_aligned_new(size_t bytes, std::align_val_t alignment) {
  if (fails()) throw std::bad_alloc();
  return ::operator new(bytes, alignment);
}

int failing_posix_memalign(void** data, size_t alignment, size_t bytes) {
  return fails() ? ENOMEM : posix_memalign(data, alignment, bytes);
}

void* failing_mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset) {
  if (!fails()) return mmap(address, bytes, protection, flags, file, offset);
  errno = ENOMEM;
  return MAP_FAILED;
}

struct Replacement {
  const char* symbol;
  void* function;
};
const Replacement kReplacements[] = {
    {"_Znwm", reinterpret_cast<void*>(failing_new)},
    {"_Znam", reinterpret_cast<void*>(failing_new_array)},
    {"_ZnwmSt11align_val_t", reinterpret_cast<void*>(failing_aligned_new)},
    {"posix_memalign", reinterpret_cast<void*>(failing_posix_memalign)},
    {"mmap", reinterpret_cast<void*>(failing_mmap)},
};

struct Target {
  const char* suffix;
  int replaced;
};

void replace(void** entry, void* function) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  void* start = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(entry) & ~(page - 1));
  mprotect(start, page, PROT_READ | PROT_WRITE);  // it is read-only once the library is loaded
  *entry = function;
}

void replace_in(ElfW(Addr) base, const ElfW(Rela) * table, size_t bytes, const ElfW(Sym) * symbols, const char* names,
                Target& target) {
  for (size_t i = 0; i < bytes / sizeof(ElfW(Rela)); ++i) {
    const char* name = names + symbols[ELF64_R_SYM(table[i].r_info)].st_name;
    for (const Replacement& replacement : kReplacements) {
      if (std::strcmp(name, replacement.symbol) != 0) continue;
      replace(reinterpret_cast<void**>(base + table[i].r_offset), replacement.function);
      ++target.replaced;
    }
  }
}

int visit(dl_phdr_info* info, size_t, void* data) {
  Target& target = *static_cast<Target*>(data);
  const size_t length = std::strlen(info->dlpi_name), wanted = std::strlen(target.suffix);
  if (length < wanted || std::strcmp(info->dlpi_name + length - wanted, target.suffix) != 0) return 0;
  const ElfW(Dyn)* dynamic = nullptr;
  for (int i = 0; i < info->dlpi_phnum; ++i)
    if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
      dynamic = reinterpret_cast<const ElfW(Dyn)*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
  const auto value = [&](ElfW(Sxword) tag) -> ElfW(Addr) {
    for (const ElfW(Dyn)* entry = dynamic; entry && entry->d_tag != DT_NULL; ++entry)
      if (entry->d_tag == tag) return entry->d_un.d_ptr;
    return 0;
  };
  const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(value(DT_SYMTAB));
  const auto* names = reinterpret_cast<const char*>(value(DT_STRTAB));
  const auto replace_all = [&](ElfW(Sxword) table, ElfW(Sxword) bytes) {
    replace_in(info->dlpi_addr, reinterpret_cast<const ElfW(Rela)*>(value(table)), value(bytes), symbols, names,
               target);
  };
  replace_all(DT_RELA, DT_RELASZ);
  replace_all(DT_JMPREL, DT_PLTRELSZ);
  return 1;
}

// (end of the library's path) → how many entries were replaced
napi_value install(napi_env env, napi_callback_info info) {
  napi_value argument, result;
  size_t count = 1;
  char suffix[256] = "";
  napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr);
  napi_get_value_string_utf8(env, argument, suffix, sizeof suffix, nullptr);
  Target target{suffix, 0};
  dl_iterate_phdr(visit, &target);
  napi_create_int32(env, target.replaced, &result);
  return result;
}

// (n, forever): allocation n from now on fails, or all from n on
napi_value arm(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  size_t count = 2;
  napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr);
  napi_get_value_int64(env, arguments[0], &first);
  napi_get_value_bool(env, arguments[1], &forever);
  asked = 0;
  armed = true;
  return nullptr;
}

// → how many allocations there were since arm
napi_value disarm(napi_env env, napi_callback_info) {
  armed = false;
  napi_value result;
  napi_create_int64(env, asked.load(), &result);
  return result;
}

// → whether an allocation of JavaScript's, counted with the others, is to fail
napi_value next_fails(napi_env env, napi_callback_info) {
  napi_value result;
  napi_get_boolean(env, fails(), &result);
  return result;
}

napi_value initialize(napi_env env, napi_value exports) {
  const napi_property_descriptor properties[] = {
      {"install", nullptr, install, nullptr, nullptr, nullptr, napi_default, nullptr},
      {"arm", nullptr, arm, nullptr, nullptr, nullptr, napi_default, nullptr},
      {"disarm", nullptr, disarm, nullptr, nullptr, nullptr, napi_default, nullptr},
      {"nextFails", nullptr, next_fails, nullptr, nullptr, nullptr, napi_default, nullptr},
  };
  napi_define_properties(env, exports, sizeof properties / sizeof *properties, properties);
  return exports;
}

}  // namespace

NAPI_MODULE(failing_allocations, initialize)

#include "emulator/counting.h"

#if defined(SIMT_COUNT)
#include <cxxabi.h>
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/engine.h"
#include "emulator/runtime_device.h"
#include "emulator/symbols.h"

// What the compiler adds to (count_flops.cc).
extern "C" {
[[gnu::visibility("default")]] uint64_t simt_flops = 0, simt_issued = 0, simt_issued64 = 0;
}

namespace simt {
namespace {

constexpr size_t kArena = size_t{1} << 42, kPage = 4096;
constexpr int kSector = 32, kBanks = 32, kWord = 4;
constexpr uint64_t kFewestBlocks = 24;
constexpr int64_t kEnoughAccesses = 48 << 20;
constexpr int64_t kEnoughProducts = int64_t{1} << 33;
constexpr double kEnoughBytes = 256e6;

// ---- device memory

struct Arena {
  char* begin;
  size_t used = 0;
  std::map<size_t, size_t> allocations;  // offset → bytes
  std::mutex mutex;

  Arena() {
    void* memory = mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    begin = memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
  }
  bool holds(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(begin) < kArena; }
};
Arena& arena() {
  static auto* const instance = new Arena;
  return *instance;
}

// ---- lines of the file

void write_line(const std::string& line) {
  static std::mutex mutex;
  static std::string open_name;
  static std::FILE* file = nullptr;
  const char* name = std::getenv("SIMT_COUNTS");
  std::lock_guard<std::mutex> lock(mutex);
  if (open_name != (name ? name : "")) {
    if (file) std::fclose(file);
    open_name = name ? name : "";
    file = name && *name ? std::fopen(name, "a") : nullptr;
  }
  if (!file) return;
  std::fprintf(file, "%s\n", line.c_str());
  std::fflush(file);
}

std::string member(const char* name, double value) {
  char text[64];
  std::snprintf(text, sizeof text, ",\"%s\":%.17g", name, value);
  return text;
}

std::string readable(const void* kernel) {
  const char* name = symbol_of(kernel);
  if (!name) return "unknown";
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : name;
}

// ---- accesses of a launch

enum Space { kRead, kWrite, kSharedRead, kSharedWrite, kSpaces };

struct Access {
  uint64_t address;
  int bytes;
};

// A place of the code, and what each thread of the block accesses there, in order.
struct Site {
  Space space;
  std::array<std::vector<Access>, kMaxThreads> of_thread;
};

struct Sums {
  double asked = 0, sectors = 0, wavefronts = 0, fewest = 0;
};

struct Page {
  std::array<uint32_t, kPage / kSector> block;  // the first that touches a sector, counted from 1; 0: none
  std::bitset<kPage / kSector> shared;          // with other blocks
  double moved = 0;                             // sectors of all accesses
};

struct Bytes {
  double distinct = 0, moved = 0;
};

struct Recorder {
  uintptr_t shared_begin = 0, shared_end = 0;
  std::unordered_map<uintptr_t, std::unique_ptr<Site>> sites;  // by address of the code and space
  std::array<Sums, kSpaces> sums;
  std::array<std::unordered_map<uint64_t, Page>, 2> touched;
  std::string line;  // of the file, begun
  uint64_t enough = static_cast<uint64_t>(setting("SIMT_ENOUGH", kEnoughAccesses));
  uint64_t accesses = 0, barriers = 0, blocks_run = 0, blocks = 0;
  size_t longest = 0;  // most reads of global memory by a thread

  // Arrays in shared memory are thread-local variables of this file.
  void find_shared() {
    shared_memory[0] = 0;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* self) {
          Recorder& r = *static_cast<Recorder*>(self);
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type != PT_TLS || !info->dlpi_tls_data) continue;
            const auto begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
            const auto end = begin + info->dlpi_phdr[i].p_memsz, here = reinterpret_cast<uintptr_t>(shared_memory);
            if (here >= begin && here < end) r.shared_begin = begin, r.shared_end = end;
          }
          return 0;
        },
        this);
  }

  bool is_shared(uintptr_t address) const {
    const auto within = [address](const auto& builtin) {
      return address - reinterpret_cast<uintptr_t>(&builtin) < sizeof builtin;
    };
    return address >= shared_begin && address < shared_end && !within(threadIdx) && !within(blockIdx) &&
           !within(blockDim) && !within(gridDim);
  }

  void add(uintptr_t address, int bytes, bool write, uintptr_t place) {
    const int thread = running_thread();
    if (thread < 0) return;
    const bool global = arena().holds(address);
    if (!global && !is_shared(address)) return;
    const Space space = static_cast<Space>((global ? 0 : 2) + write);
    std::unique_ptr<Site>& site = sites[place * kSpaces + space];
    if (!site) site = std::make_unique<Site>(Site{space, {}});
    site->of_thread[static_cast<size_t>(thread)].push_back({address, bytes});
    ++accesses;
  }

  // The n-th access of each lane of a warp.
  void add_warp(Space space, std::vector<Access>& lanes) {
    std::sort(lanes.begin(), lanes.end(), [](const Access& a, const Access& b) { return a.address < b.address; });
    Sums& sum = sums[space];
    uint64_t end = 0, last_sector = 0, last_word = 0;
    std::array<int, kBanks> words_of_bank{};
    int words = 0;
    for (const auto& [address, bytes] : lanes) {
      const uint64_t stop = address + static_cast<uint64_t>(bytes);
      sum.asked += static_cast<double>(stop - std::min(stop, std::max(address, end)));
      end = std::max(end, stop);
      if (space <= kWrite) {
        for (uint64_t sector = address / kSector; sector * kSector < stop; ++sector) {
          if (sector == last_sector) continue;
          last_sector = sector;
          ++sum.sectors;
          touch(space, sector);
        }
        continue;
      }
      for (uint64_t word = address / kWord; word * kWord < stop; ++word) {
        if (word <= last_word) continue;  // lanes are sorted, and may read the same words
        last_word = word;
        ++words_of_bank[word % kBanks];
        ++words;
      }
    }
    if (space <= kWrite) return;
    sum.wavefronts += *std::max_element(words_of_bank.begin(), words_of_bank.end());
    sum.fewest += (words + kBanks - 1) / kBanks;
  }

  void touch(Space space, uint64_t sector) {
    Page& page = touched[space][sector * kSector / kPage];
    ++page.moved;
    const size_t i = sector % page.block.size();
    const auto block = static_cast<uint32_t>(blocks_run + 1);
    if (page.block[i] == 0) page.block[i] = block;
    if (page.block[i] != block) page.shared.set(i);
  }

  void end_block(int threads) {
    for (size_t i = 0; i < static_cast<size_t>(threads); ++i) {
      size_t reads = 0;
      for (const auto& [place, site] : sites)
        if (site->space == kRead) reads += site->of_thread[i].size();
      longest = std::max(longest, reads);
    }
    std::vector<Access> lanes;
    for (auto& [place, site] : sites)
      for (int first = 0; first < threads; first += kLanes)
        for (size_t n = 0;; ++n) {
          lanes.clear();
          for (int i = first; i < std::min(first + kLanes, threads); ++i)
            if (const auto& all = site->of_thread[static_cast<size_t>(i)]; n < all.size()) lanes.push_back(all[n]);
          if (lanes.empty()) break;
          add_warp(site->space, lanes);
        }
    for (auto& [place, site] : sites)
      for (int i = 0; i < threads; ++i) site->of_thread[static_cast<size_t>(i)].clear();
    ++blocks_run;
  }

  // Bytes of the sectors that the launch touches in each allocation, once and in all accesses. Those of one block are
  // scaled, but no allocation has more distinct ones than bytes.
  std::vector<Bytes> of_allocations(Space space, double scale) const {
    const Arena& a = arena();
    std::map<uint64_t, Bytes> of_allocation;
    for (const auto& [number, page] : touched[space]) {
      const uint64_t offset = number * kPage - reinterpret_cast<uintptr_t>(a.begin);
      const auto all = page.block.size() - static_cast<size_t>(std::count(page.block.begin(), page.block.end(), 0u));
      const auto shared = static_cast<double>(page.shared.count());
      Bytes& bytes = of_allocation[std::prev(a.allocations.upper_bound(offset))->first];
      bytes.distinct += kSector * (shared + (static_cast<double>(all) - shared) * scale);
      bytes.moved += kSector * page.moved * scale;
    }
    std::vector<Bytes> result;
    for (const auto& [offset, bytes] : of_allocation)
      result.push_back({std::min(bytes.distinct, static_cast<double>(a.allocations.at(offset))), bytes.moved});
    return result;
  }
};

thread_local Recorder* recorder = nullptr;

}  // namespace

void* reserve(size_t bytes) {
  Arena& a = arena();
  std::lock_guard<std::mutex> lock(a.mutex);
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  if (!a.begin || size > kArena - a.used) return nullptr;
  a.allocations[a.used] = bytes;
  a.used += size;  // never given twice: there is more than a program allocates
  return a.begin + a.used - size;
}

void release_reserved(void* memory, size_t bytes) {
  Arena& a = arena();
  std::lock_guard<std::mutex> lock(a.mutex);
  a.allocations.erase(static_cast<size_t>(static_cast<char*>(memory) - a.begin));
  madvise(memory, (bytes + kPage - 1) / kPage * kPage, MADV_DONTNEED);
}

void begin_count(const void* kernel, dim3 grid, dim3 block) {
  recorder = new Recorder;
  simt_flops = simt_issued = simt_issued64 = 0;
  recorder->find_shared();
  recorder->blocks = uint64_t{grid.x} * grid.y * grid.z;
  recorder->line = "{\"kernel\":\"" + readable(kernel) + "\"" +
                   member("blocks", static_cast<double>(recorder->blocks)) +
                   member("threads", block.x * block.y * block.z);
}

void end_count() {
  const Recorder& r = *recorder;
  std::string line = r.line;
  const double scale = static_cast<double>(r.blocks) / static_cast<double>(r.blocks_run);
  std::lock_guard<std::mutex> lock(arena().mutex);
  line += member("blocksRun", static_cast<double>(r.blocks_run));
  const std::pair<const char*, Space> kinds[] = {{"read", kRead}, {"write", kWrite}};
  for (const auto& [name, space] : kinds) {
    const auto named = [name = name](const char* what) { return std::string(name) + what; };
    double distinct = 0;
    std::string all;
    for (const Bytes& bytes : r.of_allocations(space, scale)) {
      distinct += bytes.distinct;
      char text[80];
      std::snprintf(text, sizeof text, "%s[%.17g,%.17g]", all.empty() ? "" : ",", bytes.distinct, bytes.moved);
      all += text;
    }
    line += member(name, r.sums[space].asked * scale) +
            member(named("Sectors").c_str(), r.sums[space].sectors * scale) +
            member(named("Distinct").c_str(), distinct);
    if (space == kRead) line += ",\"reads\":[" + all + "]";
  }
  line += member("wavefronts", (r.sums[kSharedRead].wavefronts + r.sums[kSharedWrite].wavefronts) * scale) +
          member("fewestWavefronts", (r.sums[kSharedRead].fewest + r.sums[kSharedWrite].fewest) * scale) +
          member("barriers", static_cast<double>(r.barriers) * scale) +
          member("longest", static_cast<double>(r.longest));
#if defined(SIMT_COUNT_FLOPS)
  line += member("flops", static_cast<double>(simt_flops) * scale) +
          member("issued", static_cast<double>(simt_issued) * scale) +
          member("issued64", static_cast<double>(simt_issued64) * scale);
#endif
  write_line(line + "}");
  delete recorder;
  recorder = nullptr;
}

// A step of about the golden ratio of the blocks, so that the first of them are spread over the grid.
bool next_block(uint64_t step, uint64_t blocks, uint64_t* block) {
  if (step == blocks || (step >= kFewestBlocks && recorder->accesses > recorder->enough)) return false;
  uint64_t stride = std::max<uint64_t>(1, static_cast<uint64_t>(0.618 * static_cast<double>(blocks)));
  while (std::gcd(stride, blocks) != 1) ++stride;
  *block = static_cast<uint64_t>(static_cast<unsigned __int128>(step) * stride % blocks);
  return true;
}

void end_block(int threads) {
  recorder->end_block(threads);
}

void count_barrier() {
  ++recorder->barriers;
}

void count_gemm(int m, int n, int k, int count, const char* types, double bytes) {
  write_line("{\"gemm\":\"" + std::string(types) + "\"" + member("m", m) + member("n", n) + member("k", k) +
             member("count", count) + member("flops", 2.0 * m * n * k * count) + member("bytes", bytes) + "}");
}

void count_groups(size_t groups, double flops, const char* types, double bytes) {
  write_line("{\"gemm\":\"" + std::string(types) + "\"" + member("groups", static_cast<double>(groups)) +
             member("flops", flops) + member("bytes", bytes) + "}");
}

void count_bytes(const char* what, double read, double written) {
  write_line("{\"" + std::string(what) + "\":true" + member("read", read) + member("write", written) + "}");
}

bool only_counted(double bytes) {
  return bytes > kEnoughBytes;
}

bool only_counted_products(double products) {
  return products > static_cast<double>(setting("SIMT_ENOUGH_PRODUCTS", kEnoughProducts));
}

void count_access(const volatile void* at, int bytes, bool write, const void* place) {
  if (recorder) recorder->add(reinterpret_cast<uintptr_t>(at), bytes, write, reinterpret_cast<uintptr_t>(place));
}

}  // namespace simt
#endif

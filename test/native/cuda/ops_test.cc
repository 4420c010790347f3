// The table of cases on the device of a plugin against the CPU, twice with the same bits and once with tensors that are
// not aligned. What a kernel finds wrong is
// reported by the next copy, once, and touches no other row. Arguments: the groups to run, or all.
#include <algorithm>
#include <deque>

#include "device.h"

using namespace st_moe;
using namespace st_moe::test;

namespace {

constexpr double kFloat = 1e-6, kDouble = 1e-14;

// The last results, for backwards of their case and for twins.
struct Recent {
  std::string name;
  std::vector<Bytes> bytes;
};
std::deque<Recent> recent;

std::string key_of(const Case& c) {
  return c.name() + (c.host_copies ? ", host copies" : "");
}

std::vector<Bytes> result_of(const Case& c, const Problem& problem) {
  const std::string key = key_of(c);
  for (const Recent& last : recent)
    if (last.name == key) return last.bytes;
  return run_on_device(problem, key, c.host_copies).bytes;
}

void fit_to_device(const Case& c, Problem& problem) {
  problem.fit(machine().gpu(), [&](const Problem& forward) { return Result{{}, result_of(*c.forward, forward)}; });
}

// The other case has been compared with the CPU.
void compare_with_twin(const Table& table, const Case& c, const Case::Twin& twin, const Result& got) {
  Problem problem = table.problem(*twin.other);
  fit_to_device(*twin.other, problem);
  const std::vector<Bytes> other = result_of(*twin.other, problem);
  for (size_t i = 0; i < other.size(); ++i)
    check(std::ranges::find(twin.equal, c.empty.tensors[i].name) == twin.equal.end() || got.bytes[i] == other[i],
          "%s: other bits of %s than %s", c.name().c_str(), c.empty.tensors[i].name.c_str(),
          twin.other->name().c_str());
}

void compare_with_cpu(const Case& c, const std::string& name, const Problem& problem, const Problem& on_host,
                      const Result& first) {
  const Result second = run_on_device(problem, name, c.host_copies);
  check(second.bytes == first.bytes, "%s: other bits the second time", name.c_str());
  const Result on_cpu = run_on_host(on_host, cpu_backend().ops, 1, c.host_copies);
  check(on_cpu.status.code == ErrorCode::none, "%s on the CPU: %s", name.c_str(), on_cpu.status.text);
  Problem wanted = on_host;
  for (size_t i = 0; i < wanted.tensors.size(); ++i)
    wanted.tensors[i].numbers = wanted.tensors[i].decode(on_cpu.bytes[i]);
  compare(c, name, wanted, first.bytes, c.device_factor, kFloat, kDouble);
#if !defined(__SANITIZE_THREAD__)  // it would find the same races, and the lane would take twice as long
  const Result shifted = run_on_device(problem, name, c.host_copies, 1);
  compare(c, name + " not aligned", wanted, shifted.bytes, c.device_factor, kFloat, kDouble);
#endif
}

void run(const Table& table, const Case& c) {
  const std::string name = c.name();
  Problem problem = table.problem(c);
  const Problem on_host = problem;  // its opaque tensors are those of the CPU
  if (c.has_races && std::getenv("SIMT_RACES")) return;
  fit_to_device(c, problem);
  const Result first = run_on_device(problem, name, c.host_copies);
  check(first.status.code == c.error, "%s: error code %d: %s", name.c_str(), int(first.status.code), first.status.text);
  if (c.error != ErrorCode::none) {
    if (!first.bytes.empty() && !c.total_error)
      compare(c, name, table.wanted(c, problem, cpu_backend().ops), first.bytes, c.device_factor, kFloat, kDouble);
    return;
  }
  if (c.only_runs) return;
  check(first.launches <= c.most_launches, "%s: %d kernels, more than %d", name.c_str(), int(first.launches),
        int(c.most_launches));
  recent.push_front({key_of(c), first.bytes});
  if (recent.size() > 8) recent.pop_back();
  bool compared = false;
  for (const Case::Twin& twin : c.twins)
    if (twin.on_device) compare_with_twin(table, c, twin, first), compared = true;
  if (!compared) compare_with_cpu(c, name, problem, on_host, first);
}

// Larger than the staging memory, so that both halves are used more than once.
void test_copies() {
  const Backend& gpu = machine().gpu();
  const Context& ctx = machine().context;
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{4} << 20, (size_t{17} << 20) + 3}) {
    Bytes host(bytes), back(bytes);
    for (size_t i = 0; i < bytes; ++i) host[i] = static_cast<char>(i * 2654435761u >> 13);
    void* data = gpu.allocate(ctx, bytes);
    check(data != nullptr, "allocate");
    check(gpu.copy_in(ctx, data, host.data(), bytes).code == ErrorCode::none, "copy in");
    check(gpu.copy_out(ctx, back.data(), data, bytes).code == ErrorCode::none, "copy out");
    check(host == back, "copies of %zu bytes", bytes);
    gpu.release(ctx, data, bytes);
  }
  check(gpu.allocate(ctx, size_t{1} << 46) == nullptr, "more memory than there is");
}

}  // namespace

int main(int count, char** names) {
  const Table table = table_of(count > 1 ? std::vector<std::string>(names + 1, names + count) : groups());
  test_copies();
  size_t cases = 0;
  for (const Case& c : table.cases())
    if (c.on_device) run(table, c), ++cases;
  std::printf("ops: %zu cases on %s\n", cases, machine().gpu().variant);
  return check_result();
}

// The table of cases on the device of a plugin against the CPU, twice with the same bits and once with tensors that are
// not aligned. What a kernel finds wrong is
// reported by the next copy, once, and touches no other row. Arguments: the groups to run, or all.
#include <algorithm>

#include "../cases/case.h"
#include "machine.h"

using namespace st_moe;
using namespace st_moe::test;

namespace {

constexpr double kFloat = 1e-6, kDouble = 1e-14;

// Copies in, runs, copies out. The status is that of the op, or of the first copy. Tensors begin `shift` elements after
// memory as it is allocated, which is aligned for 128-bit accesses.
Result run_on_device(const Problem& problem, const std::string& name, bool host_copies, int64_t shift = 0) {
  const Backend& gpu = machine().gpu();
  const Context& ctx = machine().context;
  Problem call = problem;
  Result result;
  std::vector<void*> memory;
  for (const Tensor& t : call.tensors) {
    Bytes bytes = t.encode();
    if (t.role == Role::output) bytes.assign(bytes.size(), '\xff');
    const size_t skipped = static_cast<size_t>(shift) * dtype_size(t.dtype);
    memory.push_back(static_cast<char*>(gpu.allocate(ctx, bytes.size() + skipped)) + skipped);
    check(gpu.copy_in(ctx, memory.back(), bytes.data(), bytes.size()).code == ErrorCode::none, "%s: copy in",
          name.c_str());
    result.bytes.push_back(std::move(bytes));
  }
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    const Tensor& t = call.tensors[i];
    const size_t at = t.shares.empty() ? i : call.find(t.shares) - call.tensors.data();
    member<void*>(call.args, t.offset) = t.present ? memory[at] : nullptr;
    for (const Field& field : call.op->fields)
      if (host_copies && field.role == Role::host_copy && t.name == field.shape)
        member<void*>(call.args, field.offset) = result.bytes[at].data();
  }
  const Counters before = counters();
  result.status = call.op->run(gpu.ops, ctx, call.args, 1);
  const Counters after = counters();
  check(after.synchronisations == before.synchronisations && (call.op->by_hand || after.copies == before.copies),
        "%s waits for the device", name.c_str());
  const bool ran = result.status.code == ErrorCode::none;
  for (size_t i = 0; i < memory.size(); ++i) {
    Status copied = gpu.copy_out(ctx, result.bytes[i].data(), memory[i], result.bytes[i].size());
    if (ran && i == 0) result.status = copied;
    if (i == 0 && copied.code != ErrorCode::none)  // reported once
      copied = gpu.copy_out(ctx, result.bytes[i].data(), memory[i], result.bytes[i].size());
    check(copied.code == ErrorCode::none, "%s: %s", name.c_str(), copied.text);
    const size_t skipped = static_cast<size_t>(shift) * dtype_size(call.tensors[i].dtype);
    gpu.release(ctx, static_cast<char*>(memory[i]) - skipped, result.bytes[i].size() + skipped);
  }
  if (!ran) result.bytes.clear();
  return result;
}

void run(const Table& table, const Case& c) {
  const std::string name = c.name();
  const Problem problem = table.problem(c);
  const Result first = run_on_device(problem, name, c.host_copies);
  check(first.status.code == c.error, "%s: error code %d: %s", name.c_str(), int(first.status.code), first.status.text);
  if (c.error != ErrorCode::none) {
    if (!first.bytes.empty() && !c.total_error)
      compare(c, name, table.wanted(c, problem, cpu_backend().ops), first.bytes, c.device_factor, kFloat, kDouble);
    return;
  }
  const Result second = run_on_device(problem, name, c.host_copies);
  check(second.bytes == first.bytes, "%s: other bits the second time", name.c_str());
  const Result on_cpu = run_on_host(problem, cpu_backend().ops, 1, c.host_copies);
  check(on_cpu.status.code == ErrorCode::none, "%s on the CPU: %s", name.c_str(), on_cpu.status.text);
  Problem wanted = problem;
  for (size_t i = 0; i < wanted.tensors.size(); ++i)
    wanted.tensors[i].numbers = wanted.tensors[i].decode(on_cpu.bytes[i]);
  compare(c, name, wanted, first.bytes, c.device_factor, kFloat, kDouble);
#if !defined(__SANITIZE_THREAD__)  // it would find the same races, and the lane would take twice as long
  const Result shifted = run_on_device(problem, name, c.host_copies, 1);
  compare(c, name + " not aligned", wanted, shifted.bytes, c.device_factor, kFloat, kDouble);
#endif
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
  const Table table = table_of(count - 1, names + 1);
  test_copies();
  size_t cases = 0;
  for (const Case& c : table.cases())
    if (c.on_device) run(table, c), ++cases;
  std::printf("ops: %zu cases on %s\n", cases, machine().gpu().variant);
  return check_result();
}

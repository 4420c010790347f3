#pragma once
#include <map>

#include "../cases/case.h"
#include "machine.h"

namespace st_moe::test {

using Packed = std::map<std::string, PackedCopies*>;  // of the parameters, by the names of the arguments

// Tensors in blocks begin where the memory does.
inline size_t bytes_of_shift(const Tensor& t, int64_t shift) {
  return is_blocked(t.dtype) ? 0 : static_cast<size_t>(shift) * dtype_size(t.dtype);
}

// Copies in, runs, copies out. The status is that of the op, or of the first copy. Tensors begin `shift` elements after
// memory as it is allocated, which is aligned for 128-bit accesses.
inline Result run_on_device(const Problem& problem, const std::string& name, bool host_copies, int64_t shift = 0,
                            const Packed& packed = {}) {
  const Backend& gpu = machine().gpu();
  const Context& ctx = machine().context;
  Problem call = problem;
  call.fit(gpu, [&](const Problem& forward) { return run_on_device(forward, name, host_copies, shift, packed); });
  Result result;
  std::vector<void*> memory;
  for (const Tensor& t : call.tensors) {
    Bytes bytes = t.bytes ? *t.bytes : t.encode();
    if (t.role == Role::output) bytes = unwritten(bytes.size());
    const size_t skipped = bytes_of_shift(t, shift);
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
  for (const Field& field : call.op->fields)
    if (const auto copies = packed.find(field.name); copies != packed.end())
      member<PackedCopies*>(call.args, field.offset) = copies->second;
  const Counters before = counters();
  result.status = call.op->run(gpu.ops, ctx, call.args, 1);
  const Counters after = counters();
  result.launches = after.launches - before.launches;
  check(after.synchronisations == before.synchronisations && (call.op->by_hand || after.copies == before.copies),
        "%s waits for the device", name.c_str());
  const bool ran = result.status.code == ErrorCode::none;
  for (size_t i = 0; i < memory.size(); ++i) {
    Status copied = gpu.copy_out(ctx, result.bytes[i].data(), memory[i], result.bytes[i].size());
    if (ran && i == 0) result.status = copied;
    if (i == 0 && copied.code != ErrorCode::none)  // reported once
      copied = gpu.copy_out(ctx, result.bytes[i].data(), memory[i], result.bytes[i].size());
    check(copied.code == ErrorCode::none, "%s: %s", name.c_str(), copied.text);
    const size_t skipped = bytes_of_shift(call.tensors[i], shift);
    gpu.release(ctx, static_cast<char*>(memory[i]) - skipped, result.bytes[i].size() + skipped);
  }
  if (!ran) result.bytes.clear();
  return result;
}

}  // namespace st_moe::test

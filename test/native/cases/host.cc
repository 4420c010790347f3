// What runs ops of the CPU backend.
#include <cmath>
#include <cstring>

#include "case.h"

namespace st_moe::test {

Bytes unwritten(size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = i % 2 ? '\x7f' : '\xf9';
  return bytes;
}

Result run_on_host(const Problem& problem, const OpTable& ops, int threads, bool host_copies) {
  if (!problem.fitted) {
    Problem fitted = problem;
    fitted.fit(cpu_backend(), [&](const Problem& forward) { return run_on_host(forward, ops, threads); });
    return run_on_host(fitted, ops, threads, host_copies);
  }
  const std::vector<Tensor>& tensors = problem.tensors;
  const auto index_of = [&](size_t i) { return const_cast<Problem&>(problem).find(tensors[i].name) - tensors.data(); };
  alignas(8) char args[kMaxArgsSize];
  std::memcpy(args, problem.args, sizeof args);
  Result result;
  std::vector<Bytes> inputs;
  for (const Tensor& t : tensors) {
    inputs.push_back(t.bytes ? *t.bytes : t.role == Role::output ? Bytes{} : t.encode());
    result.bytes.push_back(inputs.back());
    if (t.role == Role::output) result.bytes.back() = unwritten(t.bytes_in_memory());
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    const size_t at = t.shares.empty() ? i : static_cast<size_t>(index_of(i));
    member<void*>(args, t.offset) = t.present ? result.bytes[at].data() : nullptr;
    for (const Field& field : problem.op->fields)
      if (host_copies && field.role == Role::host_copy && t.name == field.shape)
        member<void*>(args, field.offset) = result.bytes[at].data();
  }
  result.status = problem.op->run(ops, Context{threads, nullptr}, args, 1);
  for (size_t i = 0; i < tensors.size(); ++i)
    check(tensors[i].role != Role::input || result.bytes[i] == inputs[i], "%s writes its input %s", problem.op->name,
          tensors[i].name.c_str());
  return result;
}

// The same in f64; whether all numbers are finite.
static bool widen(Problem& p) {
  bool finite = true;
  for (Tensor& t : p.tensors) {
    if (t.dtype == DType::f32) t.dtype = DType::f64;
    for (double x : t.numbers) finite = finite && std::isfinite(x);
  }
  for (const Field& field : p.op->fields) {
    if (field.role == Role::stored) p.find(field.shape)->dtype = DType::f64;
    if (field.role == Role::dtype || field.role == Role::compute || field.role == Role::stored)
      member<DType>(p.args, field.offset) = DType::f64;
  }
  return finite;
}

Problem Table::wanted(const Case& c, const Problem& problem, const OpTable& ops) const {
  Problem p = problem;
  if (const Fill* loop = find_loop(p.op->name)) {
    (*loop)(p);
    return p;
  }
  const bool exact = widen(p);
  if (p.forward) p.forward = std::make_shared<Problem>(*p.forward), widen(*p.forward);
  const Result result = run_on_host(p, ops, 1);
  for (size_t i = 0; i < p.tensors.size(); ++i) p.tensors[i].numbers = p.tensors[i].decode(result.bytes[i]);
  check(!forward_of(problem).tensors.empty(), "%s has neither a loop nor a forward with one", p.op->name);
  if (exact && c.differences && problem.dtype() == DType::f64 && c.magnitude == 0) check_differences(c, problem, p);
  return p;
}

}  // namespace st_moe::test

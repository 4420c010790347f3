// The table of cases on the CPU: values against plain loops, by every instruction set; the same bits with 1, 2 and 3
// threads. Arguments: the groups to run, or all.
#include <algorithm>
#include <cstring>

#include "cases/case.h"
#include "cpu/isa.h"

using namespace st_moe;
using namespace st_moe::test;

namespace {

// The comparison itself: with the first number of an output changed it complains.
void expect_to_find_changes(const Case& c, const std::string& name, const Problem& wanted, std::vector<Bytes> bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    const Tensor& t = c.empty.tensors[i];
    if (t.role == Role::input || !t.present || t.size == 0 || t.opaque) continue;
    Tensor changed = t;
    changed.numbers = t.decode(bytes[i]);
    double largest = 100;
    for (double x : changed.numbers) largest = std::isfinite(x) ? std::fmax(largest, std::fabs(x)) : largest;
    double& x = changed.numbers[0];
    x = !std::isfinite(x) ? 1 : x < 0 ? largest - 2 * x : -largest - 2 * x;
    bytes[i] = changed.encode();
    check(!difference(c, wanted, bytes, c.cpu_factor, 3e-7, 5e-15).empty(), "%s: a changed %s is not found",
          name.c_str(), t.name.c_str());
    return;
  }
}

void expect_same(const Table& table, const Case& c, const std::string& name, const std::vector<Bytes>& bytes,
                 const Case::Twin& twin, const OpTable& ops) {
  const Result other = run_on_host(table.problem(*twin.other), ops, 2);
  for (size_t i = 0; i < bytes.size(); ++i) {
    const std::string& tensor = c.empty.tensors[i].name;
    check(std::ranges::find(twin.equal, tensor) == twin.equal.end() || bytes[i] == other.bytes[i],
          "%s: other bits of %s than %s", name.c_str(), tensor.c_str(), twin.other->name().c_str());
  }
}

void run(const Table& table, const Case& c, const std::vector<cpu::Isa>& isas) {
  const Problem problem = table.problem(c);
  if (c.error != ErrorCode::none) {
    for (const cpu::Isa& isa : isas) {
      const Status status = run_on_host(problem, isa.op_table(), 2).status;
      check(status.code == c.error && std::strstr(status.text, c.error_text.c_str()), "%s [%s]: error, got: %s",
            c.name().c_str(), isa.name, status.text);
    }
    return;
  }
  const Problem wanted = table.wanted(c, problem, isas.back().op_table());
  const std::vector<Field>& fields = c.empty.op->fields;
  const bool multiplies =
      std::any_of(fields.begin(), fields.end(), [](const Field& f) { return f.role == Role::compute; });
  for (const cpu::Isa& isa : isas) {
    if (*isa.narrower && !multiplies) continue;  // the op is that of the narrower one
    const std::string name = c.name() + " [" + isa.name + "]";
    std::vector<Bytes> first;
    Problem call = problem;
    call.fit(cpu_backend(), [&](const Problem& forward) { return run_on_host(forward, isa.op_table(), 2); });
    for (const int threads : c.threads) {
      const Result result = run_on_host(call, isa.op_table(), threads);
      check(result.status.code == ErrorCode::none, "%s: %s", name.c_str(), result.status.text);
      if (threads == 1)
        first = result.bytes;
      else
        check(result.bytes == first, "%s: other bits with %d threads", name.c_str(), threads);
    }
    if (c.only_runs) continue;
    compare(c, name, wanted, first, c.cpu_factor, 3e-7, 5e-15);
    expect_to_find_changes(c, name, wanted, first);
    for (const Case::Twin& twin : c.twins) expect_same(table, c, name, first, twin, isa.op_table());
    if (!c.verify) continue;
    Problem got = problem;
    for (size_t i = 0; i < first.size(); ++i) got.tensors[i].numbers = got.tensors[i].decode(first[i]);
    c.verify(got, name.c_str());
  }
}

// Every declared op has a case whose values are compared, on the CPU and, unless it is a collective, on devices.
void expect_cases_of_all_ops(const Table& table) {
  for (const OpInfo& op : declared_ops()) {
    const auto has_case = [&](bool Case::* place) {
      return std::ranges::any_of(table.cases(), [&](const Case& c) {
        return c.empty.op == &op && c.*place && c.error == ErrorCode::none && !c.only_runs;
      });
    };
    check(has_case(&Case::on_cpu), "%s is declared and has no case in test/native/cases", op.name);
    if (op.group) continue;  // it is the CPU's, and between processes
    check(std::ranges::any_of(table.cases(), [&](const Case& c) { return c.empty.op == &op && c.measure; }),
          "%s is declared and has no case for the benchmark in test/native/cases/model.cc", op.name);
    check(has_case(&Case::on_device), "%s is declared and has no case for devices in test/native/cases", op.name);
  }
}

}  // namespace

int main(int count, char** names) {
  std::vector<cpu::Isa> isas;
  cpu::for_each_isa([&](const cpu::Isa& isa) {
    if (isa.supported) isas.push_back(isa);
  });
  const Table table = table_of(count > 1 ? std::vector<std::string>(names + 1, names + count) : groups());
  if (count == 1) expect_cases_of_all_ops(table);
  size_t cases = 0;
  for (const Case& c : table.cases())
    if (c.on_cpu) run(table, c, isas), ++cases;
  std::printf("ops: %zu cases, %zu instruction sets\n", cases, isas.size());
  return check_result();
}

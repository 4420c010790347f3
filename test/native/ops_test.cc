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
    if (t.role == Role::input || !t.present || t.size == 0) continue;
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
    for (int threads = 1; threads <= 3; ++threads) {
      const Result result = run_on_host(problem, isa.op_table(), threads);
      check(result.status.code == ErrorCode::none, "%s: %s", name.c_str(), result.status.text);
      if (threads == 1)
        first = result.bytes;
      else
        check(result.bytes == first, "%s: other bits with %d threads", name.c_str(), threads);
    }
    compare(c, name, wanted, first, c.cpu_factor, 3e-7, 5e-15);
    expect_to_find_changes(c, name, wanted, first);
    if (!c.verify) continue;
    Problem got = problem;
    for (size_t i = 0; i < first.size(); ++i) got.tensors[i].numbers = got.tensors[i].decode(first[i]);
    c.verify(got, name.c_str());
  }
}

}  // namespace

int main(int count, char** names) {
  std::vector<cpu::Isa> isas;
  cpu::for_each_isa([&](const cpu::Isa& isa) {
    if (isa.supported) isas.push_back(isa);
  });
  const Table table = table_of(count - 1, names + 1);
  size_t cases = 0;
  for (const Case& c : table.cases())
    if (c.on_cpu) run(table, c, isas), ++cases;
  std::printf("ops: %zu cases, %zu instruction sets\n", cases, isas.size());
  return check_result();
}

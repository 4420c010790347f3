// The table of cases on the CPU: values against plain loops, by every instruction set; the same bits with 1, 2 and 3
// threads. Arguments: the groups to run, or all.
#include <cstring>

#include "cases/case.h"
#include "cpu/isa.h"

using namespace st_moe;
using namespace st_moe::test;

namespace {

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
  for (const cpu::Isa& isa : isas) {
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

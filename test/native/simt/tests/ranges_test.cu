#include "emulator/ranges.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/op_fields.h"
#include "cuda/kernel.cuh"
#include "cuda/ops.h"
#include "../../check.h"

// Every op of the table opens one range of its name, and closes it, even if it throws.
using namespace st_moe;

int main() {
  cuda::Stream stream(0);
  const Context ctx{1, &stream};
  const cuda::Scratch<float> value(ctx, 1);
  setenv("SIMT_FAULT_AT", "1",
         1);  // so no kernel runs: an op returns because it has nothing to do, or its launch throws
  FullArgs full{};
  full.out = value.get(), full.size = 1;
  cuda::op_table().full(ctx, full);
  cudaStreamSynchronize(stream.stream());

  int passed = 0, failed = 0;
  for (const OpInfo& op : declared_ops()) {
    if (!op.is_in(cuda::op_table())) continue;
    alignas(16) char args[kMaxArgsSize] = {};
    op.construct(args);
    for (const Field& field : op.fields) {
      const bool is_size = field.role == Role::attribute && field.attribute == AttributeType::size;
      if (field.role == Role::dim || field.role == Role::derived || is_size) member<int64_t>(args, field.offset) = 1;
    }
    simt::clear_ranges();
    ++(op.run(cuda::op_table(), ctx, args, 1).code == ErrorCode::none ? passed : failed);
    const std::vector<std::string>& ranges = simt::ranges();
    check(ranges == std::vector<std::string>{std::string("st-moe: ") + op.name, "end"}, "%s: %zu starts and ends",
          op.name, ranges.size());
  }
  std::printf("%d ops return, %d throw\n", passed, failed);
  check(passed > 0 && failed > 0, "ops that return, and others that throw");
  return check_result();
}

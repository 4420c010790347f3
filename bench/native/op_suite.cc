#include "declared.h"

// Every op at the sizes of a language model around the layer, vs. the arithmetic or the memory traffic that it cannot
// do without.
namespace st_moe::bench {
namespace {

// The work is flops or bytes of one run. What fits a cache may exceed the speed of memory.
void time_op(const Bench& bench, const std::string& name, const char* measure, double work,
             const std::function<void(int threads)>& run) {
  Group group;
  for (const int threads : bench.options.threads) {
    const bool flops = measure == std::string("flops");
    const Platform& platform = bench.platform;
    const size_t limit =
        group.add(flops ? platform.flops_limit(bench, DType::f32, threads) : platform.bytes_limit(bench, threads));
    Case one{.name = "op/" + name,
             .params = {{"threads", threads}},
             .run = [=] { run(threads); },
             .facts = {{measure, work}},
             .against = {{limit, measure}}};
    if (threads != bench.options.threads.front()) one.against.push_back({1, "speed"});
    group.add(std::move(one));
  }
  bench.harness.run(group);
}

}  // namespace

// The cases of the tests' table that have a measure: every op.
void op_suite(const Bench& bench) {
  const LayerSizes layer;
  const test::ModelSizes model{layer.B, layer.N, layer.D, layer.E, layer.K, layer.H, 8, 32000};
  const test::Table table = test::table_of({"model"}, bench.options.quick ? test::ModelSizes{} : model);
  Memory memory(bench);
  for (const test::Case& c : table.cases()) {
    const std::string name = c.label.empty() ? c.empty.op->name : c.label;
    bench.harness.attempt(name, [&] {
      const DeclaredOp call(memory, c);
      time_op(bench, name, c.measure, c.work > 0 ? c.work : call.bytes(), call);
    });
  }
}

}  // namespace st_moe::bench

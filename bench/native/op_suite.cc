#include <cmath>

#include "core/binary.h"
#include "core/unary.h"
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

struct Sizes : LayerSizes {
  int64_t heads = 8, V = 32000;
};

// The declared ops, whose arguments follow from their declaration. The layer suite times the experts.
void declared(const Bench& bench, const Sizes& s) {
  const double T = static_cast<double>(s.tokens()), D = static_cast<double>(s.D), H = static_cast<double>(s.H);
  const double N = static_cast<double>(s.N), V = static_cast<double>(s.V), heads = static_cast<double>(s.heads);
  const double rows = static_cast<double>(s.E * s.B * s.capacity());
  Values values = s.values();
  for (const auto& [name, value] : Values{{"size", T * D},
                                          {"value", 1},
                                          {"b", 1},
                                          {"factor", 1},
                                          {"kind", static_cast<double>(UnaryKind::gelu)},
                                          {"I", D},
                                          {"O", D},
                                          {"V", V},
                                          {"target", V},
                                          {"index", V},
                                          {"expert_index", static_cast<double>(s.E)},
                                          {"position", static_cast<double>(s.capacity())},
                                          {"assignment", T * static_cast<double>(s.K)},
                                          {"row_of", rows},
                                          {"Nq", N},
                                          {"Nk", N},
                                          {"heads", heads},
                                          {"kv_heads", heads},
                                          {"base", 10000},
                                          {"d", D / heads},
                                          {"scale", 1 / std::sqrt(D / heads)},
                                          {"causal", 1},
                                          {"ignore_index", -100},
                                          {"p", 0.1},
                                          {"R", rows},
                                          {"G", static_cast<double>(s.E)},
                                          {"lr", 1e-5},
                                          {"beta1", 0.9},
                                          {"beta2", 0.999},
                                          {"momentum", 0.9}})
    values[name] = value;
  const double weights = static_cast<double>(s.E) * 3 * H * D;
  const std::map<std::string, Values> own{{"embedding", {{"R", 1}}},
                                          {"embedding_backward", {{"R", 1}}},
                                          {"gather", {{"T", 1}, {"A", N}, {"K", T}, {"index", N}}},
                                          {"gather_backward", {{"T", 1}, {"A", N}, {"K", T}, {"index", N}}},
                                          {"extremum", {{"A", V}, {"I", 1}}},
                                          {"rotary", {{"T", static_cast<double>(s.B)}}},
                                          {"cached_attention", {{"N", 1}, {"S", static_cast<double>(s.B)}, {"M", N}}},
                                          {"plan_sorted", {{"R", T * static_cast<double>(s.K)}}},
                                          {"topk", {{"E", V}}},
                                          {"topk_backward", {{"E", V}}},
                                          {"grouped_gemm", {{"O", 2 * H}}},
                                          {"grouped_gemm_backward", {{"O", 2 * H}}},
                                          {"adafactor", {{"T", static_cast<double>(s.E)}, {"R", 3 * H}}},
                                          {"adamw", {{"size", weights}}},
                                          {"sgd", {{"size", weights}, {"step", 2}}}};
  const Values flops{{"linear", 2 * T * D * D},
                     {"linear_backward", 4 * T * D * D},
                     {"attention", 2 * T * N * D},  // causal: half of two GEMMs
                     {"attention_backward", 5 * T * N * D},
                     {"grouped_gemm", 4 * rows * D * H},
                     {"grouped_gemm_backward", 8 * rows * D * H}};
  Memory memory(bench);
  memory.put("threshold", bench.filled({s.K}, 0.2));
  memory.put("group_sizes", bench.filled({s.E}, rows / static_cast<double>(s.E), DType::i32));
  memory.put("v", bench.filled({static_cast<int64_t>(weights)}, 1));
  for (const OpInfo& op : declared_ops()) {
    const std::string name = op.name;
    if (op.by_hand || name.rfind("expert_ffn", 0) == 0) continue;
    bench.harness.attempt(name, [&] {
      Values all = own.count(name) ? own.at(name) : Values{};
      all.insert(values.begin(), values.end());
      const DeclaredOp call(memory, name, all, kNotGiven);
      const auto work = flops.find(name);
      if (work != flops.end()) return time_op(bench, name, "flops", work->second, call);
      time_op(bench, name, "bytes", name == "embedding" ? 8 * T * D : call.bytes(), call);  // reads T rows only
    });
  }
}

template <class Args>
void by_hand(const Bench& bench, const char* measure, double work, const char* name, Op<Args> OpTable::* op,
             const std::type_identity_t<std::function<void(Args&)>>& fill) {
  Args args{};
  if constexpr (requires { args.dtype; }) args.dtype = DType::f32;
  fill(args);
  bench.harness.attempt(
      name, [&] { time_op(bench, name, measure, work, [&](int threads) { bench.call(op, threads, args); }); });
}

void by_hand(const Bench& bench, const Sizes& s) {
  const int64_t T = s.tokens(), D = s.D, size = T * D;
  const double bytes = 4 * static_cast<double>(size);
  const Tensor x = bench.normals({T, D}), dy = bench.normals({T, D}), y = bench.filled({T, D});
  const Tensor rounded = bench.filled({T, D}, 0, DType::bf16), sum = bench.filled({}, 0, DType::f64);
  const Tensor w = bench.normals({D, D}), norm = bench.filled({}, 2, DType::f64);
  by_hand(bench, "bytes", 1.5 * bytes, "convert to bf16", &OpTable::convert, [&](auto& a) {
    a.in = x.data(), a.out = rounded.data(), a.in_dtype = DType::f32, a.out_dtype = DType::bf16, a.size = size;
  });
  by_hand(bench, "bytes", 2 * bytes, "strided_copy", &OpTable::strided_copy, [&](auto& a) {  // a transposition
    a.in = x.data(), a.out = y.data(), a.rank = 2, a.shape[0] = a.in_strides[1] = D;
    a.shape[1] = a.out_strides[0] = T, a.in_strides[0] = a.out_strides[1] = 1;
  });
  by_hand(bench, "bytes", 3 * bytes, "add", &OpTable::binary, [&](auto& a) {
    a.a = x.data(), a.b = dy.data(), a.y = y.data(), a.kind = BinaryKind::add, a.rank = 1, a.shape[0] = size;
    a.a_strides[0] = a.b_strides[0] = 1;
  });
  by_hand(bench, "bytes", bytes, "reduce", &OpTable::reduce,
          [&](auto& a) { a.x = x.data(), a.y = y.data(), a.outer = 1, a.axis = T, a.inner = D, a.factor = 1; });
  const NormArgs norm_args{x.data(), sum.data(), DType::f32, size, 1};
  by_hand(bench, "bytes", bytes, "norm", &OpTable::norm, [&](auto& a) { a = {&norm_args, 1}; });
  const ClipNormArgs clipped{y.data(), norm.data(), DType::f32, size, 1};
  by_hand(bench, "bytes", 2 * bytes, "clip_norm", &OpTable::clip_norm, [&](auto& a) { a = {&clipped, 1}; });
  by_hand(bench, "flops", 2 * static_cast<double>(size * D), "matmul", &OpTable::matmul,
          [&](auto& a) { a.a = x.data(), a.b = w.data(), a.y = y.data(), a.batch = 1, a.M = T, a.N = a.K = D; });
}

}  // namespace

void op_suite(const Bench& bench) {
  const Sizes sizes = bench.options.quick ? Sizes{{2, 32, 24, 4, 2}, 2, 40} : Sizes{};
  by_hand(bench, sizes);
  declared(bench, sizes);
}

}  // namespace st_moe::bench

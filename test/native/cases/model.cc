// Every op at the sizes of a language model around the layer: small ones here, large ones in the benchmark, which times
// these cases.
#include "core/activation.h"
#include "core/unary.h"
#include "case.h"
#include "core/router_statistics.h"

namespace st_moe::test {
namespace {

constexpr DType kFloat = DType::f32;

// Experts of tokens and slots in the order of tokens; whatever of that the op reads.
Fill placed(const ModelSizes& s) {
  return [=](Problem& p) {
    std::vector<int64_t> used(static_cast<size_t>(s.B * s.E));
    const auto set = [&](const char* name, int64_t i, int64_t value) {
      if (Tensor* t = p.find(name);
          t && i >= 0 && i < static_cast<int64_t>(t->numbers.size()) && t->role == Role::input)
        t->numbers[static_cast<size_t>(i)] = static_cast<double>(value);
    };
    for (int64_t r = 0; r < s.rows(); ++r) set("assignment", r, -1);
    for (int64_t i = 0; i < s.tokens() * s.K; ++i) {
      const int64_t b = i / s.K / s.N, e = (i / s.K * 7 + i % s.K) % s.E;
      int64_t& count = used[static_cast<size_t>(b * s.E + e)];
      const int64_t slot = count < s.capacity() ? count++ : -1, row = (e * s.B + b) * s.capacity() + slot;
      set("expert_index", i, e), set("position", i, slot), set("kept", i, slot >= 0);
      set("row_of", i, slot < 0 ? -1 : row);
      if (slot >= 0) set("assignment", row, i);
    }
  };
}

struct Model {
  Table& table;
  const ModelSizes s = table.sizes;
  const int64_t B = s.B, N = s.N, D = s.D, E = s.E, K = s.K, H = s.H, C = s.capacity(), T = s.tokens(), V = s.V;
  const int64_t size = T * D, rows = s.rows(), heads = s.heads, d = D / heads;

  Case& timed(Case& c, const char* measure, double work) const {
    return c.timed(measure, work).tolerance(33, 16).without_differences();
  }
  // By memory traffic, each tensor read or written once; or by arithmetic.
  template <class Args>
  Case& bytes(const Args& args, std::vector<Tensor> tensors = {}, double work = 0) const {
    return timed(table.add(args, std::move(tensors)), "bytes", work);
  }
  template <class Args>
  Case& flops(int64_t work, const Args& args, std::vector<Tensor> tensors = {}) const {
    return timed(table.add(args, std::move(tensors)), "flops", static_cast<double>(work));
  }
  template <class Args>
  Case& backward(const Case& forward, const Args& args) const {
    return timed(table.add_backward(forward, args), "bytes", 0);
  }

  void elements() const;
  void layers() const;
  void attention() const;
  void routers() const;
  void rows_of_experts() const;
};

void Model::elements() const {
  const auto in = [&](const char* name, size_t offset, DType dtype = kFloat) {
    return Tensor{name, offset, Role::input, dtype, size};
  };
  const auto out = [&](const char* name, size_t offset, int64_t count, DType dtype = kFloat) {
    return Tensor{name, offset, Role::output, dtype, count};
  };
  bytes(FullArgs{.dtype = kFloat, .size = size, .value = 1});
  bytes(RandomArgs{.dtype = kFloat, .size = size, .b = 1, .seed = 1, .step = 1});
  bytes(RandpermArgs{.size = size, .seed = 1, .step = 1});
  bytes(ConvertArgs{.in_dtype = kFloat, .out_dtype = DType::bf16, .size = size},
        {in("in", offsetof(ConvertArgs, in)), out("out", offsetof(ConvertArgs, out), size, DType::bf16)})
      .called("convert to bf16")
      .same_bits();
  bytes(StridedCopyArgs{.dtype = kFloat, .rank = 2, .shape = {D, T}, .in_strides = {1, D}, .out_strides = {T, 1}},
        {in("in", offsetof(StridedCopyArgs, in)), out("out", offsetof(StridedCopyArgs, out), size)});
  bytes(UnaryArgs{.dtype = kFloat, .size = size, .kind = UnaryKind::gelu});
  bytes(UnaryBackwardArgs{.dtype = kFloat, .size = size, .kind = UnaryKind::gelu});
  bytes(BinaryArgs{.dtype = kFloat, .rank = 1, .shape = {size}, .a_strides = {1}, .b_strides = {1}},
        {in("a", offsetof(BinaryArgs, a)), in("b", offsetof(BinaryArgs, b)), out("y", offsetof(BinaryArgs, y), size)})
      .called("add");
  bytes(ScaleArgs{.dtype = kFloat, .size = size, .factor = 1});
  bytes(ReduceArgs{.dtype = kFloat, .outer = 1, .axis = T, .inner = D, .factor = 1},
        {in("x", offsetof(ReduceArgs, x)), out("y", offsetof(ReduceArgs, y), D)});
  bytes(ExtremumArgs{.dtype = kFloat, .T = T, .A = V, .I = 1, .largest = 1});
  bytes(NormArgs{.dtype = kFloat, .size = size, .scale = 1},
        {in("x", offsetof(NormArgs, x)), out("out", offsetof(NormArgs, out), 1, DType::f64)});
  bytes(ClipNormArgs{.dtype = kFloat, .size = size, .max = 1},
        {{"x", offsetof(ClipNormArgs, x), Role::updated, kFloat, size},
         {"norm", offsetof(ClipNormArgs, norm), Role::input, DType::f64, 1}})
      .fill([](Problem& p) { p["norm"][0] = 2; });
  bytes(TokenMaskArgs{.dtype = kFloat, .size = size});
  bytes(DropoutArgs{.dtype = kFloat, .size = size, .p = 0.1, .seed = 1, .step = 1});
}

void Model::layers() const {
  flops(2 * size * D, MatmulArgs{.dtype = kFloat, .batch = 1, .M = T, .N = D, .K = D},
        {{"a", offsetof(MatmulArgs, a), Role::input, kFloat, size},
         {"b", offsetof(MatmulArgs, b), Role::input, kFloat, D * D},
         {"y", offsetof(MatmulArgs, y), Role::output, kFloat, size}});
  flops(2 * size * D, LinearArgs{.dtype = kFloat, .T = T, .I = D, .O = D});
  flops(4 * size * D, LinearBackwardArgs{.dtype = kFloat, .T = T, .I = D, .O = D}).without("dx_sum");
  // Reads the rows of the tokens alone.
  bytes(EmbeddingArgs{.dtype = kFloat, .R = 1, .T = T, .D = D, .V = V}, {}, 8 * static_cast<double>(size))
      .fill(below("index", V));
  bytes(EmbeddingBackwardArgs{.dtype = kFloat, .R = 1, .T = T, .D = D, .V = V}).fill(below("index", V));
  bytes(GatherArgs{.dtype = kFloat, .T = 1, .A = N, .K = T, .I = D}).fill(below("index", N));
  bytes(GatherBackwardArgs{.dtype = kFloat, .T = 1, .K = T, .I = D, .A = N}).fill(below("index", N));
  bytes(RmsnormArgs{.dtype = kFloat, .T = T, .D = D});
  bytes(RmsnormBackwardArgs{.dtype = kFloat, .T = T, .D = D});
  bytes(LayernormArgs{.dtype = kFloat, .T = T, .D = D, .eps = 1e-5});
  bytes(LayernormBackwardArgs{.dtype = kFloat, .T = T, .D = D, .eps = 1e-5});
  bytes(SoftmaxArgs{.dtype = kFloat, .T = T, .V = V});
  bytes(SoftmaxBackwardArgs{.dtype = kFloat, .T = T, .V = V});
  bytes(CrossEntropyArgs{.dtype = kFloat, .T = T, .V = V, .ignore_index = -100}).fill(below("target", V));
  bytes(CrossEntropyBackwardArgs{.dtype = kFloat, .T = T, .V = V, .ignore_index = -100}).fill(below("target", V));
  bytes(TopkArgs{.dtype = kFloat, .T = T, .E = V, .K = K});
  bytes(TopkBackwardArgs{.dtype = kFloat, .T = T, .E = V, .K = K}).fill([K = K, V = V](Problem& p) {
    for (size_t i = 0; i < p["index"].size(); ++i) p["index"][i] = double((int64_t(i) / K * 7 + int64_t(i) % K) % V);
  });
}

void Model::attention() const {
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  // Causal: half of two GEMMs.
  const Case forward = flops(2 * size * N, AttentionArgs{.dtype = kFloat,
                                                         .B = B,
                                                         .Nq = N,
                                                         .Nk = N,
                                                         .heads = heads,
                                                         .kv_heads = heads,
                                                         .d = d,
                                                         .scale = scale,
                                                         .visible = 1})
                           .without("mask");
  timed(table.add_backward(forward, AttentionBackwardArgs{}), "flops", static_cast<double>(5 * size * N));
  bytes(CachedAttentionArgs{
            .dtype = kFloat, .B = B, .N = 1, .S = B, .M = N, .heads = heads, .kv_heads = heads, .d = d, .scale = scale})
      .fill([N = N](Problem& p) {
        for (double& position : p["position"]) position = double(N - 1);
      })
      .without("slot");
  bytes(RotaryArgs{.dtype = kFloat, .T = B, .N = N, .heads = heads, .d = d, .base = 10000}).without("position");
}

void Model::routers() const {
  Case& c = bytes(RouteArgs{.dtype = kFloat,
                            .B = B,
                            .N = N,
                            .D = D,
                            .E = E,
                            .K = K,
                            .C = C,
                            .seed = 1,
                            .step = 1,
                            .eps = 1e-9,
                            .balance_loss_coef = 1e-2,
                            .router_z_loss_coef = 1e-3,
                            .training = 1,
                            .routing_groups = 1,
                            .top_groups = 1});
  for (const char* name :
       {"uniforms", "gumbel_uniforms", "second_place_uniforms", "expert_bias", "mask", "second_density"})
    c.without(name);
  c.fill([](Problem& p) { std::fill(p["threshold"].begin(), p["threshold"].end(), 0.2); });
  backward(Case(c), RouteBackwardArgs{}).without("dx_sum").without("dbalance_loss").without("dz_loss");
  const ExpertChoiceArgs choice{.dtype = kFloat,
                                .B = B,
                                .N = N,
                                .D = D,
                                .E = E,
                                .C = C,
                                .balance_loss_coef = 1e-2,
                                .router_z_loss_coef = 1e-3,
                                .training = 1};
  backward(Case(bytes(choice).without("mask")), ExpertChoiceBackwardArgs{}).without("dx_sum");
  bytes(RouterStatisticsArgs{.dtype = kFloat, .B = B, .N = N, .K = K, .E = E, .C = C, .S = router_statistics_size(E)})
      .fill(placed(s))
      .without("mask");
  bytes(PlanSlotsArgs{.B = B, .N = N, .K = K, .E = E, .C = C}).fill(placed(s));
  bytes(PlanSortedArgs{.T = T, .K = K, .E = E, .R = T * K}).fill(placed(s));
}

void Model::rows_of_experts() const {
  const ExpertFfnArgs experts{
      .dtype = kFloat, .T = T, .K = K, .R = rows, .D = D, .O = D, .E = E, .H = H, .P = w1_rows(Activation::geglu, H)};
  const Case forward = flops(6 * rows * D * H, experts).fill(placed(s)).without("ends");
  timed(table.add_backward(forward, ExpertFfnBackwardArgs{.straight_through = 1}), "flops",
        static_cast<double>(12 * rows * D * H));
  bytes(DispatchArgs{.dtype = kFloat, .T = T, .R = rows, .K = K, .D = D}).fill(placed(s));
  bytes(DispatchBackwardArgs{.dtype = kFloat, .T = T, .R = rows, .K = K, .D = D}).fill(placed(s));
  bytes(CombineArgs{.dtype = kFloat, .T = T, .R = rows, .K = K, .D = D}).fill(placed(s));
  bytes(CombineBackwardArgs{.dtype = kFloat, .T = T, .R = rows, .K = K, .D = D}).fill(placed(s));
  const Fill equal = [each = rows / E](Problem& p) {
    std::fill(p["group_sizes"].begin(), p["group_sizes"].end(), static_cast<double>(each));
  };
  flops(4 * rows * D * H, GroupedGemmArgs{.dtype = kFloat, .R = rows, .G = E, .I = D, .O = 2 * H}).fill(equal);
  flops(8 * rows * D * H, GroupedGemmBackwardArgs{.dtype = kFloat, .R = rows, .G = E, .I = D, .O = 2 * H}).fill(equal);
}

}  // namespace

void model(Table& table) {
  const Model model{table};
  model.elements(), model.layers(), model.attention();
  model.routers(), model.rows_of_experts();
}

}  // namespace st_moe::test

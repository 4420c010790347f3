#include <map>

#include "layer.h"

// The whole layer beside its own products alone, in both number formats and with every number of threads.
namespace st_moe::bench {
namespace {

struct Kind {
  const char* name;
  bool backward;
};
constexpr Kind kKinds[] = {{"forward", false}, {"forward+backward", true}};

Params params_of(const LayerSizes& s, int threads, DType compute) {
  return {{"B", std::to_string(s.B)},      {"N", std::to_string(s.N)}, {"D", std::to_string(s.D)},
          {"E", std::to_string(s.E)},      {"K", std::to_string(s.K)}, {"threads", std::to_string(threads)},
          {"compute", dtype_name(compute)}};
}

Case layer_case(const Layer& layer, const LayerSizes& sizes, const Kind& kind, int threads, DType compute) {
  return {.name = std::string("layer/") + kind.name,
          .params = params_of(sizes, threads, compute),
          .run =
              [&layer, kind, threads, compute] {
                layer.forward(threads, compute, kind.backward);
                if (kind.backward) layer.backward(threads, compute);
              },
          .flops = layer.flops() * (kind.backward ? 3 : 1),
          .error = layer.error(compute),
          .kept = layer.kept(),
          .occupancy = layer.occupancy()};
}

Case products_case(const Layer& layer, const LayerSizes& sizes, const Kind& kind, int threads, DType compute,
                   size_t peak) {
  return {.name = std::string("layer-products/") + kind.name,
          .params = params_of(sizes, threads, compute),
          .run = [&layer, threads, compute, kind] { layer.products(threads, compute, kind.backward); },
          .flops = layer.flops() * (kind.backward ? 3 : 1),
          .against = {{peak, Measure::flops}}};
}

}  // namespace

void layer_suite(const Bench& bench, Results& results) {
  const LayerSizes sizes = bench.quick ? LayerSizes{2, 48, 24, 4, 2} : LayerSizes{};
  const Layer layer(bench, sizes);
  for (const Kind& kind : kKinds) {
    Group group;
    std::map<DType, size_t> fewest_threads;
    for (const int threads : bench.threads) {
      size_t f32 = 0;
      for (const DType compute : {DType::f32, DType::bf16}) {
        const bool dot = compute == DType::bf16 && has_bf16_dot();
        const size_t peak = group.add(dot ? bf16_floor(bench, threads) : fma_floor(bench, threads));
        const size_t alone = group.add(products_case(layer, sizes, kind, threads, compute, peak));
        Case whole = layer_case(layer, sizes, kind, threads, compute);
        whole.against = {{alone, Measure::time}, {peak, Measure::flops}};
        if (compute != DType::f32) whole.against.push_back({f32, Measure::speed});
        const size_t index = group.cases.size();
        const auto [fewest, is_first] = fewest_threads.emplace(compute, index);
        if (!is_first) whole.against.push_back({fewest->second, Measure::speed});
        if (compute == DType::f32) f32 = index;
        group.add(std::move(whole));
      }
    }
    run_into(bench, results, group);
  }
}

// One size at a time grows or shrinks from the layer above.
void scaling_suite(const Bench& bench, Results& results) {
  std::vector<LayerSizes> all;
  if (bench.quick) {
    all = {{1, 32, 24, 4, 2}, {1, 48, 24, 4, 3}};
  } else {
    const LayerSizes seed;
    for (const int64_t N : {256, 512, 1024, 2048, 4096, 8192}) all.push_back({seed.B, N, seed.D, seed.E, seed.K});
    for (const int64_t E : {4, 8, 32, 64}) all.push_back({seed.B, seed.N, seed.D, E, seed.K});
    for (const int64_t K : {1, 4}) all.push_back({seed.B, seed.N, seed.D, seed.E, K});
    for (const int64_t D : {128, 256, 1024}) all.push_back({seed.B, seed.N, D, seed.E, seed.K});
  }
  for (const LayerSizes& sizes : all) {
    const Layer layer(bench, sizes);
    Group group;
    for (const int threads : bench.threads) {
      const size_t peak = group.add(fma_floor(bench, threads));
      for (const Kind& kind : kKinds) {
        Case whole = layer_case(layer, sizes, kind, threads, DType::f32);
        whole.name = std::string("scaling/") + kind.name;
        whole.against.push_back({peak, Measure::flops});
        group.add(std::move(whole));
      }
    }
    run_into(bench, results, group);
  }
}

}  // namespace st_moe::bench

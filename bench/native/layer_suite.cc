#include <map>

#include "layer.h"

// The whole layer beside its own GEMMs alone, in each number format and with every number of threads.
namespace st_moe::bench {
namespace {

// Weights, copies of them, gradients; activations of the layer and of the GEMMs alone.
double bytes_of(const LayerSizes& s, bool exact, bool backward) {
  const double weights = 3.0 * static_cast<double>(s.E * s.D * s.H);
  const double rows = static_cast<double>(s.dropless ? s.tokens() * s.K : s.E * s.B * s.capacity());
  return weights * ((exact ? 4 : 6) + (backward ? 4 : 0)) +
         rows * (40 * static_cast<double>(s.H) + 32 * static_cast<double>(s.D));
}

// Whether the device has the memory. If not, a line says what is left out and why.
bool fits(const Bench& bench, const std::string& name, const LayerSizes& sizes, bool exact, bool backward) {
  const double needed = bytes_of(sizes, exact, backward), free = bench.platform.free_bytes();
  if (needed < free) return true;
  char why[200];
  std::snprintf(why, sizeof why, "needs about %.0f GB, the device has %.0f GB free", needed * 1e-9, free * 1e-9);
  bench.harness.write({{"name", name}, {"params", sizes.params()}, {"leftOut", why}});
  return false;
}

struct Timed {  // a kind of pass over a layer
  const Bench& bench;
  const Layer& layer;
  LayerKind kind;

  Case whole(const std::string& prefix, DType compute, int threads, double error) const {
    const Layer::Pass forward = layer.forward(compute, kind.backward);
    const Layer::Pass backward = kind.backward ? layer.backward(compute) : [](int) {};
    const auto run = [=, &layer = layer, kind = kind] {
      if (kind.weights_change) layer.change_weights();
      forward(threads), backward(threads);
    };
    Case one = named(prefix, compute, threads, run);
    one.facts.insert(one.facts.end(), {{"error", error}, {"kept", layer.kept}, {"occupancy", layer.occupancy}});
    return one;
  }
  Case gemms(DType compute, int threads) const {
    const auto run = bench.platform.layer_gemms(bench, layer, compute, threads);
    return named("layer-gemms/", compute, threads, [run, all = kind.backward] { run(all); });
  }

 private:
  Case named(const std::string& prefix, DType compute, int threads, std::function<void()> run) const {
    Members params = layer.sizes.params();
    params.insert(params.end(), {{"threads", threads}, {"compute", bench.platform.name_of(compute)}});
    return {.name = prefix + kind.name,
            .params = params,
            .run = std::move(run),
            .facts = {{"flops", layer.flops() * (kind.backward ? 3 : 1)}}};
  }
};

void time_layer(const Bench& bench, const std::string& prefix, const LayerPlan& plan, bool beside_gemms) {
  const bool exact = plan.computes == std::vector<DType>{DType::f32};
  const bool backward = !plan.forward_only && fits(bench, prefix + "forward+backward", plan.sizes, exact, true);
  if (!backward && !fits(bench, prefix + "forward", plan.sizes, exact, false)) return;
  const Layer layer(bench, plan.sizes);
  std::map<DType, double> errors;
  for (const DType compute : plan.computes) errors[compute] = layer.error(compute);
  for (const LayerKind& kind : bench.platform.layer_kinds) {
    if (kind.backward && !backward) continue;
    const Timed timed{bench, layer, kind};
    Group group;
    std::map<DType, size_t> fewest_threads;
    for (const int threads : bench.options.threads) {
      std::map<DType, size_t> here;
      for (const DType compute : plan.computes) {
        const size_t limit = group.add(bench.platform.flops_limit(bench, compute, threads));
        Case whole = timed.whole(prefix, compute, threads, errors[compute]);
        whole.against.push_back({limit, "flops"});
        if (beside_gemms) {
          Case gemms = timed.gemms(compute, threads);
          gemms.against.push_back({limit, "flops"});
          whole.against.push_back({group.add(std::move(gemms)), "time"});
        }
        if (compute != DType::f32 && here.count(DType::f32)) whole.against.push_back({here[DType::f32], "speed"});
        if (fewest_threads.count(compute)) whole.against.push_back({fewest_threads[compute], "speed"});
        here[compute] = group.add(std::move(whole));
        fewest_threads.emplace(compute, here[compute]);
      }
    }
    bench.harness.run(group);
  }
}

}  // namespace

void layer_suite(const Bench& bench) {
  for (LayerPlan plan : bench.platform.layers) {
    std::erase_if(plan.computes, [&](DType compute) { return !bench.options.uses(compute); });
    if (!plan.computes.empty()) bench.harness.attempt("layer", [&] { time_layer(bench, "layer/", plan, true); });
  }
}

// One size at a time grows or shrinks from the layer above.
void scaling_suite(const Bench& bench) {
  std::vector<LayerSizes> all{{1, 32, 24, 4, 2}, {1, 48, 24, 4, 3}};
  if (!bench.options.quick) {
    all.clear();
    for (const int64_t N : {256, 512, 1024, 2048, 4096, 8192}) all.push_back({.N = N});
    for (const int64_t E : {4, 8, 32, 64}) all.push_back({.E = E});
    for (const int64_t K : {1, 4}) all.push_back({.K = K});
    for (const int64_t D : {128, 256, 1024}) all.push_back({.D = D});
  }
  for (const LayerSizes& sizes : all)
    bench.harness.attempt("scaling", [&] { time_layer(bench, "scaling/", {sizes, {DType::f32}}, false); });
}

}  // namespace st_moe::bench

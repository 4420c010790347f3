#include <algorithm>
#include <cmath>

#include "bench.h"
#include "core/convert.h"
#include "kernels.h"
#include "onednn.h"

// The six GEMMs of the layer, grouped over experts, beside what the machine can do and what oneDNN does.
namespace st_moe::bench {

GemmShape GemmArgs::shape() const {
  switch (gemm) {
    case Gemm::a: return {0, 2 * H, D, true};
    case Gemm::y: return {0, D, H, true};
    case Gemm::dh: return {0, H, D, false};
    case Gemm::dx: return {0, D, 2 * H, false};
    case Gemm::dw1: return {2 * H, D, 0, false};
    case Gemm::dw2: return {D, H, 0, false};
  }
  return {};
}

namespace {

constexpr const char* kNames[] = {"a", "y", "dh", "dx", "dw1", "dw2"};

double rounded(float x, DType dtype) {
  return static_cast<double>(dtype == DType::bf16 ? bf16_to_float(float_to_bf16(x)) : x);
}

// Of 256 entries of C, against sums in double.
double error_of(const GemmArgs& args) {
  const GemmShape s = args.shape();
  const bool gradient = args.weight_gradient();
  double difference = 0, norm = 0;
  uint64_t state = 1;
  const auto below = [&](int64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(n));
  };
  for (int sample = 0; sample < 256; ++sample) {
    const int64_t e = below(static_cast<int64_t>(args.rows.size())), rows = args.rows[static_cast<size_t>(e)];
    const int64_t begin = e * rows;  // all experts have as many
    const int64_t M = gradient ? s.M : rows, K = gradient ? rows : s.K, i = below(M), j = below(s.N);
    double sum = 0;
    for (int64_t k = 0; k < K; ++k) {
      const float a = gradient ? args.a[(begin + k) * M + i] : args.a[(begin + i) * K + k];
      const float* w = args.b + e * s.N * K;
      const float b = gradient ? args.b[(begin + k) * s.N + j] : s.transposed ? w[j * K + k] : w[k * s.N + j];
      sum += rounded(a, args.compute) * rounded(b, args.compute);
    }
    const double got = static_cast<double>(args.c[((gradient ? e * M : begin) + i) * s.N + j]);
    difference += (got - sum) * (got - sum);
    norm += sum * sum;
  }
  return std::sqrt(difference / norm);
}

Case case_of(const char* prefix, const GemmArgs& args, int threads, bool packed, std::function<void()> run) {
  const GemmShape s = args.shape();
  const bool gradient = args.weight_gradient();
  const int64_t rows = args.rows[0], M = gradient ? s.M : rows, K = gradient ? rows : s.K;
  const int64_t weight = packed && args.compute == DType::bf16 ? 2 : 4;
  const double experts = static_cast<double>(args.rows.size());
  return {.name = prefix + std::string(kNames[static_cast<int>(args.gemm)]),
          .params = {{"rows", rows},
                     {"threads", threads},
                     {"compute", dtype_name(args.compute)},
                     {"weights", packed ? "packed" : "plain"}},
          .run = std::move(run),
          .facts = {{"flops", 2 * experts * static_cast<double>(M * s.N * K)},
                    {"bytes", experts * static_cast<double>((M * K + M * s.N) * 4 + K * s.N * weight)}}};
}

// Ours and oneDNN's, with weights as they are and packed beforehand.
void time_gemm(const Bench& bench, GemmArgs args, int threads) {
  Group group;
  std::vector<Tensor> packed_weights;
  const Against fma{group.add(bench.platform.flops_limit(bench, DType::f32, threads)), "flops"};
  const Against dram{group.add(bench.platform.bytes_limit(bench, threads)), "bytes"};
  for (const DType compute : {DType::f32, DType::bf16}) {
    args.compute = compute;
    std::vector<Against> limits{fma, dram};
    const std::vector<DType> own_limit = bench.platform.arithmetic();
    if (compute != DType::f32 && std::find(own_limit.begin(), own_limit.end(), compute) != own_limit.end())
      limits.push_back({group.add(bench.platform.flops_limit(bench, compute, threads)), "flops"});
    std::vector<Against> against = limits;
    for (const bool packed : {false, true}) {
      if (packed && args.weight_gradient()) continue;  // both operands are activations: nothing can be packed before
      std::function<void()> theirs = onednn_gemm(args, threads, packed);
      if (!theirs) continue;
      Case one = case_of("onednn/", args, threads, packed, std::move(theirs));
      one.against = limits;
      against.push_back({group.add(std::move(one)), "speed"});
    }
    const auto add_own = [&](const GemmArgs& own) {
      const Context ctx{threads, nullptr};
      const auto run = [=] { kernels().gemm(ctx, own); };
      Case one = case_of("gemm/", own, threads, own.packed != nullptr, run);
      run();
      one.facts.push_back({"error", Bench::checked(error_of(own), 1e-5)});
      one.against = against;
      group.add(std::move(one));
    };
    add_own(args);
    if (const int64_t size = kernels().packed_size(args)) {
      GemmArgs own = args;
      packed_weights.push_back(bench.filled({size * static_cast<int64_t>(args.rows.size())}));
      kernels().pack({threads, nullptr}, args, f32(packed_weights.back()));
      own.packed = f32(packed_weights.back());
      add_own(own);
    }
  }
  bench.harness.run(group);
}

}  // namespace

void gemm_suite(const Bench& bench) {
  const LayerSizes sizes = bench.options.quick ? LayerSizes{.D = 40, .E = 3, .H = 29} : LayerSizes{};
  const std::vector<int64_t> all_rows =
      bench.options.quick ? std::vector<int64_t>{4, 9} : std::vector<int64_t>{4, 40, 160, 320, 640};
  const int64_t most = all_rows.back(), E = sizes.E, D = sizes.D, H = sizes.H, size = std::max(most, D) * 2 * H;
  const Tensor a = bench.normals({E, most, 2 * H}), b = bench.normals({E, size}), c = bench.filled({E, size});
  for (const int64_t rows : all_rows)
    for (const int threads : bench.options.threads)
      for (const Gemm gemm : kGemms) {
        const std::vector<int64_t> each(static_cast<size_t>(E), rows);
        bench.harness.attempt("gemm", [&] { time_gemm(bench, {gemm, D, H, each, f32(a), f32(b), f32(c)}, threads); });
      }
}

}  // namespace st_moe::bench

#include <algorithm>
#include <cmath>

#include "bench.h"
#include "core/convert.h"
#include "kernels.h"
#include "onednn.h"

// The six GEMMs of the layer, grouped over experts, beside what the machine can do and what oneDNN does.
namespace st_moe::bench {

GroupedGemm::GroupedGemm(Gemm gemm, int64_t D, int64_t H, const std::vector<int64_t>& rows, const float* a,
                         const float* b, float* c, DType compute)
    : gemm(gemm), compute(compute), weight_gradient(gemm == Gemm::dw1 || gemm == Gemm::dw2) {
  struct {
    int64_t a, c;       // columns of A in memory, and of C
    bool transposed_b;  // weights are [N, K], not [K, N]
  } const widths[] = {{D, 2 * H, true},  {H, D, true},      {D, H, false},
                      {2 * H, D, false}, {2 * H, D, false}, {D, H, false}};
  const auto [width, N, transposed] = widths[static_cast<int>(gemm)];
  for (const int64_t M : rows) {
    if (weight_gradient) {
      experts.push_back({width, N, M, {a, 1, width}, {b, N, 1}, c});
      a += M * width, b += M * N, c += width * N;
    } else {
      experts.push_back({M, N, width, {a, width, 1}, {b, transposed ? 1 : N, transposed ? width : 1}, c});
      a += M * width, b += width * N, c += M * N;
    }
  }
}

namespace {

double rounded(float x, DType dtype) {
  return static_cast<double>(dtype == DType::bf16 ? bf16_to_float(float_to_bf16(x)) : x);
}

// Of 256 entries of C, against sums in double.
double error_of(const GroupedGemm& group) {
  double difference = 0, norm = 0;
  uint64_t state = 1;
  const auto below = [&](size_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((state >> 33) % n);
  };
  for (int sample = 0; sample < 256; ++sample) {
    const ExpertGemm& one = group.experts[static_cast<size_t>(below(group.experts.size()))];
    const int64_t i = below(static_cast<size_t>(one.M)), j = below(static_cast<size_t>(one.N));
    double sum = 0;
    for (int64_t k = 0; k < one.K; ++k)
      sum += rounded(one.a.data[i * one.a.row + k * one.a.column], group.compute) *
             rounded(one.b.data[k * one.b.row + j * one.b.column], group.compute);
    const double got = static_cast<double>(one.c[i * one.N + j]);
    difference += (got - sum) * (got - sum);
    norm += sum * sum;
  }
  return std::sqrt(difference / norm);
}

Case case_of(const char* prefix, const GroupedGemm& group, int threads, bool packed, std::function<void()> run) {
  const auto& [M, N, K, a, b, c, packed_b] = group.experts[0];  // all have as many rows
  const int64_t weight = packed && group.compute == DType::bf16 ? 2 : 4;
  const double experts = static_cast<double>(group.experts.size());
  return {.name = prefix + std::string(kGemmNames[static_cast<int>(group.gemm)]),
          .params = {{"rows", group.weight_gradient ? K : M},
                     {"threads", threads},
                     {"compute", dtype_name(group.compute)},
                     {"weights", packed ? "packed" : "plain"}},
          .run = std::move(run),
          .facts = {{"flops", 2 * experts * static_cast<double>(M * N * K)},
                    {"bytes", experts * static_cast<double>((M * K + M * N) * 4 + K * N * weight)}}};
}

// Ours and oneDNN's, with weights as they are and packed beforehand. `make(compute)` describes the GEMM.
template <class Make>
void time_gemm(const Bench& bench, int threads, Make make) {
  Group cases;
  std::vector<Tensor> memory;
  const Against fma{cases.add(bench.platform.flops_limit(bench, DType::f32, threads)), "flops"};
  const Against dram{cases.add(bench.platform.bytes_limit(bench, threads)), "bytes"};
  for (const DType compute : {DType::f32, DType::bf16}) {
    GroupedGemm group = make(compute);
    std::vector<Against> limits{fma, dram};
    if (compute == DType::bf16 && kernels().bf16_dot)
      limits.push_back({cases.add(bench.platform.flops_limit(bench, compute, threads)), "flops"});
    std::vector<Against> against = limits;
    for (const bool packed : {false, true}) {
      if (packed && group.weight_gradient) continue;
      std::function<void()> theirs = onednn_gemm(group, threads, packed);
      if (!theirs) continue;
      Case one = case_of("onednn/", group, threads, packed, std::move(theirs));
      one.against = limits;
      against.push_back({cases.add(std::move(one)), "speed"});
    }
    const auto add_own = [&](bool packed) {
      const auto run = [=] { kernels().gemm({threads, nullptr}, group); };
      Case one = case_of("gemm/", group, threads, packed, run);
      run();
      one.facts.push_back({"error", Bench::checked(error_of(group), 1e-5)});
      one.against = against;
      cases.add(std::move(one));
    };
    add_own(false);
    if (const int64_t size = kernels().packed_size(group)) {
      memory.push_back(bench.filled({static_cast<int64_t>(group.experts.size()), size}));
      kernels().pack({threads, nullptr}, group, f32(memory.back()));
      for (size_t e = 0; e < group.experts.size(); ++e)
        group.experts[e].packed_b = f32(memory.back()) + static_cast<int64_t>(e) * size;
      add_own(true);
    }
  }
  bench.harness.run(cases);
}

}  // namespace

void gemm_suite(const Bench& bench) {
  const LayerSizes sizes = bench.options.quick ? LayerSizes{.D = 40, .E = 3, .H = 29} : LayerSizes{};
  const std::vector<int64_t> all_rows =
      bench.options.quick ? std::vector<int64_t>{4, 9} : std::vector<int64_t>{4, 40, 160, 320, 640};
  const int64_t E = sizes.E, D = sizes.D, H = sizes.H, size = std::max(all_rows.back(), D) * 2 * H;
  const Tensor a = bench.normals({E, all_rows.back(), 2 * H}), b = bench.normals({E, size}),
               c = bench.filled({E, size});
  for (const int64_t rows : all_rows)
    for (const int threads : bench.options.threads)
      for (const Gemm gemm : kGemms)
        bench.harness.attempt("gemm", [&] {
          time_gemm(bench, threads, [&](DType compute) {
            const std::vector<int64_t> each(static_cast<size_t>(E), rows);
            return GroupedGemm(gemm, D, H, each, f32(a), f32(b), f32(c), compute);
          });
        });
}

}  // namespace st_moe::bench

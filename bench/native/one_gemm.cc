#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "bench.h"
#include "kernels.h"

// A GEMM of the layer for one expert, so many times on one thread: bench/instructions.ts counts what this executes.
namespace st_moe::bench {
namespace {

constexpr const char* kUsage = "a|y|dh|dx|dw1|dw2 rows f32|bf16 plain|packed times";
constexpr int kNoPackedWeights = 3;  // exit status

int run(Gemm gemm, int64_t rows, DType compute, bool packed, int times) {
  Options options;
  options.threads = {1};
  const std::unique_ptr<Platform> platform = make_platform(options);
  Harness harness(*platform, options.settings, "");
  const Bench bench{*platform, harness, options};

  const LayerSizes sizes;
  const int64_t size = std::max(rows, sizes.D) * 2 * sizes.H;
  const Tensor a = bench.filled({size}, 1), b = bench.filled({size}, 1), c = bench.filled({size});
  GroupedGemm group(gemm, sizes.D, sizes.H, {rows}, f32(a), f32(b), f32(c), compute);
  ExpertGemm& one = group.experts[0];
  const int64_t packed_size = packed && !group.weight_gradient ? kernels().packed_size(group) : 0;
  const Tensor copy = bench.filled({packed_size});
  if (packed) {
    if (packed_size == 0) return kNoPackedWeights;
    kernels().pack({1, nullptr}, group, f32(copy));
    one.packed_b = f32(copy);
  }
  for (int i = 0; i < times; ++i) kernels().gemm({1, nullptr}, group);
  std::printf("%s %lld\n", bench.backend().variant, static_cast<long long>(one.M * one.N * one.K));
  return 0;
}

}  // namespace
}  // namespace st_moe::bench

int main(int count, char** values) {
  using namespace st_moe;
  using namespace st_moe::bench;
  const std::vector<std::string> args(values + 1, values + count);
  const auto is_one_of = [&](size_t i, const auto& names) { return std::count(names.begin(), names.end(), args[i]); };
  const std::vector<std::string> names(std::begin(kGemmNames), std::end(kGemmNames)), computes{"f32", "bf16"},
      weights{"plain", "packed"};
  if (args.size() == 5 && is_one_of(0, names) && is_one_of(2, computes) && is_one_of(3, weights)) {
    const int rows = std::atoi(values[2]), times = std::atoi(values[5]);
    const Gemm gemm = kGemms[std::find(names.begin(), names.end(), args[0]) - names.begin()];
    const DType compute = args[2] == "bf16" ? DType::bf16 : DType::f32;
    if (rows > 0 && times > 0) return run(gemm, rows, compute, args[3] == "packed", times);
  }
  std::fprintf(stderr, "%s %s\n", values[0], kUsage);
  return 2;
}

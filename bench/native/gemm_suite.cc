#include <algorithm>
#include <cmath>

#include "bench.h"
#include "core/convert.h"
#include "onednn.h"

// The six products of the layer, grouped over experts, beside what the machine can do and what oneDNN does.
namespace st_moe::bench {
namespace {

struct Sizes {
  int64_t E, D, H;
  std::vector<int64_t> rows;
};

double rounded(float x, DType dtype) {
  return static_cast<double>(dtype == DType::bf16 ? bf16_to_float(float_to_bf16(x)) : x);
}

// Of 256 entries of C, against sums in double.
double product_error(const ProductArgs& args) {
  const ProductShape s = shape_of(args.product, args.D, args.H);
  const bool gradient = s.rows_of_c > 0;
  double difference = 0, norm = 0;
  uint64_t state = 1;
  const auto below = [&](int64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(n));
  };
  for (int sample = 0; sample < 256; ++sample) {
    const int64_t e = below(static_cast<int64_t>(args.rows.size())), rows = args.rows[static_cast<size_t>(e)];
    int64_t begin = 0;
    for (int64_t i = 0; i < e; ++i) begin += args.rows[static_cast<size_t>(i)];
    const int64_t M = gradient ? s.rows_of_c : rows, K = gradient ? rows : s.K, i = below(M), j = below(s.N);
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

class ProductGroup {
 public:
  ProductGroup(const Bench& bench, const Sizes& sizes, int64_t rows, int threads)
      : bench_(bench), rows_(rows), threads_(threads), args_{{}, sizes.D, sizes.H, {}, nullptr, nullptr, nullptr, {}} {
    args_.rows.assign(static_cast<size_t>(sizes.E), rows);
  }

  void run(Product product, const Buffer<float>& a, const Buffer<float>& b, const Buffer<float>& c, Results& results) {
    args_.product = product, args_.a = a, args_.b = b, args_.c = c;
    group_ = {};
    packed_.clear();
    fma_ = group_.add(fma_floor(bench_, threads_));
    dram_ = group_.add(dram_floor(bench_, threads_));
    if (has_bf16_dot()) bf16_ = group_.add(bf16_floor(bench_, threads_));
    for (const DType compute : {DType::f32, DType::bf16}) add_cases(compute);
    run_into(bench_, results, group_);
  }

 private:
  void add_cases(DType compute) {
    args_.compute = compute;
    std::vector<Against> floors{{fma_, Measure::flops}, {dram_, Measure::bytes}};
    if (compute == DType::bf16 && has_bf16_dot()) floors.push_back({bf16_, Measure::flops});

    std::vector<Against> ours = floors;
    const bool gradient = shape_of(args_.product, args_.D, args_.H).rows_of_c > 0;
    for (const bool packed : {false, true}) {
      if (packed && gradient)
        continue;  // both operands are activations: there is nothing to bring into a layout before
      if (std::function<void()> theirs = onednn_product(args_, threads_, packed))
        ours.push_back({group_.add(case_of("onednn/", packed, std::move(theirs), floors)), Measure::speed});
    }
    add_own(args_, false, ours);
    if (const int64_t size = bench_.kernels.packed_size(args_)) {
      const Buffer<float> packed(bench_, size * static_cast<int64_t>(args_.rows.size()));
      bench_.kernels.pack({threads_, nullptr}, args_, packed);
      ProductArgs args = args_;
      args.packed = packed;
      packed_.push_back(packed);
      add_own(args, true, ours);
    }
  }

  void add_own(const ProductArgs& args, bool packed, const std::vector<Against>& against) {
    const Context ctx{threads_, nullptr};
    const auto product = bench_.kernels.run_product;
    Case own = case_of("gemm/", packed, [=] { product(ctx, args); }, against);
    own.run();
    own.error = product_error(args);
    group_.add(std::move(own));
  }

  Case case_of(const char* prefix, bool packed, std::function<void()> run, std::vector<Against> against) const {
    const ProductShape s = shape_of(args_.product, args_.D, args_.H);
    const double M = static_cast<double>(s.rows_of_c > 0 ? s.rows_of_c : rows_);
    const double K = static_cast<double>(s.rows_of_c > 0 ? rows_ : s.K), N = static_cast<double>(s.N);
    const double experts = static_cast<double>(args_.rows.size());
    const double weight = packed && args_.compute == DType::bf16 ? 2 : 4;
    return {.name = std::string(prefix) + product_name(args_.product),
            .params = {{"rows", std::to_string(rows_)},
                       {"threads", std::to_string(threads_)},
                       {"compute", dtype_name(args_.compute)},
                       {"weights", packed ? "packed" : "plain"}},
            .run = std::move(run),
            .flops = 2 * M * N * K * experts,
            .bytes = ((M * K + M * N) * 4 + K * N * weight) * experts,
            .against = std::move(against)};
  }

  const Bench& bench_;
  int64_t rows_;
  int threads_;
  ProductArgs args_;
  Group group_;
  std::vector<Buffer<float>> packed_;  // of the cases of the group
  size_t fma_ = 0, dram_ = 0, bf16_ = 0;
};

}  // namespace

void gemm_suite(const Bench& bench, Results& results) {
  const Sizes sizes = bench.quick ? Sizes{3, 40, 29, {4, 9}} : Sizes{16, 512, 1365, {4, 40, 160, 320, 640}};
  const int64_t most = sizes.rows.back(), wide = 2 * sizes.H, all = sizes.E * std::max(most * wide, wide * sizes.D);
  const Buffer<float> a = normals(bench, sizes.E * most * wide), b = normals(bench, all), c(bench, all);
  for (const int64_t rows : sizes.rows)
    for (const int threads : bench.threads) {
      ProductGroup group(bench, sizes, rows, threads);
      for (const Product product : kProducts) group.run(product, a, b, c, results);
    }
}

}  // namespace st_moe::bench

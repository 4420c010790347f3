#include "bench.h"

#include <stdexcept>

namespace st_moe::bench {

void Bench::check(const Status& status) {
  if (status.code != ErrorCode::none) throw Error(status.code, status.text);
}

double Bench::checked(double error, double limit) {
  if (!(error <= limit)) throw std::runtime_error("relative error " + std::to_string(error));
  return error;
}

Tensor Bench::filled(const Shape& shape, double value, DType dtype) const {
  Tensor x = make_tensor(device(), dtype, shape);
  call(&OpTable::full, most_threads(), {.out = x.data(), .dtype = dtype, .size = x.size, .value = value});
  return x;
}

static Tensor random(const Bench& bench, const Shape& shape, Distribution distribution, double a, double b) {
  Tensor x = make_tensor(bench.device(), DType::f32, shape);
  bench.call(&OpTable::random, bench.most_threads(),
             {.out = x.data(),
              .dtype = DType::f32,
              .size = x.size,
              .distribution = distribution,
              .a = a,
              .b = b,
              .seed = 1,
              .step = bench.draws++});
  return x;
}

Tensor Bench::normals(const Shape& shape) const {
  return random(*this, shape, Distribution::normal, 0, 1);
}

Tensor Bench::uniforms(const Shape& shape, double low, double high) const {
  return random(*this, shape, Distribution::uniform, low, high);
}

Tensor Bench::integers(const Shape& shape, int64_t below) const {
  return converted(uniforms(shape, 0, static_cast<double>(below)), DType::i32);
}

Tensor Bench::converted(const Tensor& x, DType dtype) const {
  Tensor y = make_tensor(device(), dtype, x.shape);
  call(&OpTable::convert, most_threads(),
       {.in = x.data(), .out = y.data(), .in_dtype = x.dtype, .out_dtype = dtype, .size = x.size, .columns = 1});
  return y;
}

Tensor Bench::given(const std::vector<char>& bytes, DType dtype, const Shape& shape) const {
  Tensor x = make_tensor(device(), dtype, shape);
  check(backend().copy_in(device().context, x.data(), bytes.data(), bytes.size()));
  return x;
}

void limits_suite(const Bench& bench) {
  for (const int threads : bench.options.threads) {
    Group group;
    for (const DType compute : bench.platform.arithmetic)
      if (bench.options.uses(compute)) group.add(bench.platform.flops_limit(bench, compute, threads));
    group.add(bench.platform.bytes_limit(bench, threads));
    bench.harness.run(group);
  }
}

}  // namespace st_moe::bench

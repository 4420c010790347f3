// topk and grouped_gemm of the CUDA backend against those of the CPU.
#include <algorithm>
#include <array>
#include <tuple>

#include "core/convert.h"
#include "moe_layer.h"
#include "size.h"

namespace {

using namespace st_moe::test;
using namespace moe_reference;

template <class T>
void check_topk() {
  std::mt19937 engine(3);
  for (const auto& [rows, E, K] : std::vector<std::array<int64_t, 3>>{
           {3, 7, 3}, {2, 1, 1}, {4, 33, 33}, {2, 1000, 5}, {1, 257, 257}, {0, 5, 2}, {3, 5, 0}}) {
    std::vector<T> x(rows * E), dvalue(rows * K), value[2], dx[2];
    for (T& v : x) v = engine() % 7 == 0 ? T(NAN) : engine() % 9 == 0 ? -T(INFINITY) : T(engine() % 20) - 10;  // ties
    for (T& v : dvalue) v = T(engine() % 100);
    Indices index[2];
    const Device devices[2] = {cpu(), card()};
    for (int d = 0; d < 2; ++d) {
      value[d] = unset<T>(rows * K), dx[d] = unset<T>(rows * E), index[d] = Indices(rows * K, -7);
      Call c(devices[d]);
      int32_t* at = c.out(index[d]);
      expect_ok(c.run(&OpTable::topk, TopkArgs{c.in(x), c.out(value[d]), at, dtype_of<T>(), rows, E, K}), "topk");
      expect_ok(
          c.run(&OpTable::topk_backward, TopkBackwardArgs{c.in(dvalue), at, c.out(dx[d]), dtype_of<T>(), rows, E, K}),
          "topk_backward");
    }
    const std::string name = "topk of " + std::to_string(E);
    expect(index[0] == index[1], name + " index");
    expect(bytes_of(value[1]) == bytes_of(value[0]), name);
    expect(dx[0] == dx[1], name + " dx");
  }
  Call c(card());
  std::vector<T> dx(4), dvalue(2, T(1));
  const Indices wrong = {4, INT32_MIN};
  expect(c.run(&OpTable::topk_backward, TopkBackwardArgs{c.in(dvalue), c.in(wrong), c.out(dx), dtype_of<T>(), 1, 4, 2})
                 .code != ErrorCode::none,
         "index of topk_backward");
  expect(dx == std::vector<T>(4, 0), "wrong indices of topk_backward");
}

// y, dx and dw of a grouped product. On the card its sizes are known to the host or to the device alone.
template <class T>
Status grouped(const Device& device, const Indices& sizes, int64_t R, int64_t I, int64_t O, DType compute,
               bool host_knows, std::vector<T> (&out)[3]) {
  const int64_t G = int64_t(sizes.size());
  std::vector<T> x(R * I), w(G * O * I), dy(R * O);
  for (size_t i = 0; i < x.size(); ++i) x[i] = T(std::sin(i * 1.1));
  for (size_t i = 0; i < w.size(); ++i) w[i] = T(std::sin(i * 0.7 + 1));
  for (size_t i = 0; i < dy.size(); ++i) dy[i] = T(std::sin(i * 0.3 + 2));
  out[0] = unset<T>(R * O), out[1] = unset<T>(R * I), out[2] = unset<T>(G * O * I);
  Call c(device);
  const T *px = c.in(x), *pw = c.in(w);
  const int32_t *on_device = c.in(sizes), *on_host = host_knows ? sizes.data() : nullptr;
  const DType dtype = dtype_of<T>();
  const Status status = c.run(&OpTable::grouped_gemm,
                              GroupedGemmArgs{px, pw, on_device, on_host, c.out(out[0]), dtype, compute, R, G, I, O});
  const Status backward = c.run(&OpTable::grouped_gemm_backward,
                                GroupedGemmBackwardArgs{c.in(dy), px, pw, on_device, on_host, c.out(out[1]),
                                                        c.out(out[2]), dtype, compute, R, G, I, O});
  return status.code != ErrorCode::none ? status : backward;
}

// The same in float64, from operands that are rounded already.
double as_operand(double value, DType dtype, DType compute) {
  const float single = float(value);
  if (compute == DType::bf16) return bf16_to_float(float_to_bf16(single));
  if (compute == DType::f16) return f16_to_float(float_to_f16(single));
  return dtype == DType::f32 ? single : value;
}
void grouped_in_float64(const Indices& sizes, int64_t R, int64_t I, int64_t O, DType dtype, DType compute,
                        std::vector<double> (&out)[3]) {
  const int64_t G = int64_t(sizes.size());
  const auto operand = [&](double value) {
    return as_operand(dtype == DType::f32 ? float(value) : value, dtype, compute);
  };
  out[0].assign(R * O, 0), out[1].assign(R * I, 0), out[2].assign(G * O * I, 0);
  int64_t row = 0;
  for (int64_t g = 0; g < G; ++g)
    for (int64_t end = row + sizes[g]; row < end; ++row)
      for (int64_t o = 0; o < O; ++o)
        for (int64_t i = 0; i < I; ++i) {
          const int64_t at = (g * O + o) * I + i;
          const double x = operand(std::sin((row * I + i) * 1.1)), w = operand(std::sin(at * 0.7 + 1));
          const double dy = operand(std::sin((row * O + o) * 0.3 + 2));
          out[0][row * O + o] += x * w;
          out[1][row * I + i] += dy * w;
          out[2][at] += dy * x;
        }
}

template <class T>
void check_grouped(DType compute) {
  std::vector<T> got[3];
  std::vector<double> wanted[3];
  for (const auto& [sizes, I, O] :
       std::vector<std::tuple<Indices, int64_t, int64_t>>{{{5}, 3, 4},
                                                          {{0, 65, 0, 64, 1, 130, 0}, 19, 70},
                                                          {{0, 0}, 3, 4},
                                                          {{}, 3, 4},
                                                          {{7, 3}, 0, 4},
                                                          {{7, 3}, 4, 0},
                                                          {{1, 9, 2, 7}, 64, 128},
                                                          {Indices(600, 1), 2, 3}}) {
    int64_t R = 0;
    for (int32_t size : sizes) R += size;
    grouped_in_float64(sizes, R, I, O, dtype_of<T>(), compute, wanted);
    for (int way = 0; way < 3; ++way) {
      const char* ways[] = {"on the CPU", "with sizes of the device", "with sizes of the host"};
      const std::string name = "grouped_gemm of " + std::string(dtype_name(compute)) + " " + ways[way];
      expect_ok(grouped(way == 0 ? cpu() : card(), sizes, R, I, O, compute, way == 2, got), name);
      const double limit = rounding_limit<T> * sum_slack(std::max({I, O, R}));
      for (int i = 0; i < 3; ++i)
        expect_close(got[i], cast<T>(wanted[i]), name + ", result " + std::to_string(i), limit);
    }
  }
  for (const Indices& sizes :
       {Indices{-1, 6}, Indices{2, 2}, Indices{INT32_MAX, INT32_MAX, INT32_MIN}, Indices{9, 0, 1}})
    for (bool host_knows : {false, true})
      expect(grouped(card(), sizes, 5, 3, 4, compute, host_knows, got).code != ErrorCode::none, "wrong group sizes");
}

}  // namespace

int main() {
  check_topk<float>();
  check_grouped<float>(DType::f32);
  check_grouped<float>(DType::bf16);
  if (small()) return report("topk_grouped_test");
  check_topk<double>();
  check_grouped<float>(DType::f16);
  check_grouped<double>(DType::f64);
  return report("topk_grouped_test");
}

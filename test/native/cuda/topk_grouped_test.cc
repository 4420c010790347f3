// topk and grouped_gemm of the CUDA backend against those of the CPU.
#include <algorithm>
#include <array>
#include <tuple>

#include "../moe_reference.h"
#include "call.h"

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

template <class T>
Status grouped(const Device& device, const Indices& sizes, int64_t R, int64_t I, int64_t O, std::vector<T> (&out)[3]) {
  const int64_t G = int64_t(sizes.size());
  std::vector<T> x(R * I), w(G * O * I), dy(R * O);
  for (size_t i = 0; i < x.size(); ++i) x[i] = T(std::sin(i * 1.1));
  for (size_t i = 0; i < w.size(); ++i) w[i] = T(std::sin(i * 0.7 + 1));
  for (size_t i = 0; i < dy.size(); ++i) dy[i] = T(std::sin(i * 0.3 + 2));
  out[0] = unset<T>(R * O), out[1] = unset<T>(R * I), out[2] = unset<T>(G * O * I);
  Call c(device);
  const T *px = c.in(x), *pw = c.in(w);
  const int32_t* ps = c.in(sizes);
  const Status status =
      c.run(&OpTable::grouped_gemm, GroupedGemmArgs{px, pw, ps, c.out(out[0]), dtype_of<T>(), R, G, I, O});
  const Status backward =
      c.run(&OpTable::grouped_gemm_backward,
            GroupedGemmBackwardArgs{c.in(dy), px, pw, ps, c.out(out[1]), c.out(out[2]), dtype_of<T>(), R, G, I, O});
  return status.code != ErrorCode::none ? status : backward;
}

template <class T>
void check_grouped() {
  std::vector<T> a[3], b[3];
  for (const auto& [sizes, I, O] :
       std::vector<std::tuple<Indices, int64_t, int64_t>>{{{5}, 3, 4},
                                                          {{0, 65, 0, 64, 1, 130, 0}, 19, 70},
                                                          {{0, 0}, 3, 4},
                                                          {{}, 3, 4},
                                                          {{7, 3}, 0, 4},
                                                          {{7, 3}, 4, 0},
                                                          {Indices(600, 1), 2, 3}}) {
    int64_t R = 0;
    for (int32_t size : sizes) R += size;
    expect_ok(grouped(cpu(), sizes, R, I, O, a), "grouped_gemm on the CPU");
    expect_ok(grouped(card(), sizes, R, I, O, b), "grouped_gemm");
    for (int i = 0; i < 3; ++i) expect_close(b[i], a[i], "grouped_gemm result " + std::to_string(i));
  }
  for (const Indices& sizes :
       {Indices{-1, 6}, Indices{2, 2}, Indices{INT32_MAX, INT32_MAX, INT32_MIN}, Indices{9, 0, 1}})
    expect(grouped(card(), sizes, 5, 3, 4, b).code != ErrorCode::none, "wrong group sizes");
}

}  // namespace

int main() {
  check_topk<float>();
  check_topk<double>();
  check_grouped<float>();
  check_grouped<double>();
  return report("topk_grouped_test");
}

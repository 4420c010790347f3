// matmul, linear, grouped_gemm. Operands are rounded to `compute`, sums are not.
#include <algorithm>
#include <array>
#include <climits>
#include <numeric>

#include "../cuda/rounding.h"
#include "case.h"
#include "sizes.h"

namespace st_moe::test {
namespace {

std::vector<double> operand(Problem& p, const char* name, DType compute) {
  std::vector<double> x = p[name];
  if (compute != p.dtype())
    for (double& v : x) v = rounded(compute, v);
  return x;
}

void matmul(const MatmulArgs& a, Problem& p) {
  std::vector<double>&x = p["a"], &w = p["b"], &y = p["y"];
  for (int64_t b = 0; b < a.batch; ++b)
    for (int64_t m = 0; m < a.M; ++m)
      for (int64_t n = 0; n < a.N; ++n)
        for (int64_t k = 0; k < a.K; ++k)
          y[(b * a.M + m) * a.N + n] += x[b * a.a_batch_stride + (a.transpose_a ? k * a.M + m : m * a.K + k)] *
                                        w[b * a.b_batch_stride + (a.transpose_b ? n * a.K + k : k * a.N + n)];
}

void linear(const LinearArgs& a, Problem& p) {
  const std::vector<double> x = operand(p, "x", a.compute), w = operand(p, "w", a.compute);
  for (int64_t t = 0; t < a.T; ++t)
    for (int64_t o = 0; o < a.O; ++o) {
      double sum = p.has("bias") ? p["bias"][o] : 0;
      for (int64_t i = 0; i < a.I; ++i) sum += x[t * a.I + i] * w[o * a.I + i];
      p["y"][t * a.O + o] = sum;
    }
}

void linear_backward(const LinearBackwardArgs& a, Problem& p) {
  const std::vector<double> x = operand(p, "x", a.compute), w = operand(p, "w", a.compute),
                            dy = operand(p, "dy", a.compute);
  std::vector<double>&dx = p[p.has("dx_sum") ? "dx_sum" : "dx"], &dw = p["dw"], &dbias = p["dbias"];
  for (int64_t t = 0; t < a.T; ++t)
    for (int64_t o = 0; o < a.O; ++o) {
      dbias[o] += p["dy"][t * a.O + o];
      for (int64_t i = 0; i < a.I; ++i) {
        dx[t * a.I + i] += dy[t * a.O + o] * w[o * a.I + i];
        dw[o * a.I + i] += dy[t * a.O + o] * x[t * a.I + i];
      }
    }
}

// Calls f(index in x, in w, in y) for each term.
template <class Args, class F>
void grouped_terms(const Args& a, Problem& p, F&& f) {
  int64_t row = 0;
  for (int64_t g = 0; g < a.G; ++g)
    for (const int64_t end = row + static_cast<int64_t>(p["group_sizes"][g]); row < end; ++row)
      for (int64_t o = 0; o < a.O; ++o)
        for (int64_t i = 0; i < a.I; ++i) f(row * a.I + i, (g * a.O + o) * a.I + i, row * a.O + o);
}

void grouped_gemm(const GroupedGemmArgs& a, Problem& p) {
  const std::vector<double> x = operand(p, "x", a.compute), w = operand(p, "w", a.compute);
  std::vector<double>& y = p["y"];
  grouped_terms(a, p, [&](int64_t in, int64_t weight, int64_t out) { y[out] += x[in] * w[weight]; });
}

void grouped_gemm_backward(const GroupedGemmBackwardArgs& a, Problem& p) {
  const std::vector<double> x = operand(p, "x", a.compute), w = operand(p, "w", a.compute),
                            dy = operand(p, "dy", a.compute);
  std::vector<double>&dx = p["dx"], &dw = p["dw"];
  grouped_terms(a, p, [&](int64_t in, int64_t weight, int64_t out) {
    dx[in] += dy[out] * w[weight];
    dw[weight] += dy[out] * x[in];
  });
}

void add_matmul(Table& table, DType dtype, int64_t batch, int64_t M, int64_t N, int64_t K, int flags) {
  const bool shared_a = flags & 4, shared_b = flags & 8;
  table
      .add(MatmulArgs{.dtype = dtype,
                      .batch = batch,
                      .M = M,
                      .N = N,
                      .K = K,
                      .a_batch_stride = shared_a ? 0 : M * K,
                      .b_batch_stride = shared_b ? 0 : K * N,
                      .transpose_a = flags & 1,
                      .transpose_b = flags >> 1 & 1},
           {{"a", offsetof(MatmulArgs, a), Role::input, dtype, (shared_a ? 1 : batch) * M * K},
            {"b", offsetof(MatmulArgs, b), Role::input, dtype, (shared_b ? 1 : batch) * K * N},
            {"y", offsetof(MatmulArgs, y), Role::output, dtype, batch * M * N}})
      .tolerance(2 * sum_slack(K), sum_slack(K));
}

void add_linear(Table& table, DType dtype, DType compute, DType stored, int64_t T, int64_t I, int64_t O) {
  for (const bool biased : {true, false}) {
    Case& c = table.add(LinearArgs{.w_stored = stored, .dtype = dtype, .compute = compute, .T = T, .I = I, .O = O});
    c.tolerance(2 * sum_slack(I), sum_slack(I));
    if (!biased) c.without("bias");
  }
  const double slack = sum_slack(std::max(T, O));
  for (const char* no_dx : {"dx", "dx_sum"})
    table.add(LinearBackwardArgs{.w_stored = stored, .dtype = dtype, .compute = compute, .T = T, .I = I, .O = O})
        .without(no_dx)
        .tolerance(2 * slack, slack);
}

// With sizes that only the device knows, and with those that the host knows as well.
void add_grouped(Table& table, DType dtype, DType compute, DType stored, const Sizes& sizes, int64_t R, int64_t I,
                 int64_t O, bool wrong) {
  const int64_t G = static_cast<int64_t>(sizes.size());
  const double slack = sum_slack(std::max({I, O, R}));
  for (const bool host_copies : {false, true}) {
    const auto filled = [&](Case& c) {
      c.fill([=](Problem& p) { std::copy(sizes.begin(), sizes.end(), p["group_sizes"].begin()); });
      c.tolerance(2 * slack, 4 * slack).host_copies = host_copies;
      if (wrong) c.fails(ErrorCode::shape, "", true);
    };
    filled(table.add(
        GroupedGemmArgs{.w_stored = stored, .dtype = dtype, .compute = compute, .R = R, .G = G, .I = I, .O = O}));
    filled(table.add(GroupedGemmBackwardArgs{
        .w_stored = stored, .dtype = dtype, .compute = compute, .R = R, .G = G, .I = I, .O = O}));
  }
}

void add_all(Table& table, DType dtype, DType compute, DType stored) {
  const int64_t linears[][3] = {{0, 3, 4},   {3, 0, 4},    {3, 4, 0},    {1, 1, 1},     {0, 4, 6},
                                {70, 9, 33}, {300, 5, 65}, {2500, 2, 3}, {150, 70, 33}, {1, 9, 130}};
  for (const auto& [T, I, O] : linears) add_linear(table, dtype, compute, stored, T, I, O);
  const struct {
    Sizes sizes;
    int64_t I, O;
  } groups[] = {{{5}, 3, 4},
                {{3, 0, 40, 1, 0}, 21, 34},
                {{0, 65, 0, 64, 1, 130, 0}, 19, 70},
                {{0, 0}, 3, 4},
                {{}, 3, 4},
                {{7, 3}, 0, 4},
                {{7, 3}, 4, 0},
                {{1, 9, 2, 7}, 64, 128},
                {Sizes(600, 1), 2, 3}};
  for (const auto& [sizes, I, O] : groups)
    add_grouped(table, dtype, compute, stored, sizes, std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), I, O,
                false);
  for (const Sizes& sizes : {Sizes{-1, 6}, Sizes{2, 2}, Sizes{INT_MAX, INT_MAX, INT_MIN}, Sizes{9, 0, 1}})
    add_grouped(table, dtype, compute, stored, sizes, 5, 3, 4, true);
}

}  // namespace

void gemms(Table& table) {
  table.loop(matmul), table.loop(linear), table.loop(linear_backward), table.loop(grouped_gemm);
  table.loop(grouped_gemm_backward);
  for (DType dtype : reals()) {
    for (int flags = 0; flags < 16; ++flags)
      add_matmul(table, dtype, 3, 5, 7, 9, flags), add_matmul(table, dtype, 3, 19, 37, 23, flags);
    for (const auto& [batch, M, N, K] :
         {std::array<int64_t, 4>{0, 2, 2, 2}, {2, 0, 3, 2}, {2, 3, 0, 2}, {2, 3, 2, 0}, {1, 1, 1, 1}})
      for (int flags : {0, 3}) add_matmul(table, dtype, batch, M, N, K, flags);
    for (const DType stored : stored_as(dtype)) add_all(table, dtype, dtype, stored);
  }
  for (const DType stored : stored_as(DType::f32)) add_all(table, DType::f32, DType::bf16, stored);
  if (!small())
    for (const DType stored : stored_as(DType::f32)) add_all(table, DType::f32, DType::f16, stored);
}

}  // namespace st_moe::test

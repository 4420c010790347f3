#include <algorithm>
#include <array>
#include <climits>
#include <numeric>

#include "case.h"

namespace st_moe::test {
namespace {

void topk_loop(const TopkArgs& a, Problem& p) {
  for (int64_t t = 0; t < a.T; ++t) {
    const double* x = p["x"].data() + t * a.E;
    std::vector<int64_t> order(static_cast<size_t>(a.E));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
      if (std::isnan(x[i]) || std::isnan(x[j])) return std::isnan(x[i]) && !std::isnan(x[j]);
      return x[i] > x[j];
    });
    for (int64_t k = 0; k < a.K; ++k) {
      p["value"][t * a.K + k] = x[order[k]];
      p["index"][t * a.K + k] = static_cast<double>(order[k]);
    }
  }
}

void topk_backward(const TopkBackwardArgs& a, Problem& p) {
  std::vector<double>&index = p["index"], &dvalue = p["dvalue"], &dx = p["dx"];
  for (int64_t i = 0; i < a.T * a.K; ++i) {
    const double e = index[i];
    if (e >= 0 && e < double(a.E)) dx[i / a.K * a.E + static_cast<int64_t>(e)] = dvalue[i];
  }
}

void many_ties(Problem& p) {
  for (double& x : p["x"])
    x = p.random.below(7) == 0 ? NAN : p.random.below(9) == 0 ? -INFINITY : double(p.random.below(20) - 10);
}

}  // namespace

void topk(Table& table) {
  table.loop(topk_loop), table.loop(topk_backward);
  for (DType dtype : reals()) {
    for (const auto& [T, E, K] : {std::array<int64_t, 3>{0, 4, 2},
                                  {3, 1, 1},
                                  {3, 7, 3},
                                  {300, 16, 2},
                                  {50, 33, 33},
                                  {7, 1000, 8},
                                  {1, 257, 257},
                                  {4, 5, 0}}) {
      table.add(TopkArgs{.dtype = dtype, .T = T, .E = E, .K = K}).fill(many_ties).same_bits();
      table.add(TopkArgs{.dtype = dtype, .T = T, .E = E, .K = K}).same_bits();
      table.add(TopkBackwardArgs{.dtype = dtype, .T = T, .E = E, .K = K})
          .fill([E = E, K = K](Problem& p) {
            for (size_t i = 0; i < p["index"].size(); ++i) p["index"][i] = double((i / K * 7 + i % K) % E);
          })
          .same_bits();
    }
    table.add(TopkBackwardArgs{.dtype = dtype, .T = 1, .E = 4, .K = 2})
        .fill([](Problem& p) { p["index"] = {4, INT_MIN}; })
        .same_bits()
        .fails(ErrorCode::option, "");
  }
}

}  // namespace st_moe::test

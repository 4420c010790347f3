// Extrema of axes, entries by index, permutations.
#include <algorithm>
#include <climits>
#include <numeric>

#include "case.h"
#include "core/philox.h"
#include "sizes.h"

namespace st_moe::test {
namespace {

void extremum(const ExtremumArgs& a, Problem& p) {
  for (int64_t t = 0; t < a.T; ++t)
    for (int64_t i = 0; i < a.I; ++i) {
      const auto at = [&](int64_t row) { return p["x"][(t * a.A + row) * a.I + i]; };
      int64_t best = 0;
      for (int64_t row = 1; row < a.A && !std::isnan(at(best)); ++row)
        if (std::isnan(at(row)) || (a.largest ? at(row) > at(best) : at(row) < at(best))) best = row;
      p["value"][t * a.I + i] = at(best);
      p["index"][t * a.I + i] = static_cast<double>(best);
    }
}

template <class Args, class F>
void each_entry(const Args& a, Problem& p, F&& f) {  // f(entry of [T, K, I], where it points in [T, A, I])
  for (int64_t at = 0; at < a.T * a.K * a.I; ++at) {
    const double row = p["index"][at];
    if (row >= 0 && row < double(a.A)) f(at, (at / a.I / a.K * a.A + static_cast<int64_t>(row)) * a.I + at % a.I);
  }
}

void gather(const GatherArgs& a, Problem& p) {
  std::vector<double>&x = p["x"], &y = p["y"];
  each_entry(a, p, [&](int64_t to, int64_t from) { y[to] = x[from]; });
}

void gather_backward(const GatherBackwardArgs& a, Problem& p) {
  std::vector<double>&dy = p["dy"], &dx = p["dx"];
  each_entry(a, p, [&](int64_t from, int64_t to) { dx[to] = rounded(a.dtype, dx[to] + dy[from]); });
}

void randperm(const RandpermArgs& a, Problem& p) {
  const auto word = [&](int64_t i) { return uint64_t{philox_word(a.seed, a.step, static_cast<uint64_t>(i)) >> 1}; };
  const auto key = [&](double i) { return word(2 * int64_t(i)) << 31 | word(2 * int64_t(i) + 1); };
  std::vector<double>& out = p["out"];
  std::iota(out.begin(), out.end(), 0);
  std::stable_sort(out.begin(), out.end(), [&](double i, double j) { return key(i) < key(j); });
}

enum class Entries { normal, ties, infinite, ascending };

Fill entries(Entries kind) {
  return [=](Problem& p) {
    double next = 0;
    for (double& x : p["x"]) {
      if (kind == Entries::ties) x = p.random.below(50) == 0 ? NAN : double(p.random.below(3));
      if (kind == Entries::infinite) x = p.random.below(2) ? INFINITY : -INFINITY;
      if (kind == Entries::ascending) x = next++;
    }
  };
}

void add_extrema(Table& table, DType dtype) {
  const int64_t shapes[][3] = {{1, 1, 1},    {0, 4, 2},      {3, 0, 0},      {5, 3, 1},     {7, 40, 1},
                               {300, 33, 1}, {1, 100001, 1}, {2, 40000, 1},  {1, 70, 3},    {1, 2049, 7},
                               {3, 130, 40}, {2, 9, 1025},   {1, 4097, 300}, {100, 17, 19}, {1, 70000, 2}};
  for (const auto& [T, A, I] : shapes)
    for (const Entries kind : {Entries::normal, Entries::ties, Entries::infinite, Entries::ascending})
      for (const int32_t largest : {0, 1}) {
        if (small() && T * A * I > 20'000) continue;
        table.add(ExtremumArgs{.dtype = dtype, .T = T, .A = A, .I = I, .largest = largest})
            .fill(entries(kind))
            .same_bits();
      }
}

void add_gathers(Table& table, DType dtype, bool backward) {
  const int64_t shapes[][4] = {{1, 1, 1, 1},   {0, 3, 4, 2},    {2, 3, 0, 4},     {3, 5, 2, 7},
                               {2, 9, 1, 600}, {40, 6, 3, 1},   {1, 11, 70, 1},   {1, 300, 5000, 1},
                               {2, 7, 130, 3}, {600, 4, 1, 33}, {1, 2, 65, 20000}};
  for (const auto& [T, A, K, I] : shapes) {
    if (small() && T * K * I > 20'000) continue;
    const GatherArgs forward{.dtype = dtype, .T = T, .A = A, .K = K, .I = I};
    const GatherBackwardArgs gradient{.dtype = dtype, .T = T, .K = K, .I = I, .A = A};
    const auto both = [&, A = A](Fill wrong, bool fails) {
      Case& c = table.add(forward).fill(below("index", A)).fill(wrong).same_bits();
      if (fails) c.fails(ErrorCode::option, "index must be in [0, ");
      if (!backward) return;
      Case& b = table.add(gradient).fill(below("index", A)).fill(wrong).same_bits();
      if (fails) b.fails(ErrorCode::option, "index must be in [0, ");
    };
    both([](Problem&) {}, false);
    if (T * K * I == 0) continue;
    for (const int64_t index : {int64_t{-1}, A, int64_t{INT_MAX}, int64_t{INT_MIN}})
      both([index](Problem& p) { p["index"].back() = static_cast<double>(index); }, true);
  }
}

}  // namespace

void selection(Table& table) {
  table.loop(extremum), table.loop(gather), table.loop(gather_backward), table.loop(randperm);
  for (DType dtype : reals()) add_extrema(table, dtype);
  for (DType dtype : kDTypes) add_gathers(table, dtype, dtype == DType::f32 || dtype == DType::f64);
  for (int64_t size : kSizes) table.add(RandpermArgs{.size = size, .seed = 42, .step = 7}).same_bits();
}

}  // namespace st_moe::test

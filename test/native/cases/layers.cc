// Norms, softmax, cross entropy, embedding.
#include <climits>

#include "case.h"
#include "sizes.h"

namespace st_moe::test {
namespace {

double* row_of(std::vector<double>& x, int64_t t, int64_t D) {
  return x.data() + t * D;
}

void rmsnorm(const RmsnormArgs& a, Problem& p) {
  std::vector<double>&xs = p["x"], &gamma = p["gamma"], &ys = p["y"];
  for (int64_t t = 0; t < a.T; ++t) {
    double *x = row_of(xs, t, a.D), *y = row_of(ys, t, a.D);
    double squares = 0;
    for (int64_t j = 0; j < a.D; ++j) squares += x[j] * x[j];
    double norm = std::sqrt(squares);
    if (norm < 1e-12) norm = 1e-12;
    for (int64_t j = 0; j < a.D; ++j) y[j] = x[j] / norm * gamma[j] * std::sqrt(static_cast<double>(a.D));
  }
}

void layernorm(const LayernormArgs& a, Problem& p) {
  const double D = static_cast<double>(a.D);
  std::vector<double>&xs = p["x"], &weight = p["weight"], &bias = p["bias"], &ys = p["y"];
  for (int64_t t = 0; t < a.T; ++t) {
    double *x = row_of(xs, t, a.D), *y = row_of(ys, t, a.D);
    double mean = 0, squares = 0;
    for (int64_t j = 0; j < a.D; ++j) mean += x[j] / D;
    for (int64_t j = 0; j < a.D; ++j) squares += (x[j] - mean) * (x[j] - mean) / D;
    const double deviation = std::sqrt(squares + a.eps);
    for (int64_t j = 0; j < a.D; ++j) y[j] = (x[j] - mean) / deviation * weight[j] + bias[j];
  }
}

// The largest entry, and the sum of the exponentials of what the others are less by; NaN if one is.
std::pair<double, double> exponentials(const double* x, int64_t V) {
  double largest = -INFINITY, sum = 0;
  for (int64_t j = 0; j < V; ++j) largest = std::fmax(largest, x[j]);
  for (int64_t j = 0; j < V; ++j) sum += std::exp(x[j] - largest);
  return {largest, sum};
}

void softmax(const SoftmaxArgs& a, Problem& p) {
  std::vector<double>&xs = p["x"], &ys = p["y"];
  for (int64_t t = 0; t < a.T; ++t) {
    double *x = row_of(xs, t, a.V), *y = row_of(ys, t, a.V);
    const auto [largest, sum] = exponentials(x, a.V);
    const double log_sum = std::log(sum);
    for (int64_t j = 0; j < a.V; ++j) y[j] = a.log ? x[j] - largest - log_sum : std::exp(x[j] - largest) / sum;
  }
}

template <class Args>
int64_t counted_rows(const Args& a, Problem& p) {
  int64_t counted = 0;
  for (double target : p["target"]) counted += target != a.ignore_index && target >= 0 && target < double(a.V);
  return counted;
}

void cross_entropy(const CrossEntropyArgs& a, Problem& p) {
  const int64_t counted = counted_rows(a, p);
  double& loss = p["loss"][0];
  std::vector<double>&logits = p["logits"], &lses = p["lse"], &targets = p["target"];
  for (int64_t t = 0; t < a.T; ++t) {
    const double* x = row_of(logits, t, a.V);
    const auto [largest, sum] = exponentials(x, a.V);
    const double lse = lses[t] = largest + std::log(sum), target = targets[t];
    if (target == a.ignore_index) continue;
    const bool known = target >= 0 && target < double(a.V);
    loss += known ? (lse - x[static_cast<int64_t>(target)]) / static_cast<double>(counted) : NAN;
  }
}

void cross_entropy_backward(const CrossEntropyBackwardArgs& a, Problem& p) {
  const double scale = p["dloss"][0] / static_cast<double>(counted_rows(a, p));
  std::vector<double>&logits = p["logits"], &lse = p["lse"], &targets = p["target"], &dlogits = p["dlogits"];
  for (int64_t t = 0; t < a.T; ++t) {
    const double target = targets[t];
    if (target < 0 || target >= double(a.V)) continue;
    double *x = row_of(logits, t, a.V), *dx = row_of(dlogits, t, a.V);
    for (int64_t j = 0; j < a.V; ++j) dx[j] = scale * (std::exp(x[j] - lse[t]) - (j == target));
  }
}

void embedding(const EmbeddingArgs& a, Problem& p) {
  std::vector<double>&w = p["w"], &index = p["index"], &y = p["y"];
  for (int64_t i = 0; i < a.R * a.T; ++i)
    if (const double v = index[i % a.T]; v >= 0 && v < double(a.V))
      std::copy_n(row_of(w, i / a.T * a.V + static_cast<int64_t>(v), a.D), a.D, row_of(y, i, a.D));
}

void embedding_backward(const EmbeddingBackwardArgs& a, Problem& p) {
  std::vector<double>&dys = p["dy"], &index = p["index"], &dws = p["dw"];
  for (int64_t i = 0; i < a.R * a.T; ++i) {
    const double v = index[i % a.T];
    if (v < 0 || v >= double(a.V)) continue;
    double *dy = row_of(dys, i, a.D), *dw = row_of(dws, i / a.T * a.V + static_cast<int64_t>(v), a.D);
    for (int64_t j = 0; j < a.D; ++j) dw[j] = rounded(a.dtype, dw[j] + dy[j]);
  }
}

struct Rows {
  int64_t T, D;
};
const Rows kRows[] = {{0, 5},    {1, 1},     {3, 2},    {5, 17},   {9, 33},   {40, 64}, {70, 129},
                      {150, 64}, {1100, 33}, {2500, 3}, {3, 1025}, {2, 5000}, {3, 5000}};

// A NaN in one row stays there; a row of zeros; for softmax also infinities.
Fill spoil(const char* name, Rows s, bool infinities) {
  return [=](Problem& p) {
    std::vector<double>& x = p[name];
    if (s.T > 2) x[s.D + s.D / 2] = NAN;
    for (int64_t j = 0; s.T > 3 && j < s.D && !infinities; ++j) x[j] = 0;
    if (s.T <= 8 || !infinities) return;
    for (int64_t j = 0; j < s.D; ++j) x[5 * s.D + j] = -INFINITY, x[6 * s.D + j] = j ? -INFINITY : 1e30;
    x[8 * s.D - 1] = INFINITY;
    for (int64_t j = 0; j < s.D; ++j) x[8 * s.D + j] += 1000;
  };
}

void zero_row_has_no_gradient(Problem& p, const char* what) {
  const int64_t D = p.as<RmsnormBackwardArgs>().D;
  for (int64_t j = 0; p.has("dx") && j < D; ++j)
    check(p["dx"][j] == (p.has("dx_addend") ? p["dx_addend"][j] : 0), "%s: dx of a row of zeros", what);
}

void add_norms(Table& table, DType dtype, Rows s, bool spoilt) {
  // Of one value or two the gradient is what rounding leaves of large terms.
  const double terms = s.D > 2 ? 0 : 1000;
  const auto filled = [&](Case& c, double shift) -> Case& {
    c.fill(plus("x", shift));
    return spoilt ? c.fill(spoil("x", s, false)) : c;
  };
  const auto without = [](Case& c, int wanted, std::initializer_list<const char*> tensors) {
    for (const char* name : tensors) {
      if (wanted % 2 == 0) c.without(name);
      wanted /= 2;
    }
  };
  filled(table.add(RmsnormArgs{.dtype = dtype, .T = s.T, .D = s.D}), 0);
  filled(table.add(LayernormArgs{.dtype = dtype, .T = s.T, .D = s.D, .eps = 1e-5}), 2);
  for (int wanted = 0; wanted < 8; ++wanted) {
    Case& c = filled(table.add(RmsnormBackwardArgs{.dtype = dtype, .T = s.T, .D = s.D}), 0);
    without(c.tolerance(2).terms(terms), wanted, {"dx", "dgamma", "dx_addend"});
    if (spoilt && s.T > 3) c.verify = zero_row_has_no_gradient;
  }
  for (int wanted = 0; wanted < 8; ++wanted) {
    Case& c = filled(table.add(LayernormBackwardArgs{.dtype = dtype, .T = s.T, .D = s.D, .eps = 1e-5}), 2);
    without(c.tolerance(s.D > 3 ? 2 : 3).terms(terms), wanted, {"dx", "dweight", "dbias"});
  }
}

void add_softmax(Table& table, DType dtype, Rows s, int32_t log, bool spoilt) {
  Case& c = table.add(SoftmaxArgs{.dtype = dtype, .T = s.T, .V = s.D, .log = log}).fill(plus("x", 3));
  if (spoilt) c.fill(spoil("x", s, true));
  if (!spoilt)
    table.add(SoftmaxBackwardArgs{.dtype = dtype, .T = s.T, .V = s.D, .log = log}).tolerance(3).terms(s.D > 1 ? 0 : 1);
}

void add_cross_entropy(Table& table, DType dtype, Rows s, int64_t ignored_of_4, bool spoilt) {
  const CrossEntropyArgs forward{.dtype = dtype, .T = s.T, .V = s.D, .ignore_index = -100};
  const CrossEntropyBackwardArgs backward{.dtype = dtype, .T = s.T, .V = s.D, .ignore_index = -100};
  const auto filled = [&](Case& c) -> Case& {
    c.fill(below("target", s.D)).fill([=](Problem& p) {
      for (double& target : p["target"])
        if (p.random.below(4) < ignored_of_4) target = -100;
    });
    if (s.D < 2) c.terms(1);
    return spoilt ? c.fill(spoil("logits", s, false)) : c;
  };
  filled(table.add(forward));
  filled(table.add(backward)).tolerance(2);
  if (spoilt || s.T == 0) return;
  for (const double target : {-1.0, double(s.D), double(INT_MAX), double(INT_MIN)}) {
    const Fill wrong = [=](Problem& p) { p["target"][s.T - 1] = target; };
    const std::string where = " at " + std::to_string(s.T - 1);
    filled(table.add(forward)).fill(wrong).fails(ErrorCode::option, where);
    filled(table.add(backward)).fill(wrong).fails(ErrorCode::option, where);
  }
}

// So large a logit that only its own exponential counts, and does not overflow, wherever in the row it stands.
void add_large_logits(Table& table, DType dtype) {
  for (const int64_t at : {0, 1, 511, 512, 550, 1023, 1024, 1099})
    table.add(CrossEntropyArgs{.dtype = dtype, .T = 1, .V = 1100, .ignore_index = -100}).fill([=](Problem& p) {
      p["logits"][at] = 1000, p["target"][0] = static_cast<double>(at);
    });
}

// Each logit is above the ones before it, by so little that all count, or by so much that the last ones do.
void add_rising_logits(Table& table, DType dtype) {
  for (const double step : {1e-3, 0.1, 3.0})
    for (const int64_t V : {200, 1023, 4096})
      table.add(CrossEntropyArgs{.dtype = dtype, .T = 2, .V = V, .ignore_index = -100})
          .fill(below("target", V))
          .fill([=](Problem& p) {
            for (size_t i = 0; i < p["logits"].size(); ++i)
              p["logits"][i] = step * (static_cast<double>(i % size_t(V)) - 0.5 * double(V));
          });
}

void add_embedding(Table& table, DType dtype, int64_t T, int64_t D, int64_t V, int64_t used, int64_t R = 1) {
  const EmbeddingArgs forward{.dtype = dtype, .R = R, .T = T, .D = D, .V = V};
  const EmbeddingBackwardArgs backward{.dtype = dtype, .R = R, .T = T, .D = D, .V = V};
  table.add(forward).fill(below("index", used)).same_bits();
  table.add(backward).fill(below("index", used)).same_bits();
  if (T < 2) return;
  for (const int64_t index : {int64_t{-1}, V, int64_t{INT_MAX}, int64_t{INT_MIN}}) {
    const Fill wrong = [=](Problem& p) { p["index"][T / 2] = static_cast<double>(index); };
    const std::string where = "got " + std::to_string(index) + " at " + std::to_string(T / 2);
    table.add(forward).fill(below("index", used)).fill(wrong).same_bits().fails(ErrorCode::option, where);
    table.add(backward).fill(below("index", used)).fill(wrong).same_bits().fails(ErrorCode::option, where);
  }
}

}  // namespace

void layers(Table& table) {
  table.loop(rmsnorm), table.loop(layernorm), table.loop(softmax), table.loop(cross_entropy);
  table.loop(cross_entropy_backward), table.loop(embedding), table.loop(embedding_backward);
  for (DType dtype : reals()) {
    for (const Rows s : kRows)
      for (const bool spoilt : {false, true}) {
        if (small() && s.T * s.D > 8000) continue;
        add_norms(table, dtype, s, spoilt);
        for (const int32_t log : {0, 1}) add_softmax(table, dtype, s, log, spoilt);
        for (const int64_t ignored : {0, 1, 4}) add_cross_entropy(table, dtype, s, ignored, spoilt);
      }
    add_large_logits(table, dtype);
    add_rising_logits(table, dtype);
    const int64_t embeddings[][4] = {
        {0, 3, 4, 4},      {3, 0, 4, 4},           {1, 1, 1, 1},        {50, 7, 9, 3},
        {300, 33, 11, 11}, {2000, 64, 5000, 1000}, {700, 65, 300, 300}, {5000, 3, 70000, 70000},
        {2100, 2, 40, 1}};
    for (const auto& [T, D, V, used] : embeddings)
      if (!small() || V < 1000) add_embedding(table, dtype, T, D, V, used);
    add_embedding(table, dtype, 50, 7, 9, 9, 3);
    add_embedding(table, dtype, 1, 7, 9, 9, 0);
    if (small()) continue;
    add_cross_entropy(table, dtype, {9000, 2}, 1, false);  // more rows than groups of threads
    add_embedding(table, dtype, 70000, 1, 300, 300);       // more tiles of the sort than lanes of a warp
  }
}

}  // namespace st_moe::test

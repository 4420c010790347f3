// Element-wise ops and reductions.
#include "case.h"
#include "core/binary.h"
#include "core/unary.h"
#include "sizes.h"

namespace st_moe::test {
namespace {

double value_of(UnaryKind kind, double x) {
  switch (kind) {
    case UnaryKind::neg: return -x;
    case UnaryKind::exp: return std::exp(x);
    case UnaryKind::log: return std::log(x);
    case UnaryKind::sqrt: return std::sqrt(x);
    case UnaryKind::abs: return std::fabs(x);
    case UnaryKind::square: return x * x;
    case UnaryKind::relu: return x <= 0 ? 0 : x;
    case UnaryKind::gelu: return x == -INFINITY ? -0.0 : 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case UnaryKind::silu: return x == -INFINITY ? -0.0 : x / (1 + std::exp(-x));
    case UnaryKind::sigmoid: return 1 / (1 + std::exp(-x));
    case UnaryKind::tanh: return std::tanh(x);
    case UnaryKind::softplus: return std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x)));
  }
  return 0;
}

void unary(const UnaryArgs& a, Problem& p) {
  std::vector<double>&x = p["x"], &y = p["y"];
  for (size_t i = 0; i < y.size(); ++i) y[i] = value_of(a.kind, x[i]);
}

// By differences of the fourth order, whose own error is 1e-11 or so; exact where relu and abs have a corner.
void unary_backward(const UnaryBackwardArgs& a, Problem& p) {
  std::vector<double>&xs = p["x"], &dys = p["dy"], &dx = p["dx"];
  for (size_t i = 0; i < dx.size(); ++i) {
    const double x = xs[i], dy = dys[i], h = 1e-4;
    const auto f = [&](double step) { return value_of(a.kind, x + step); };
    if (a.kind == UnaryKind::relu)
      dx[i] = x <= 0 ? 0 : dy;
    else if (a.kind == UnaryKind::abs)
      dx[i] = x > 0 ? dy : x < 0 ? -dy : x;
    else
      dx[i] = dy * (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h);
  }
}

void set(Problem& p, const char* name, const std::vector<double>& first) {
  std::copy(first.begin(), first.end(), p[name].begin());
}

void add_unary(Table& table, DType dtype) {
  for (int32_t k = 0; k < kUnaryKindCount; ++k) {
    const UnaryKind kind = static_cast<UnaryKind>(k);
    const bool positive = kind == UnaryKind::log || kind == UnaryKind::sqrt;
    const auto forward = [&](int64_t size) -> Case& {
      return table.add(UnaryArgs{.dtype = dtype, .size = size, .kind = kind});
    };
    const auto backward = [&](int64_t size) -> Case& {
      return table.add(UnaryBackwardArgs{.dtype = dtype, .size = size, .kind = kind});
    };
    const Fill domain = [=](Problem& p) {
      for (double& x : p["x"])
        if (positive) x = std::fabs(x) + 0.125;
    };
    for (int64_t size : kSizes) {
      forward(size).fill(domain);
      backward(size).fill(domain).tolerance(dtype == DType::f32 ? 2 : 5e4);
    }
    const Fill special = [](Problem& p) { set(p, "x", {0, -0.0, INFINITY, -INFINITY, 80, -80, NAN, 1}); };
    forward(1500).fill(domain).fill(special);
    backward(1500).fill(domain).fill(special).device_only();
    if (kind == UnaryKind::relu || kind == UnaryKind::abs)  // slope 0 at 0; a NaN stays one, and relu selects
      backward(5).fill([](Problem& p) {
        set(p, "x", {0, -0.0, 1, -1, NAN});
        set(p, "dy", {3, 3, 3, INFINITY, 3});
      });
  }
}

double apply(BinaryKind kind, DType dtype, double a, double b) {
  switch (kind) {
    case BinaryKind::pow: return std::pow(a, b);
    case BinaryKind::maximum: return std::isnan(a) || a > b ? a : b;
    case BinaryKind::minimum: return std::isnan(a) || a < b ? a : b;
    case BinaryKind::less: return a < b;
    case BinaryKind::less_equal: return a <= b;
    case BinaryKind::equal: return a == b;
    case BinaryKind::keep: return b != 0 ? a : -0.0;
    default: break;
  }
  if (dtype == DType::i32) {  // wraps around
    const uint32_t x = static_cast<uint32_t>(static_cast<int32_t>(a)),
                   y = static_cast<uint32_t>(static_cast<int32_t>(b));
    return static_cast<int32_t>(kind == BinaryKind::add ? x + y : kind == BinaryKind::sub ? x - y : x * y);
  }
  return kind == BinaryKind::add ? a + b : kind == BinaryKind::sub ? a - b : kind == BinaryKind::mul ? a * b : a / b;
}

void binary(const BinaryArgs& a, Problem& p) {
  const int64_t* shape = a.shape;
  Sizes y = contiguous(Sizes(shape, shape + a.rank));
  const auto at_a = walk(a.rank, shape, a.a_strides, y.data()), at_b = walk(a.rank, shape, a.b_strides, y.data());
  std::vector<double>&left = p["a"], &right = p["b"], &out = p["y"];
  for (size_t i = 0; i < at_a.size(); ++i)
    out[at_a[i].second] = apply(a.kind, a.dtype, left[at_a[i].first], right[at_b[i].first]);
}

void add_binary(Table& table, DType dtype, const Sizes& shape, const Sizes& a, const Sizes& b) {
  BinaryArgs args{};
  args.dtype = dtype, args.rank = static_cast<int32_t>(shape.size());
  int64_t size = 1, a_size = 1, b_size = 1;
  for (size_t d = 0; d < shape.size(); ++d) {
    args.shape[d] = shape[d], args.a_strides[d] = a[d], args.b_strides[d] = b[d];
    size *= shape[d], a_size += a[d] * std::max<int64_t>(shape[d] - 1, 0);
    b_size += b[d] * std::max<int64_t>(shape[d] - 1, 0);
  }
  const bool in_place = a == contiguous(shape);
  for (int32_t kind = 0; kind < kBinaryKindCount; ++kind)
    for (const bool shared : {false, true}) {
      args.kind = static_cast<BinaryKind>(kind);
      if ((shared && !in_place) || (dtype == DType::i32 && is_for_floats(args.kind))) continue;
      const Tensor y{"y", offsetof(BinaryArgs, y), shared ? Role::updated : Role::output, dtype, size};
      Case& c = table
                    .add(args, {{"a", offsetof(BinaryArgs, a), Role::input, dtype, a_size, shared ? "y" : ""},
                                {"b", offsetof(BinaryArgs, b), Role::input, dtype, b_size},
                                y})
                    .fill([](Problem& p) {
                      for (Tensor& t : p.tensors)
                        for (double& x : t.numbers) {
                          if (t.dtype == DType::i32) x = p.random.normal() * 1e9;
                          if (p.random.below(4) == 0) x = 1;  // equal ones
                          if (p.as<BinaryArgs>().kind == BinaryKind::pow) x = std::fabs(x) + 0.25;
                        }
                    });
      if (args.kind == BinaryKind::pow)
        c.tolerance(2, 2);
      else
        c.same_bits();
    }
}

void add_binaries(Table& table, DType dtype) {
  for (int64_t size : kSizes) add_binary(table, dtype, {size}, {1}, {1}), add_binary(table, dtype, {size}, {1}, {0});
  const struct {
    Sizes shape, a, b;  // a stride of 0 broadcasts
  } cases[] = {{{}, {}, {}},
               {{1000}, {0}, {1}},
               {{1000}, {0}, {0}},
               {{130, 257}, {257, 1}, {0, 1}},
               {{130, 257}, {257, 1}, {1, 0}},
               {{130, 257}, {1, 0}, {0, 1}},
               {{3, 40000}, {40000, 1}, {0, 1}},
               {{20000, 3}, {3, 1}, {1, 0}},
               {{5, 1, 7, 3}, {21, 21, 3, 1}, {3, 3, 0, 1}},
               {{4, 5, 6, 7}, {0, 7, 0, 1}, {6, 0, 1, 0}},
               {{3, 4, 5, 2}, {40, 10, 0, 1}, {0, 2, 8, 0}},
               {{4, 0, 6}, {0, 6, 1}, {1, 0, 1}},
               {{5, 0}, {0, 1}, {0, 1}}};
  for (const auto& c : cases) add_binary(table, dtype, c.shape, c.a, c.b);
}

void token_mask(const TokenMaskArgs&, Problem& p) {
  for (size_t i = 0; i < p["x"].size(); ++i) p["mask"][i] = p["x"][i] != 0;
}

void scale(const ScaleArgs& a, Problem& p) {
  for (double& x : p["x"]) x *= rounded(a.dtype, a.factor);
}

void reduce(const ReduceArgs& a, Problem& p) {
  std::vector<double>&x = p["x"], &y = p["y"];
  for (int64_t i = 0; i < a.outer * a.axis * a.inner; ++i)
    y[i / (a.axis * a.inner) * a.inner + i % a.inner] += a.factor * x[i];
}

void norm(const NormArgs& a, Problem& p) {
  long double sum = 0;
  for (double x : p["x"]) sum += static_cast<long double>(x) * x;
  p["out"][0] = static_cast<double>(std::sqrt(sum) * a.scale);
}

void clip_norm(const ClipNormArgs& a, Problem& p) {
  const double norm = p["norm"][0];
  if (norm > a.max && std::isfinite(norm))
    for (double& x : p["x"]) x *= rounded(a.dtype, a.max / (norm + 1e-6));
}

void add_reductions(Table& table, DType dtype) {
  const int64_t shapes[][3] = {{1, 1, 1},      {1, 0, 1},      {3, 0, 5},      {0, 4, 2},     {5, 3, 1},
                               {1, 100001, 1}, {7, 5, 1},      {300, 33, 1},   {1, 16384, 1}, {1, 70, 3},
                               {2, 70000, 1},  {1000, 33, 1},  {1, 1000, 7},   {3, 700, 1},   {2, 1000, 5},
                               {1, 129, 300},  {1, 4097, 300}, {3, 130, 1025}, {100, 17, 19}, {1, 1, 9}};
  for (const auto& [outer, axis, inner] : shapes) {
    Case& c = table
                  .add(ReduceArgs{.dtype = dtype, .outer = outer, .axis = axis, .inner = inner, .factor = 0.25},
                       {{"x", offsetof(ReduceArgs, x), Role::input, dtype, outer * axis * inner},
                        {"y", offsetof(ReduceArgs, y), Role::output, dtype, outer * inner}})
                  .fill(plus("x", 1))
                  .tolerance(dtype == DType::f32 ? 1 : 5);
    if (outer * axis * inner > 100'000) c.cpu_only();
  }
  for (int64_t size : kSizes) {
    for (double scale : {1.0, 0x1p-500})
      table.add(NormArgs{.dtype = dtype, .size = size, .scale = scale},
                {{"x", offsetof(NormArgs, x), Role::input, dtype, size},
                 {"out", offsetof(NormArgs, out), Role::output, DType::f64, 1}});
    for (double norm : {0.5, 2.0, 1e300, static_cast<double>(NAN), static_cast<double>(INFINITY)})
      table
          .add(ClipNormArgs{.dtype = dtype, .size = size, .max = 1},
               {{"x", offsetof(ClipNormArgs, x), Role::updated, dtype, size},
                {"norm", offsetof(ClipNormArgs, norm), Role::input, DType::f64, 1}})
          .fill([norm](Problem& p) { p["norm"][0] = norm; })
          .same_bits();
    table.add(ScaleArgs{.dtype = dtype, .size = size, .factor = 0.3}).same_bits();
  }
}

}  // namespace

void elementwise(Table& table) {
  table.loop(unary), table.loop(unary_backward), table.loop(binary), table.loop(token_mask), table.loop(scale);
  table.loop(reduce), table.loop(norm), table.loop(clip_norm);
  for (DType dtype : kReals) add_unary(table, dtype), add_reductions(table, dtype);
  for (DType dtype : {DType::f32, DType::f64, DType::i32}) add_binaries(table, dtype);
  BinaryArgs division{};
  division.dtype = DType::i32, division.kind = BinaryKind::div;
  const auto scalar = [](const char* name, size_t offset, Role role) {
    return Tensor{name, offset, role, DType::i32, 1};
  };
  table
      .add(division,
           {scalar("a", offsetof(BinaryArgs, a), Role::input), scalar("b", offsetof(BinaryArgs, b), Role::input),
            scalar("y", offsetof(BinaryArgs, y), Role::output)})
      .fails(ErrorCode::dtype, "i32");
  for (DType dtype : kDTypes)
    table.add(TokenMaskArgs{.dtype = dtype, .size = 1000}).fill([](Problem& p) {
      std::fill(p["x"].begin(), p["x"].end(), 0);
      set(p, "x", {0, -0.0, 1, -1, 0.5, -0.25, 0x1p-24, 3e4, 1e300, INFINITY, -INFINITY});
    });
}

}  // namespace st_moe::test

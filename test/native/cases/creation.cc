// Creation, random numbers, copies.
#include <bit>
#include <limits>

#include "case.h"
#include "core/convert.h"
#include "core/philox.h"
#include "sizes.h"

namespace st_moe::test {
namespace {

void full(const FullArgs& a, Problem& p) {
  for (double& x : p["out"]) x = a.value;
}

double next(DType dtype, double x, double towards) {
  return dtype == DType::f64 ? std::nextafter(x, towards)
                             : static_cast<double>(std::nextafter(static_cast<float>(x), static_cast<float>(towards)));
}

void random(const RandomArgs& a, Problem& p) {
  std::vector<double>& out = p["out"];
  const size_t skipped = static_cast<size_t>(a.first_block) * 4;
  const auto word = [&](size_t i) { return philox_word(a.seed, a.step, skipped + i); };
  for (size_t i = 0; i < out.size(); ++i) {
    if (a.distribution == Distribution::uniform) {
      const double u =
          a.dtype == DType::f32 ? static_cast<double>(uniform24(word(i))) : uniform53(word(2 * i), word(2 * i + 1));
      out[i] = rounded(a.dtype, std::fma(a.b - a.a, u, a.a));
      if (out[i] >= a.b) out[i] = next(a.dtype, a.b, a.a);
    } else {  // Box–Muller
      const size_t j = i / 2 * 4;
      const double radius = std::sqrt(-2 * std::log(1 - uniform53(word(j), word(j + 1))));
      const double angle = 2 * M_PI * uniform53(word(j + 2), word(j + 3));
      out[i] = a.a + a.b * radius * (i % 2 ? std::sin(angle) : std::cos(angle));
    }
  }
}

void moments(Problem& p, const char* what) {
  const std::vector<double>& y = p["out"];
  const RandomArgs& a = p.as<RandomArgs>();
  double sums[4] = {};
  for (double x : y)
    for (int power = 0; power < 4; ++power)
      sums[power] += std::pow((x - a.a) / a.b, power + 1) / static_cast<double>(y.size());
  check(std::fabs(sums[0]) < 0.01 && std::fabs(sums[1] - 1) < 0.02 && std::fabs(sums[2]) < 0.05 &&
            std::fabs(sums[3] - 3) < 0.1,
        "%s: moments %g %g %g %g", what, sums[0], sums[1], sums[2], sums[3]);
}

void dropout(const DropoutArgs& a, Problem& p) {
  const double factor = rounded(a.dtype, 1 / (1 - a.p));
  std::vector<double>&x = p["x"], &y = p["y"];
  for (size_t i = 0; i < y.size(); ++i)
    y[i] = static_cast<double>(uniform24(philox_word(a.seed, a.step, i))) >= a.p ? x[i] * factor : 0;
}

void convert(const ConvertArgs&, Problem& p) {
  p["out"] = p["in"];
  p.find("out")->round();
}

// A number halfway between two of bf16 or f16, or next to it.
double next_to_half(TestRandom& random) {
  const int bits = random.below(2) ? 8 : 11, exponent = static_cast<int>(random.below(70)) - 35;
  const double odd = static_cast<double>(2 * random.below(1 << bits) + 1);  // in units of half the last bit
  return std::ldexp(odd + std::ldexp(static_cast<double>(random.below(3) - 1), -random.below(40)), exponent - bits);
}

// Numbers of all sizes, as bits, but no NaN; small ones; those where a conversion saturates or rounds to infinity; and
// those next to halves of bf16 and f16, which a rounding to float would turn into halves.
void fill_any(Problem& p) {
  Tensor& in = *p.find("in");
  const double inf = INFINITY;
  const double special[] = {0,    -0.0,         1,     -2.5, 65504, 65520, 1e-7, 6e-8, 3e38,
                            -3e9, 2147483647.0, 1e300, inf,  -inf,  NAN};
  for (size_t i = 0; i < in.numbers.size(); ++i) {
    const uint64_t bits = uint64_t{p.random.next()} << 33 ^ p.random.next();
    if (i < std::size(special))
      in.numbers[i] = special[i];
    else if (i % 4 == 1)
      in.numbers[i] *= 100;
    else if (i % 4 == 3)
      in.numbers[i] = next_to_half(p.random);
    else
      in.numbers[i] =
          in.decode(Bytes(reinterpret_cast<const char*>(&bits), reinterpret_cast<const char*>(&bits) + 8))[0];
    if (std::isnan(in.numbers[i]) && i >= std::size(special)) in.numbers[i] = 0;
  }
}

// Runs of numbers of one size: from those that a scale is too coarse for to those above the largest; zeros between
// them; and what makes a block NaN.
void fill_runs(Problem& p) {
  std::vector<double>& in = p["in"];
  const int least = p.find("in")->dtype == DType::int8 ? -3 : -22, sizes = 23 - least;
  constexpr size_t run = 23;
  for (size_t i = 0; i < in.size(); ++i) {
    const auto of = static_cast<int>(i / run);
    in[i] = of % 6 == 5 ? 0 : std::ldexp(in[i], of * 7 % sizes + least);
  }
  if (in.size() > 100) in[in.size() - 1] = NAN, in[in.size() - 101] = -INFINITY;
}

// To int8 and back, by rows of one block, of several, of a part of one; of no elements.
void add_blocks(Table& table) {
  const auto add = [&](DType from, DType to, int64_t rows, int64_t columns) {
    const int64_t size = rows * columns;
    return table
        .add(ConvertArgs{.in_dtype = from, .out_dtype = to, .size = size, .columns = columns},
             {{.name = "in",
               .offset = offsetof(ConvertArgs, in),
               .role = Role::input,
               .dtype = from,
               .size = size,
               .columns = columns},
              {.name = "out",
               .offset = offsetof(ConvertArgs, out),
               .role = Role::output,
               .dtype = to,
               .size = size,
               .columns = columns}})
        .called("rows of " + std::to_string(columns))
        .fill(fill_runs)
        .same_bits();
  };
  for (const int64_t columns : {1, 5, 32, 33, 64, 100}) {
    for (const DType dtype : kDTypes) add(dtype, DType::int8, 41, columns), add(DType::int8, dtype, 41, columns);
    add(DType::int8, DType::int8, 41, columns);
  }
  add(DType::f32, DType::int8, 0, 7), add(DType::int8, DType::f32, 5, 0);
  add(DType::f32, DType::int8, 1, 50000), add(DType::int8, DType::f32, 700, 130);
}

void strided_copy(const StridedCopyArgs& a, Problem& p) {
  for (const Walk& at : walk(a.rank, a.shape, a.in_strides, a.out_strides))
    p["out"][a.out_offset + at.second] = p["in"][a.in_offset + at.first];
}

void add_copy(Table& table, DType dtype, const Sizes& shape, const Sizes& in, const Sizes& out, int64_t in_offset,
              int64_t out_offset, int64_t in_size, int64_t out_size) {
  StridedCopyArgs args{};
  args.dtype = dtype, args.rank = static_cast<int32_t>(shape.size());
  args.in_offset = in_offset, args.out_offset = out_offset;
  std::copy(shape.begin(), shape.end(), args.shape);
  std::copy(in.begin(), in.end(), args.in_strides);
  std::copy(out.begin(), out.end(), args.out_strides);
  table
      .add(args, {{"in", offsetof(StridedCopyArgs, in), Role::input, dtype, in_size},
                  {"out", offsetof(StridedCopyArgs, out), Role::updated, dtype, out_size}})
      .same_bits();
}

void add_copies(Table& table, DType dtype, int64_t offset) {
  const struct {
    Sizes shape, order;  // `order`: of the dimensions in memory of out
  } permutations[] = {{{}, {}},
                      {{5}, {0}},
                      {{100003}, {0}},
                      {{0, 3}, {1, 0}},
                      {{1, 1}, {1, 0}},
                      {{33, 65}, {1, 0}},
                      {{300, 257}, {1, 0}},
                      {{2, 3, 4}, {2, 0, 1}},
                      {{2, 3, 4, 5}, {0, 2, 1, 3}},
                      {{3, 40, 50}, {2, 1, 0}},
                      {{7, 1, 9, 11}, {3, 2, 1, 0}},
                      {{64, 1, 64}, {0, 1, 2}},
                      {{70000, 2}, {1, 0}},
                      {{2, 70000}, {1, 0}},
                      {{2, 2, 2, 2, 2, 2, 2, 2}, {7, 5, 3, 1, 6, 4, 2, 0}}};
  for (const auto& [shape, order] : permutations) {
    Sizes out(shape.size());
    int64_t size = 1;
    for (size_t d = shape.size(); d-- > 0;) out[order[d]] = size, size *= shape[order[d]];
    add_copy(table, dtype, shape, contiguous(shape), out, offset, 1, size + offset, size + 2);
  }
  const struct {
    Sizes shape, in, out;
    int64_t in_offset, out_offset;
  } strided[] = {{{}, {}, {}, 3, 1},
                 {{7}, {3}, {-1}, 0, 6},
                 {{0, 5}, {5, 1}, {5, 1}, 0, 0},
                 {{33, 70}, {1, 33}, {70, 1}, 0, 0},
                 {{3, 40, 50}, {2000, 1, 40}, {2500, 50, 1}, 5, 9},
                 {{2, 9, 3, 31}, {837, 1, 279, 9}, {837, 93, 31, 1}, 0, 0},
                 {{4, 1, 6, 5}, {0, 7, 5, 1}, {30, 30, 5, 1}, 2, 0}};
  for (const auto& s : strided) add_copy(table, dtype, s.shape, s.in, s.out, s.in_offset, s.out_offset, 9000, 9000);
}

}  // namespace

void creation(Table& table) {
  table.loop(full), table.loop(random), table.loop(dropout), table.loop(convert), table.loop(strided_copy);
  for (DType dtype : kDTypes)
    for (int64_t size : kSizes)
      for (double value : {0.1, 1.5, -3.1e9})
        table.add(FullArgs{.dtype = dtype, .size = size, .value = value}).same_bits();
  for (DType dtype : kReals) {
    const auto add_random = [&](Distribution kind, int64_t size, double a, double b, int64_t first = 0) -> Case& {
      return table.add(RandomArgs{.dtype = dtype,
                                  .size = size,
                                  .distribution = kind,
                                  .a = a,
                                  .b = b,
                                  .seed = 42,
                                  .step = 7,
                                  .first_block = first});
    };
    for (int64_t size : kSizes)
      for (int64_t first : {0, 3}) {
        add_random(Distribution::uniform, size, -1.5, 2.5, first).same_bits();
        add_random(Distribution::normal, size, 0.5, 2, first);
      }
    add_random(Distribution::uniform, 300000, 1, next(dtype, 1, 2)).same_bits().cpu_only();
    add_random(Distribution::normal, 200001, 0.5, 2).cpu_only().verify = moments;

    const auto add_dropout = [&](int64_t size, double p) {
      table.add(DropoutArgs{.dtype = dtype, .size = size, .p = p, .seed = 8, .step = 9}).same_bits();
    };
    for (int64_t size : kSizes)
      for (double p : {0.0, 0.25, 0.3}) add_dropout(size, p);
    // A uniform equal to p stays; one that is a step below p goes.
    const double drawn = static_cast<double>(uniform24(philox_word(8, 9, 0)));
    for (double p : {drawn, drawn + 0x1p-26}) add_dropout(1, p);
  }
  for (DType from : kDTypes)
    for (DType to : kDTypes)
      for (int64_t size : {4000, 40000}) {
        Case& c = table
                      .add(ConvertArgs{.in_dtype = from, .out_dtype = to, .size = size},
                           {{"in", offsetof(ConvertArgs, in), Role::input, from, size},
                            {"out", offsetof(ConvertArgs, out), Role::output, to, size}})
                      .fill(fill_any)
                      .same_bits();
        if (size > 4000) c.cpu_only();
      }
  add_blocks(table);
  add_copies(table, DType::bf16, 0);
  add_copies(table, DType::i32, 3);
  add_copies(table, DType::f64, 5);
}

}  // namespace st_moe::test

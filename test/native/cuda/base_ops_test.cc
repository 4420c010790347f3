#include <limits>

#include "compare.h"

// Creation, copies, element-wise ops, reductions and optimizers on the card against the CPU.
using namespace st_moe;
using namespace st_moe::test;

namespace {

const int64_t kSizes[] = {0, 1, 3, 100, 1027, 20000};

std::string named(const char* op, int64_t size, int32_t detail = 0) {
  return std::string(op) + " " + std::to_string(size) + " " + std::to_string(detail);
}

template <class T>
void test_fill(DType dtype) {
  for (int64_t n : kSizes) {
    std::vector<T> y(n);
    FullArgs args{nullptr, dtype, n, -3.1e9};
    compare(named("full", n, static_cast<int32_t>(dtype)), &OpTable::full, args, {out(&args.out, y)}, kExact);
  }
}

template <class T>
void test_random() {
  for (int64_t n : kSizes) {
    std::vector<T> y(n);
    RandomArgs args{nullptr, dtype_of<T>(), n, Distribution::uniform, -1.5, 2.5, 42, 7};
    compare(named("uniform", n), &OpTable::random, args, {out(&args.out, y)}, kExact);
    args.distribution = Distribution::normal;
    compare(named("normal", n), &OpTable::random, args, {out(&args.out, y)}, kRounding);
    std::vector<T> x = normals<T>(n, 5);
    DropoutArgs dropout{nullptr, nullptr, dtype_of<T>(), n, 0.3, 9, 11};
    compare(named("dropout", n), &OpTable::dropout, dropout, {in(&dropout.x, x), out(&dropout.y, y)}, kExact);
  }
}

template <class In, class Out>
void test_convert(DType from, DType to) {
  const int64_t n = 4000;
  std::vector<In> x(n);
  Source source(3);
  for (int64_t i = 0; i < n; ++i) {  // all sizes of numbers, as bits
    const uint64_t bits = static_cast<uint64_t>(source.uniform() * 0x1p64);
    std::memcpy(&x[i], &bits, sizeof(In));
    if (i % 2 && from != DType::i32 && sizeof(In) > 2) x[i] = static_cast<In>(source.normal() * 100);
    if (x[i] != x[i]) x[i] = 0;  // the payload of a NaN is nobody's promise
  }
  std::vector<Out> y(n);
  ConvertArgs args{nullptr, nullptr, from, to, n};
  compare(std::string("convert ") + dtype_name(from) + " to " + dtype_name(to), &OpTable::convert, args,
          {in(&args.in, x), out(&args.out, y)}, kExact);
}

template <class In>
void test_convert_from(DType from) {
  test_convert<In, float>(from, DType::f32);
  test_convert<In, double>(from, DType::f64);
  if (sizeof(In) > 2) {  // random bits of 16-bit floats hold NaNs
    test_convert<In, uint16_t>(from, DType::bf16);
    test_convert<In, uint16_t>(from, DType::f16);
  }
  test_convert<In, int32_t>(from, DType::i32);
}

struct Copy {
  std::vector<int64_t> shape, in, out;
  int64_t in_offset, out_offset;
};

template <class T>
void test_strided_copy(DType dtype) {
  const Copy copies[] = {{{}, {}, {}, 3, 1},
                         {{7}, {3}, {-1}, 0, 6},
                         {{0, 5}, {5, 1}, {5, 1}, 0, 0},
                         {{33, 70}, {1, 33}, {70, 1}, 0, 0},
                         {{3, 40, 50}, {2000, 1, 40}, {2500, 50, 1}, 5, 9},
                         {{2, 9, 3, 31}, {837, 1, 279, 9}, {837, 93, 31, 1}, 0, 0},
                         {{4, 1, 6, 5}, {0, 7, 5, 1}, {30, 30, 5, 1}, 2, 0}};
  std::vector<T> x(9000);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(i);
  for (const Copy& copy : copies) {
    std::vector<T> y(9000, static_cast<T>(1));
    StridedCopyArgs args{nullptr, nullptr,        dtype,          static_cast<int32_t>(copy.shape.size()), {}, {},
                         {},      copy.in_offset, copy.out_offset};
    for (size_t d = 0; d < copy.shape.size(); ++d) {
      args.shape[d] = copy.shape[d];
      args.in_strides[d] = copy.in[d];
      args.out_strides[d] = copy.out[d];
    }
    compare(named("strided_copy", static_cast<int64_t>(copy.shape.size()), static_cast<int32_t>(sizeof(T))),
            &OpTable::strided_copy, args, {in(&args.in, x), in_out(&args.out, y)}, kExact);
  }
}

template <class T>
void test_unary() {
  for (int32_t kind = 0; kind < kUnaryKindCount; ++kind) {
    std::vector<T> x = normals<T>(1500, 8), dy = normals<T>(1500, 9), y(1500);
    const T special[] = {T(0),  T(-0.0), std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity(),
                         T(80), T(-80),  std::numeric_limits<T>::quiet_NaN()};
    std::copy(std::begin(special), std::end(special), x.begin());
    UnaryArgs args{nullptr, nullptr, dtype_of<T>(), 1500, static_cast<UnaryKind>(kind)};
    compare(named("unary", 1500, kind), &OpTable::unary, args, {in(&args.x, x), out(&args.y, y)}, kRounding);
    UnaryBackwardArgs backward{nullptr, nullptr, nullptr, dtype_of<T>(), 1500, static_cast<UnaryKind>(kind)};
    compare(named("unary_backward", 1500, kind), &OpTable::unary_backward, backward,
            {in(&backward.x, x), in(&backward.dy, dy), out(&backward.dx, y)}, kRounding);
  }
}

template <class T>
void test_binary(DType dtype) {
  struct Case {
    std::vector<int64_t> shape, a, b;
  };
  const Case cases[] = {{{}, {}, {}},
                        {{300}, {1}, {1}},
                        {{300}, {1}, {0}},
                        {{30, 10}, {10, 1}, {0, 1}},
                        {{30, 10}, {1, 0}, {10, 1}},
                        {{3, 4, 5, 2}, {40, 10, 0, 1}, {0, 2, 8, 0}},
                        {{5, 0}, {0, 1}, {0, 1}}};
  for (int32_t kind = 0; kind < (dtype == DType::i32 ? 3 : kBinaryKindCount); ++kind)
    for (const Case& c : cases) {
      std::vector<T> a(300), b(300), y(300, T(1));
      Source source(4);
      for (T& v : a) v = static_cast<T>(100 * source.normal());
      for (T& v : b) v = static_cast<T>(100 * source.normal() + 700);
      BinaryArgs args{
          nullptr, nullptr, nullptr, dtype, static_cast<BinaryKind>(kind), static_cast<int32_t>(c.shape.size()),
          {},      {},      {}};
      for (size_t d = 0; d < c.shape.size(); ++d) {
        args.shape[d] = c.shape[d];
        args.a_strides[d] = c.a[d];
        args.b_strides[d] = c.b[d];
      }
      compare(named("binary", static_cast<int64_t>(c.shape.size()), kind), &OpTable::binary, args,
              {in(&args.a, a), in(&args.b, b), in_out(&args.y, y)}, kExact);
    }
}

template <class T>  // how the dtype is stored
void test_token_mask(DType dtype) {
  std::vector<double> entries{0, -0.0, 1, -1, 0.5, -0.25, 0x1p-24, 3e4, 1e300, INFINITY, -INFINITY};
  entries.resize(1000, 0);
  const int64_t n = static_cast<int64_t>(entries.size());
  std::vector<T> x(entries.size());
  std::vector<int32_t> mask(entries.size());
  cpu_backend().ops.convert(Context{1, nullptr}, {entries.data(), x.data(), DType::f64, dtype, n});
  TokenMaskArgs args{nullptr, nullptr, dtype, n};
  compare(named("token_mask", n), &OpTable::token_mask, args, {in(&args.x, x), out(&args.mask, mask)}, kExact);
  expect(mask[0] == 0 && mask[1] == 0 && mask[2] == 1 && mask[7] == 1 && mask[999] == 0, "token_mask: values");
}

template <class T>
void test_reductions() {
  const int64_t shapes[][3] = {{1, 0, 1},  {3, 0, 5},   {7, 5, 1},    {300, 33, 1},  {2, 40000, 1}, {1, 16384, 1},
                               {1, 70, 3}, {3, 700, 1}, {2, 1000, 5}, {1, 129, 300}, {0, 4, 4}};
  for (const auto& [outer, axis, inner] : shapes) {
    std::vector<T> x = normals<T>(outer * axis * inner, 2, 1), y(outer * inner);
    ReduceArgs args{nullptr, nullptr, dtype_of<T>(), outer, axis, inner, 0.25};
    compare(named("reduce", outer * axis * inner, static_cast<int32_t>(inner)), &OpTable::reduce, args,
            {in(&args.x, x), out(&args.y, y)}, kRounding);
  }
  for (int64_t n : kSizes) {
    std::vector<T> x = normals<T>(n, 6);
    std::vector<double> y(1);
    for (double factor : {1.0, 0x1p-500}) {
      SumSquaresArgs args{nullptr, nullptr, dtype_of<T>(), n, factor};
      compare(named("sum_squares", n), &OpTable::sum_squares, args, {in(&args.x, x), out(&args.out, y)}, kRounding);
    }
    ScaleArgs scale{nullptr, dtype_of<T>(), n, 0.3};
    compare(named("scale", n), &OpTable::scale, scale, {in_out(&scale.x, x)}, kExact);
  }
}

template <class T>
void test_optimizers() {
  for (int64_t n : {int64_t{0}, int64_t{777}})
    for (int64_t step : {1, 2, 100}) {
      std::vector<T> p = normals<T>(n, 1), g = normals<T>(n, 2), m = normals<T>(n, 3), v = normals<T>(n, 4);
      for (T& x : v) x = x * x;
      AdamwArgs args{nullptr, nullptr, nullptr, nullptr, dtype_of<T>(), n, step, 1e-2, 0.9, 0.99, 1e-8, 0.1};
      compare(named("adamw", n, static_cast<int32_t>(step)), &OpTable::adamw, args,
              {in_out(&args.p, p), in(&args.g, g), in_out(&args.m, m), in_out(&args.v, v)}, kRounding);
      SgdArgs plain{nullptr, nullptr, nullptr, dtype_of<T>(), n, step, 1e-2, 0, 0.1};
      compare(named("sgd", n, static_cast<int32_t>(step)), &OpTable::sgd, plain, {in_out(&plain.p, p), in(&plain.g, g)},
              kRounding);
      SgdArgs momentum{nullptr, nullptr, nullptr, dtype_of<T>(), n, step, 1e-2, 0.9, 0.1};
      compare(named("sgd with momentum", n, static_cast<int32_t>(step)), &OpTable::sgd, momentum,
              {in_out(&momentum.p, p), in(&momentum.g, g), in_out(&momentum.buffer, m)}, kRounding);
    }
}

// Larger than the staging memory, so that both halves are used more than once.
void test_copies() {
  const Backend& card = machine().card();
  const Context& ctx = machine().context;
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{4} << 20, (size_t{17} << 20) + 3}) {
    Bytes host(bytes), back(bytes);
    for (size_t i = 0; i < bytes; ++i) host[i] = static_cast<char>(i * 2654435761u >> 13);
    void* data = card.allocate(ctx, bytes);
    expect(data != nullptr, "allocate");
    expect(card.copy_in(ctx, data, host.data(), bytes).code == ErrorCode::none, "copy in");
    expect(card.copy_out(ctx, back.data(), data, bytes).code == ErrorCode::none, "copy out");
    expect(host == back, "copies of " + std::to_string(bytes) + " bytes");
    card.release(ctx, data, bytes);
  }
  expect(card.allocate(ctx, size_t{1} << 46) == nullptr, "more memory than there is");
}

}  // namespace

int main() {
  test_copies();
  test_fill<float>(DType::f32);
  test_fill<double>(DType::f64);
  test_fill<uint16_t>(DType::bf16);
  test_fill<uint16_t>(DType::f16);
  test_fill<int32_t>(DType::i32);
  test_convert_from<float>(DType::f32);
  test_convert_from<double>(DType::f64);
  test_convert_from<int32_t>(DType::i32);
  test_strided_copy<uint16_t>(DType::bf16);
  test_strided_copy<uint32_t>(DType::f32);
  test_strided_copy<uint64_t>(DType::f64);
  test_binary<float>(DType::f32);
  test_binary<double>(DType::f64);
  test_binary<int32_t>(DType::i32);
  test_token_mask<float>(DType::f32);
  test_token_mask<double>(DType::f64);
  test_token_mask<uint16_t>(DType::bf16);
  test_token_mask<uint16_t>(DType::f16);
  test_token_mask<int32_t>(DType::i32);
  test_random<float>();
  test_random<double>();
  test_unary<float>();
  test_unary<double>();
  test_reductions<float>();
  test_reductions<double>();
  test_optimizers<float>();
  test_optimizers<double>();
  return report("base_ops_test");
}

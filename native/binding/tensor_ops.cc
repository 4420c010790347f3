#include <unordered_set>

#include "binding/call.h"
#include "core/binary.h"
#include "core/blocks.h"

// Ops whose call from JavaScript differs from their declaration: shapes that broadcast or are split, strides, numbers
// instead of tensors.
namespace st_moe {

static Napi::Value convert(Call& c) {  // (x, dtype)
  Tensor& x = c.stored("x");
  Tensor y = c.make(*x.device, c.stored_dtype("dtype"), x.shape);
  ConvertArgs args{nullptr, nullptr, x.dtype, y.dtype, x.size, x.shape.empty() ? 1 : x.shape[x.shape.size() - 1]};
  c.run<&OpTable::convert>(args, {{args.in, x}, {args.out, y, Use::made}});
  return c.give(std::move(y));
}

// The furthest element of a strided access must be inside the tensor.
static void expect_inside(const char* name, const Tensor& tensor, const Shape& shape, const Shape& strides,
                          int64_t offset) {
  long double last = static_cast<long double>(offset);
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0) return;
    last += static_cast<long double>(shape[i] - 1) * static_cast<long double>(strides[i]);
  }
  if (last >= static_cast<long double>(tensor.size)) fail(ErrorCode::shape, "%s: the strides leave the tensor", name);
}

static StridedCopyArgs strided(DType dtype, const Shape& shape, const Shape& in_strides, const Shape& out_strides,
                               int64_t in_offset, int64_t out_offset) {
  StridedCopyArgs args{};
  args.dtype = dtype;
  args.rank = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    args.shape[i] = shape[i];
    args.in_strides[i] = in_strides[i];
    args.out_strides[i] = out_strides[i];
  }
  args.in_offset = in_offset;
  args.out_offset = out_offset;
  return args;
}

static Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

// A blocked tensor is copied by whole rows that follow each other, from element `from` of x to element `to` of y: the
// elements, then the scales.
static void copy_rows(Call& c, const Tensor& x, int64_t from, const Tensor& y, int64_t to, const Shape& shape,
                      const Shape& strides, Use use) {
  const int64_t row = shape.size() > 0 ? shape[shape.size() - 1] : 0, size = shape_size(shape);
  const auto has_rows = [row](const Tensor& tensor) {
    return tensor.shape.size() > 0 && tensor.shape[tensor.shape.size() - 1] == row;
  };
  if (!has_rows(x) || !has_rows(y) || strides != contiguous_strides(shape) || (row > 0 && (from % row || to % row)))
    fail(ErrorCode::shape, "%s is copied by whole rows only", dtype_name(x.dtype));
  if (size == 0) return;
  const auto copy = [&](DType dtype, int64_t count, int64_t in, int64_t out) {
    StridedCopyArgs args = strided(dtype, {count}, {1}, {1}, in, out);
    c.run<&OpTable::strided_copy>(args, {{args.in, x}, {args.out, y, use}});
  };
  copy(x.dtype, size, from, to);
  const auto scale = [&](const Tensor& tensor, int64_t element) {
    return scales_at(tensor.size) / 2 + element / row * blocks_of(row);
  };
  copy(DType::f16, size / row * blocks_of(row), scale(x, from), scale(y, to));
}

static Napi::Value strided_read(Call& c) {  // (x, shape, strides, offset): a contiguous copy of a strided view
  Tensor& x = c.stored("x");
  const Shape shape = c.shape("shape");
  const Shape strides = c.integers("strides", shape.size());
  const int64_t offset = c.size("offset");
  expect_inside("x", x, shape, strides, offset);
  Tensor y = c.make(*x.device, x.dtype, shape);
  if (is_blocked(x.dtype)) {
    copy_rows(c, x, offset, y, 0, shape, strides, Use::made);
    return c.give(std::move(y));
  }
  StridedCopyArgs args = strided(x.dtype, shape, strides, contiguous_strides(shape), offset, 0);
  c.run<&OpTable::strided_copy>(args, {{args.in, x}, {args.out, y, Use::made}});
  return c.give(std::move(y));
}

static Napi::Value strided_write(
    Call& c) {  // (target, x, strides, offset): writes x into a strided view of target, in place
  Tensor& target = c.stored("target");
  Tensor& x = c.stored("x");
  const Shape strides = c.integers("strides", x.shape.size());
  const int64_t offset = c.size("offset");
  expect_inside("target", target, x.shape, strides, offset);
  if (x.dtype != target.dtype)
    fail(ErrorCode::dtype, "x must be %s, got %s", dtype_name(target.dtype), dtype_name(x.dtype));
  if (x.storage == target.storage) fail(ErrorCode::option, "x must not share memory with target");
  if (is_blocked(x.dtype)) {
    copy_rows(c, x, 0, target, offset, x.shape, strides, Use::updated);
    return c.env.Undefined();
  }
  StridedCopyArgs args = strided(x.dtype, x.shape, contiguous_strides(x.shape), strides, 0, offset);
  c.run<&OpTable::strided_copy>(args, {{args.in, x}, {args.out, target, Use::updated}});
  return c.env.Undefined();
}

static BinaryArgs broadcast(const Tensor& a, const Tensor& b, BinaryKind kind, Shape& shape) {
  const size_t rank = std::max(a.shape.size(), b.shape.size());
  shape = Shape(rank, 1);
  BinaryArgs args{};
  args.dtype = a.dtype;
  args.kind = kind;
  args.rank = static_cast<int32_t>(rank);
  int64_t a_stride = 1, b_stride = 1;
  for (size_t i = 0; i < rank; ++i) {  // from the last dimension
    const int64_t na = i < a.shape.size() ? a.shape[a.shape.size() - 1 - i] : 1;
    const int64_t nb = i < b.shape.size() ? b.shape[b.shape.size() - 1 - i] : 1;
    if (na != nb && na != 1 && nb != 1) fail(ErrorCode::shape, "the shapes do not broadcast");
    const size_t at = rank - 1 - i;
    shape[at] = args.shape[at] = na == 1 ? nb : na;
    args.a_strides[at] = na == 1 ? 0 : a_stride;
    args.b_strides[at] = nb == 1 ? 0 : b_stride;
    a_stride *= na;
    b_stride *= nb;
  }
  return args;
}

static void expect_binary(Call& c, const Tensor& a, const Tensor& b, BinaryKind kind) {
  if (a.dtype != DType::i32 || is_for_floats(kind)) c.expect_float("a", a);
  if (a.dtype != b.dtype) fail(ErrorCode::dtype, "b must be %s, got %s", dtype_name(a.dtype), dtype_name(b.dtype));
}

static Napi::Value binary(Call& c) {  // (a, b, kind)
  Tensor& a = c.tensor("a");
  Tensor& b = c.tensor("b");
  const auto kind = static_cast<BinaryKind>(c.integer("kind", 0, kBinaryKindCount - 1));
  expect_binary(c, a, b, kind);
  Shape shape;
  BinaryArgs args = broadcast(a, b, kind, shape);
  Tensor y = c.make(*a.device, a.dtype, shape);
  c.run<&OpTable::binary>(args, {{args.a, a}, {args.b, b}, {args.y, y, Use::made}});
  return c.give(std::move(y));
}

static Napi::Value add_in_place(Call& c) {  // (a, b): a += b, same shapes
  Tensor& a = c.tensor("a");
  Tensor& b = c.tensor("b");
  expect_binary(c, a, b, BinaryKind::add);
  c.expect("b", b, a.dtype, a.shape);
  Shape shape;
  BinaryArgs args = broadcast(a, b, BinaryKind::add, shape);
  c.run<&OpTable::binary>(args, {{args.a, a}, {args.b, b}, {args.y, a, Use::updated}});
  return c.env.Undefined();
}

static Napi::Value reduce(Call& c) {  // (x, outer, axis, inner, shape, factor)
  Tensor& x = c.tensor("x");
  c.expect_float("x", x);
  const Shape split = c.integers("split", 3);
  const Shape shape = c.shape("shape");
  const double factor = c.number("factor");
  if (shape_size(split) != x.size || shape_size(shape) != split[0] * split[2])
    fail(ErrorCode::shape, "the split does not fit the tensor");
  Tensor y = c.make(*x.device, x.dtype, shape);
  ReduceArgs args{nullptr, nullptr, x.dtype, split[0], split[1], split[2], factor};
  c.run<&OpTable::reduce>(args, {{args.x, x}, {args.y, y, Use::made}});
  return c.give(std::move(y));
}

// Float tensors of one device, at least one, whose handles are in a Float64Array.
static std::vector<Tensor*> floats(Call& c, const char* name, const Napi::Float64Array& handles) {
  std::vector<Tensor*> tensors;
  for (size_t i = 0; i < handles.ElementLength(); ++i) {
    tensors.push_back(&c.live(name, handles[i]));
    c.expect_float(name, *tensors.back());
  }
  if (tensors.empty()) fail(ErrorCode::option, "%s must not be empty", name);
  return tensors;
}

static Napi::Value norm(Call& c) {  // (xs, scale) → f64 [], √Σ (scale · x)² of all
  const Napi::Float64Array handles = c.numbers("xs");
  const double scale = c.number("scale");
  const std::vector<Tensor*> xs = floats(c, "xs", handles);
  Tensor out = c.make(*xs[0]->device, DType::f64, {});
  std::vector<NormArgs> items;
  for (const Tensor* x : xs) items.push_back({nullptr, nullptr, x->dtype, x->size, scale});
  std::vector<Operand> operands;
  for (size_t i = 0; i < xs.size(); ++i) {
    operands.emplace_back(items[i].x, *xs[i]);
    operands.emplace_back(items[i].out, out, i == 0 ? Use::made : Use::read);
  }
  c.run<&OpTable::norm>(items, operands);
  return c.give(std::move(out));
}

static Napi::Value clip_norm(Call& c) {  // (xs, norm, max); tensors that share memory are scaled once
  const Napi::Float64Array handles = c.numbers("xs");
  Tensor& norm = c.tensor("norm");
  const double max = c.number("max");
  c.expect("norm", norm, DType::f64, {});
  std::vector<Tensor*> own;
  std::unordered_set<Storage*> storages;
  for (Tensor* x : floats(c, "xs", handles))
    if (storages.insert(x->storage.get()).second) own.push_back(x);
  if (storages.count(norm.storage.get())) fail(ErrorCode::option, "xs must not share memory with norm");
  std::vector<ClipNormArgs> items;
  for (const Tensor* x : own) items.push_back({nullptr, nullptr, x->dtype, x->size, max});
  std::vector<Operand> operands;
  for (size_t i = 0; i < own.size(); ++i) {
    operands.emplace_back(items[i].x, *own[i], Use::updated);
    operands.emplace_back(items[i].norm, norm);
  }
  c.run<&OpTable::clip_norm>(items, operands);
  return c.env.Undefined();
}

static Napi::Value matmul(Call& c) {  // (a [batch | 1, M, K], b [batch | 1, K, N], transposeA, transposeB)
  Tensor& a = c.tensor("a");
  Tensor& b = c.tensor("b");
  const bool ta = c.boolean("transposeA"), tb = c.boolean("transposeB");
  c.expect_float("a", a);
  c.expect_rank("a", a, 3);
  c.expect("b", b, a.dtype, {-1, -1, -1});
  const int64_t M = a.shape[ta ? 2 : 1], K = a.shape[ta ? 1 : 2], N = b.shape[tb ? 1 : 2];
  if (b.shape[tb ? 2 : 1] != K)
    fail(ErrorCode::shape, "the inner dimensions differ: %lld and %lld", (long long)K, (long long)b.shape[tb ? 2 : 1]);
  const int64_t batch = a.shape[0] == 1 ? b.shape[0] : a.shape[0];
  if (b.shape[0] != batch && b.shape[0] != 1) fail(ErrorCode::shape, "the batch dimensions differ");
  Tensor y = c.make(*a.device, a.dtype, {batch, M, N});
  MatmulArgs args{
      nullptr, nullptr, nullptr, a.dtype, batch, M, N, K, a.shape[0] == 1 ? 0 : M * K, b.shape[0] == 1 ? 0 : K * N,
      ta,      tb};
  c.run<&OpTable::matmul>(args, {{args.a, a}, {args.b, b}, {args.y, y, Use::made}});
  return c.give(std::move(y));
}

const std::vector<Entry> kTensorEntries = {
    {"convert", convert, Order::recorded},
    {"stridedRead", strided_read, Order::recorded},
    {"stridedWrite", strided_write, Order::recorded},
    {"binary", binary, Order::recorded},
    {"addInPlace", add_in_place, Order::recorded},
    {"reduce", reduce, Order::recorded},
    {"norm", norm, Order::recorded},
    {"clipNorm", clip_norm, Order::recorded},
    {"matmul", matmul, Order::recorded},
};

}  // namespace st_moe

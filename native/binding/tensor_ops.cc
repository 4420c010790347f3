#include <cstring>
#include <limits>

#include "binding/call.h"
#include "core/plugin.h"

// Life cycle, copies, element-wise ops.
namespace st_moe {

static Napi::Value set_error_factory(Call& c) {
  const Napi::Value make = c.value();
  if (!make.IsFunction()) fail(ErrorCode::option, "expected a function");
  c.environment.error_factory = Napi::Persistent(make.As<Napi::Function>());
  return c.env.Undefined();
}

static Napi::Value set_threads(Call& c) {
  c.environment.set_threads(static_cast<int32_t>(c.integer("threads", 1, 256)));
  return c.env.Undefined();
}

static Napi::Value get_threads(Call& c) {
  return Napi::Number::New(c.env, c.environment.threads());
}

static Napi::Value device_info(Call& c) {
  Device& device = c.environment.device(c.integer("device", 0, 1 << 20));
  Napi::Object info = Napi::Object::New(c.env);
  info["name"] = device.backend->name;
  info["variant"] = device.backend->variant;
  return info;
}

static std::string path_of(Call& c) {
  Napi::Value value = c.value();
  if (!value.IsString()) fail(ErrorCode::option, "path must be a string");
  return value.As<Napi::String>().Utf8Value();
}

static Napi::Value probe_plugin(Call& c) {  // (path) → { devices, stage, reason }
  const Probe& probe = load_plugin(path_of(c)).probe;
  Napi::Object answer = Napi::Object::New(c.env);
  answer["devices"] = probe.device_count;
  answer["stage"] = probe.stage;
  answer["reason"] = probe.reason;
  return answer;
}

static Napi::Value open_device(Call& c) {  // (path, index) → device number
  const std::string path = path_of(c);
  const auto index = static_cast<int32_t>(c.integer("index", 0, 1 << 16));
  return Napi::Number::New(c.env, static_cast<double>(c.environment.open_device(path, index)));
}

static Napi::Value memory(Call& c) {
  const Device& device = c.environment.device(c.integer("device", 0, 1 << 20));
  const MemoryStats& stats = device.stats;
  Napi::Array values = Napi::Array::New(c.env, 4);
  values[0u] = static_cast<double>(stats.tensors);
  values[1u] = static_cast<double>(stats.bytes);
  values[2u] = static_cast<double>(stats.peak_bytes);
  values[3u] = static_cast<double>(device.backend->held_bytes(device.context));
  return values;
}

static Napi::Value reset_peak(Call& c) {
  MemoryStats& stats = c.environment.device(c.integer("device", 0, 1 << 20)).stats;
  stats.peak_bytes = stats.bytes;
  return c.env.Undefined();
}

// Handles from JavaScript's own bookkeeping: anything that is not a live handle is ignored or reported, never followed.
static int64_t handle_of(Call& c) {
  return c.integer("handle", 0, (int64_t{1} << 53) - 1);
}

static Napi::Value retain(Call& c) {
  c.environment.tensors.retain(handle_of(c));
  return c.env.Undefined();
}

static Napi::Value release(Call& c) {
  c.environment.tensors.release(handle_of(c));
  return c.env.Undefined();
}

// Nobody else holds the tensor or its memory: an engine may change it in place.
static Napi::Value unique(Call& c) {
  const int64_t handle = handle_of(c);
  const Tensor& tensor = c.environment.tensors.get(handle);
  return Napi::Boolean::New(c.env, c.environment.tensors.references(handle) == 1 && tensor.storage.use_count() == 1);
}

static Napi::Value version(Call& c) {
  return Napi::Number::New(c.env, c.tensor("tensor").storage->version());
}

static Napi::Value keep_packed(Call& c) {  // (tensor): it is a parameter
  c.tensor("tensor").storage->keep_packed();
  return c.env.Undefined();
}

static Napi::TypedArray typed_array(const Napi::Value& value) {
  if (!value.IsTypedArray()) fail(ErrorCode::option, "data must be a typed array");
  auto array = value.As<Napi::TypedArray>();
  if (!array.ArrayBuffer().IsArrayBuffer()) fail(ErrorCode::option, "data must not be shared memory");
  if (array.ArrayBuffer().IsDetached()) fail(ErrorCode::option, "the buffer of data has been detached");
  return array;
}

static const void* bytes_of(const Napi::TypedArray& array) {
  return static_cast<const uint8_t*>(array.ArrayBuffer().Data()) + array.ByteOffset();
}

static Napi::Value from_data(Call& c) {  // (data, dtype, shape, device)
  auto array = typed_array(c.value());
  const DType dtype = c.dtype("dtype");
  const Shape shape = c.shape("shape");
  Device& device = c.environment.device(c.integer("device", 0, 1 << 20));
  Tensor tensor = make_tensor(device, dtype, shape);
  const size_t bytes = static_cast<size_t>(tensor.size) * dtype_size(dtype);
  if (array.ByteLength() != bytes)
    fail(ErrorCode::shape, "data has %zu bytes, the shape needs %zu", array.ByteLength(), bytes);
  if (bytes) c.check(device.backend->copy_in(device.context, tensor.data(), bytes_of(array), bytes));
  if (device.plugin) tensor.storage->remember(bytes_of(array), dtype);
  return c.give(std::move(tensor));
}

static Napi::Value to_data(Call& c) {  // (tensor, data): fills data
  Tensor& tensor = c.tensor("tensor");
  auto array = typed_array(c.value());
  const size_t bytes = static_cast<size_t>(tensor.size) * dtype_size(tensor.dtype);
  if (array.ByteLength() != bytes)
    fail(ErrorCode::shape, "data has %zu bytes, the tensor %zu", array.ByteLength(), bytes);
  Device& device = *tensor.device;
  if (bytes)
    c.check(device.backend->copy_out(device.context, const_cast<void*>(bytes_of(array)), tensor.data(), bytes));
  return c.env.Undefined();
}

static Napi::Value to_device(Call& c) {  // (x, device): a copy there, through host memory
  Tensor& x = c.tensor("x");
  Device& device = c.environment.device(c.integer("device", 0, 1 << 20));
  Tensor y = make_tensor(device, x.dtype, x.shape);
  if (x.storage->packed()) y.storage->keep_packed();
  const size_t bytes = static_cast<size_t>(x.size) * dtype_size(x.dtype);
  if (bytes == 0) return c.give(std::move(y));
  if (x.device->plugin && device.plugin) {
    const std::unique_ptr<uint8_t[]> host(new uint8_t[bytes]);
    c.check(x.device->backend->copy_out(x.device->context, host.get(), x.data(), bytes));
    c.check(device.backend->copy_in(device.context, y.data(), host.get(), bytes));
  } else if (x.device->plugin) {
    c.check(x.device->backend->copy_out(x.device->context, y.data(), x.data(), bytes));
  } else {
    c.check(device.backend->copy_in(device.context, y.data(), x.data(), bytes));
    if (device.plugin) y.storage->remember(x.data(), x.dtype);
  }
  return c.give(std::move(y));
}

static Napi::Value full(Call& c) {  // (shape, dtype, device, value)
  const Shape shape = c.shape("shape");
  const DType dtype = c.dtype("dtype");
  Device& device = c.environment.device(c.integer("device", 0, 1 << 20));
  Tensor out = make_tensor(device, dtype, shape);
  c.run(device, &OpTable::fill, FillArgs{out.data(), dtype, out.size, c.number("value")});
  return c.give(std::move(out));
}

static Napi::Value random(Call& c) {  // (shape, dtype, device, normal, a, b, seed, step)
  const Shape shape = c.shape("shape");
  const DType dtype = c.dtype("dtype");
  Device& device = c.environment.device(c.integer("device", 0, 1 << 20));
  if (!is_float(dtype)) fail(ErrorCode::dtype, "dtype must be f32 or f64, got %s", dtype_name(dtype));
  const auto distribution = c.boolean("normal") ? Distribution::normal : Distribution::uniform;
  const double a = c.number("a"), b = c.number("b");
  const uint64_t seed = c.seed("seed"), step = c.seed("step");
  Tensor out = make_tensor(device, dtype, shape);
  c.run(device, &OpTable::random, RandomArgs{out.data(), dtype, out.size, distribution, a, b, seed, step});
  return c.give(std::move(out));
}

static Napi::Value convert(Call& c) {  // (x, dtype)
  Tensor& x = c.tensor("x");
  Tensor y = make_tensor(*x.device, c.dtype("dtype"), x.shape);
  c.run(*x.device, &OpTable::convert, ConvertArgs{x.data(), y.data(), x.dtype, y.dtype, x.size});
  return c.give(std::move(y));
}

static Shape shape_for(Call& c, const Tensor& x) {
  const Shape shape = c.shape("shape");
  if (shape_size(shape) != x.size)
    fail(ErrorCode::shape, "the new shape must keep %lld elements", static_cast<long long>(x.size));
  return shape;
}

static Napi::Value reshape(Call& c) {  // (x, shape): shares memory
  Tensor y = c.tensor("x");
  y.shape = shape_for(c, y);
  return c.give(std::move(y));
}

// (x, shape): takes over x once it succeeds, and needs no memory if nobody else holds x.
static Napi::Value reshape_owned(Call& c) {
  const int64_t handle = handle_of(c);
  TensorTable& tensors = c.environment.tensors;
  const Shape shape = shape_for(c, tensors.get(handle));
  if (tensors.references(handle) == 1) {
    tensors.get(handle).shape = shape;
    return Napi::Number::New(c.env, static_cast<double>(handle));
  }
  Tensor y = tensors.get(handle);
  y.shape = shape;
  Napi::Value result = c.give(std::move(y));
  tensors.release(handle);
  return result;
}

// The furthest element that a strided walk touches must lie inside the tensor.
static void expect_inside(const char* name, const Tensor& tensor, const Shape& shape, const Shape& strides,
                          int64_t offset) {
  long double last = static_cast<long double>(offset);
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0) return;
    last += static_cast<long double>(shape[i] - 1) * static_cast<long double>(strides[i]);
  }
  if (last >= static_cast<long double>(tensor.size)) fail(ErrorCode::shape, "%s: the strides leave the tensor", name);
}

static StridedCopyArgs strided(const Tensor& in, const Tensor& out, const Shape& shape, const Shape& in_strides,
                               const Shape& out_strides, int64_t in_offset, int64_t out_offset) {
  StridedCopyArgs args{};
  args.in = in.data();
  args.out = out.data();
  args.dtype = in.dtype;
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

static Napi::Value gather(Call& c) {  // (x, shape, strides, offset): a contiguous copy of a strided view
  Tensor& x = c.tensor("x");
  const Shape shape = c.shape("shape");
  const Shape strides = c.integers("strides", shape.size());
  const int64_t offset = c.size("offset");
  expect_inside("x", x, shape, strides, offset);
  Tensor y = make_tensor(*x.device, x.dtype, shape);
  if (y.size)
    c.run(*x.device, &OpTable::strided_copy, strided(x, y, y.shape, strides, contiguous_strides(y.shape), offset, 0));
  return c.give(std::move(y));
}

static Napi::Value scatter(Call& c) {  // (target, x, strides, offset): writes x into a strided view of target, in place
  Tensor& target = c.tensor("target");
  Tensor& x = c.tensor("x");
  const Shape strides = c.integers("strides", x.shape.size());
  const int64_t offset = c.size("offset");
  expect_inside("target", target, x.shape, strides, offset);
  if (x.dtype != target.dtype)
    fail(ErrorCode::dtype, "x must be %s, got %s", dtype_name(target.dtype), dtype_name(x.dtype));
  if (x.storage == target.storage) fail(ErrorCode::option, "x must not share memory with target");
  target.storage->change();
  if (x.size)
    c.run(*x.device, &OpTable::strided_copy,
          strided(x, target, x.shape, contiguous_strides(x.shape), strides, 0, offset));
  return c.env.Undefined();
}

static Napi::Value unary_kinds(Call& c) {
  static const char* names[kUnaryKindCount] = {"neg",  "exp",  "log",  "sqrt",    "abs", "square",
                                               "relu", "gelu", "silu", "sigmoid", "tanh"};
  Napi::Array array = Napi::Array::New(c.env, kUnaryKindCount);
  for (uint32_t i = 0; i < kUnaryKindCount; ++i) array[i] = names[i];
  return array;
}

static Napi::Value unary(Call& c) {  // (x, kind)
  Tensor& x = c.tensor("x");
  c.expect_float("x", x);
  const auto kind = static_cast<UnaryKind>(c.integer("kind", 0, kUnaryKindCount - 1));
  Tensor y = make_tensor(*x.device, x.dtype, x.shape);
  c.run(*x.device, &OpTable::unary, UnaryArgs{x.data(), y.data(), x.dtype, x.size, kind});
  return c.give(std::move(y));
}

static Napi::Value unary_backward(Call& c) {  // (x, dy, kind)
  Tensor& x = c.tensor("x");
  Tensor& dy = c.tensor("dy");
  c.expect_float("x", x);
  c.expect("dy", dy, x.dtype, x.shape);
  const auto kind = static_cast<UnaryKind>(c.integer("kind", 0, kUnaryKindCount - 1));
  Tensor dx = make_tensor(*x.device, x.dtype, x.shape);
  c.run(*x.device, &OpTable::unary_backward, UnaryBackwardArgs{x.data(), dy.data(), dx.data(), x.dtype, x.size, kind});
  return c.give(std::move(dx));
}

static BinaryArgs broadcast(const Tensor& a, const Tensor& b, BinaryKind kind, Shape& shape) {
  const size_t rank = std::max(a.shape.size(), b.shape.size());
  shape = Shape(rank, 1);
  BinaryArgs args{};
  args.a = a.data();
  args.b = b.data();
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
  if (a.dtype != DType::i32 || kind == BinaryKind::div) c.expect_float("a", a);
  if (a.dtype != b.dtype) fail(ErrorCode::dtype, "b must be %s, got %s", dtype_name(a.dtype), dtype_name(b.dtype));
}

static Napi::Value binary(Call& c) {  // (a, b, kind)
  Tensor& a = c.tensor("a");
  Tensor& b = c.tensor("b");
  const auto kind = static_cast<BinaryKind>(c.integer("kind", 0, kBinaryKindCount - 1));
  expect_binary(c, a, b, kind);
  Shape shape;
  BinaryArgs args = broadcast(a, b, kind, shape);
  Tensor y = make_tensor(*a.device, a.dtype, shape);
  args.y = y.data();
  c.run(*a.device, &OpTable::binary, args);
  return c.give(std::move(y));
}

static Napi::Value add_in_place(Call& c) {  // (a, b): a += b, same shapes
  Tensor& a = c.tensor("a");
  Tensor& b = c.tensor("b");
  expect_binary(c, a, b, BinaryKind::add);
  c.expect("b", b, a.dtype, a.shape);
  Shape shape;
  BinaryArgs args = broadcast(a, b, BinaryKind::add, shape);
  args.y = a.data();
  a.storage->change();
  c.run(*a.device, &OpTable::binary, args);
  return c.env.Undefined();
}

static Napi::Value scale_in_place(Call& c) {  // (x, factor)
  Tensor& x = c.tensor("x");
  c.expect_float("x", x);
  const double factor = c.number("factor");
  x.storage->change();
  c.run(*x.device, &OpTable::scale, ScaleArgs{x.data(), x.dtype, x.size, factor});
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
  Tensor y = make_tensor(*x.device, x.dtype, shape);
  c.run(*x.device, &OpTable::reduce, ReduceArgs{x.data(), y.data(), x.dtype, split[0], split[1], split[2], factor});
  return c.give(std::move(y));
}

static Napi::Value sum_squares(Call& c) {  // (x, scale) → Σ (scale · x)²
  Tensor& x = c.tensor("x");
  const double scale = c.number("scale");
  c.expect_float("x", x);
  Tensor out = make_tensor(*x.device, DType::f64, {});
  c.run(*x.device, &OpTable::sum_squares, SumSquaresArgs{x.data(), out.data(), x.dtype, x.size, scale});
  double value = 0;
  c.check(x.device->backend->copy_out(x.device->context, &value, out.data(), sizeof value));
  return Napi::Number::New(c.env, value);
}

const std::vector<Entry> kTensorEntries = {
    {"setErrorFactory", set_error_factory},
    {"setThreads", set_threads},
    {"getThreads", get_threads},
    {"deviceInfo", device_info},
    {"probePlugin", probe_plugin},
    {"openDevice", open_device},
    {"memory", memory},
    {"resetPeak", reset_peak},
    {"retain", retain},
    {"release", release},
    {"unique", unique},
    {"version", version},
    {"keepPacked", keep_packed},
    {"fromData", from_data},
    {"toData", to_data},
    {"toDevice", to_device},
    {"full", full},
    {"random", random},
    {"convert", convert},
    {"reshape", reshape},
    {"reshapeOwned", reshape_owned},
    {"gather", gather},
    {"scatter", scatter},
    {"unaryKinds", unary_kinds},
    {"unary", unary},
    {"unaryBackward", unary_backward},
    {"binary", binary},
    {"addInPlace", add_in_place},
    {"scaleInPlace", scale_in_place},
    {"reduce", reduce},
    {"sumSquares", sum_squares},
};

}  // namespace st_moe

#include "case.h"

#include <algorithm>
#include <cstring>

#include "core/convert.h"

namespace st_moe::test {

// To nearest even, once, with so many bits and exponents from `least` to `most`.
static double rounded_to(double value, int bits, int least, int most) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int last = std::max(std::ilogb(value), least) - bits + 1;  // exponent of the last bit
  const double near = std::ldexp(std::nearbyint(std::ldexp(value, -last)), last);
  return std::fabs(near) < std::ldexp(1.0, most + 1) ? near : std::copysign(INFINITY, value);
}

double rounded(DType dtype, double value) {
  switch (dtype) {
    case DType::f32: return static_cast<float>(value);
    case DType::f64: return value;
    case DType::bf16: return rounded_to(value, 8, -126, 127);
    case DType::f16: return rounded_to(value, 11, -14, 15);
    default: return std::isnan(value) ? 0 : std::trunc(std::fmin(std::fmax(value, -2147483648.0), 2147483647.0)) + 0.0;
  }
}

namespace {

template <class T, class F>
Bytes encoded(const std::vector<double>& numbers, F&& to) {
  Bytes bytes(numbers.size() * sizeof(T));
  for (size_t i = 0; i < numbers.size(); ++i) {
    const T value = static_cast<T>(to(numbers[i]));
    std::memcpy(&bytes[i * sizeof(T)], &value, sizeof(T));
  }
  return bytes;
}

template <class T, class F>
std::vector<double> decoded(const Bytes& bytes, F&& from) {
  std::vector<double> numbers(bytes.size() / sizeof(T));
  for (size_t i = 0; i < numbers.size(); ++i) {
    T value;
    std::memcpy(&value, &bytes[i * sizeof(T)], sizeof(T));
    numbers[i] = static_cast<double>(from(value));
  }
  return numbers;
}

template <class T>
T same(T value) {
  return value;
}

// Calls f(first element, elements, offset of the scale) for each block.
template <class F>
void for_blocks(const Tensor& t, F&& f) {
  auto scale = static_cast<size_t>(scales_at(t.size));
  for (int64_t row = 0; row < t.size; row += t.columns)
    for (int64_t at = 0; at < t.columns; at += kBlockElements, scale += 2)
      f(static_cast<size_t>(row + at), std::min(kBlockElements, t.columns - at), scale);
}

Bytes encoded_blocks(const Tensor& t) {
  Bytes bytes(t.bytes_in_memory());
  for_blocks(t, [&](size_t first, int64_t count, size_t at) {
    const auto x = [&](int64_t i) { return static_cast<float>(t.numbers[first + static_cast<size_t>(i)]); };
    const auto q = [&](int64_t i, int8_t level) { bytes[first + static_cast<size_t>(i)] = static_cast<char>(level); };
    const uint16_t scale = quantize_block(count, x, q);
    std::memcpy(&bytes[at], &scale, sizeof scale);
  });
  return bytes;
}

std::vector<double> decoded_blocks(const Tensor& t, const Bytes& bytes) {
  std::vector<double> numbers(static_cast<size_t>(t.size));
  for_blocks(t, [&](size_t first, int64_t count, size_t at) {
    uint16_t scale;
    std::memcpy(&scale, &bytes[at], sizeof scale);
    for (size_t i = first; i < first + static_cast<size_t>(count); ++i)
      numbers[i] = static_cast<double>(static_cast<signed char>(bytes[i])) * static_cast<double>(f16_to_float(scale));
  });
  return numbers;
}

}  // namespace

void Tensor::round() {
  if (is_blocked(dtype) && !numbers.empty()) numbers = decode(encode());
  for (double& x : numbers)
    if (!is_blocked(dtype)) x = rounded(dtype, x);
}

Bytes Tensor::encode() const {
  switch (dtype) {
    case DType::f32: return encoded<float>(numbers, same<double>);
    case DType::f64: return encoded<double>(numbers, same<double>);
    case DType::bf16: return encoded<uint16_t>(numbers, float_to_bf16);
    case DType::f16: return encoded<uint16_t>(numbers, float_to_f16);
    case DType::int8: return encoded_blocks(*this);
    default: return encoded<int32_t>(numbers, [](double x) { return rounded(DType::i32, x); });
  }
}

std::vector<double> Tensor::decode(const Bytes& bytes) const {
  switch (dtype) {
    case DType::f32: return decoded<float>(bytes, same<float>);
    case DType::f64: return decoded<double>(bytes, same<double>);
    case DType::bf16: return decoded<uint16_t>(bytes, bf16_to_float);
    case DType::f16: return decoded<uint16_t>(bytes, f16_to_float);
    case DType::int8: return decoded_blocks(*this, bytes);
    default: return decoded<int32_t>(bytes, same<int32_t>);
  }
}

Tensor* Problem::find(const std::string& name) {
  for (Tensor& t : tensors)
    if (name == t.name) return t.shares.empty() ? &t : find(t.shares);
  return nullptr;
}

bool Problem::has(const std::string& name) {
  const Tensor* t = find(name);
  return t && t->present;
}

DType Problem::dtype() const {
  for (const Field& field : op->fields)
    if (field.role == Role::dtype) return member<DType>(const_cast<char*>(args), field.offset);
  return DType::f32;
}

static bool is_compact(DType type) {
  return dtype_size(type) == 2 || is_blocked(type);
}

DType Problem::stored(const Field& weight) const {
  for (const Field& field : op->fields)
    if (field.role == Role::stored && weight.name == std::string(field.shape)) {
      const DType type = member<DType>(const_cast<char*>(args), field.offset);
      return is_compact(type) ? type : dtype();
    }
  return dtype();
}

void Problem::fit(const Backend& backend, const std::function<Result(const Problem&)>& run) {
  if (fitted) return;
  fitted = true;
  const auto number = [&](const char* name) -> void* {
    for (const Field& field : op->fields)
      if (std::strcmp(field.name, name) == 0) return args + field.offset;
    return nullptr;
  };
  for (Tensor& t : tensors) {
    if (!t.opaque) continue;
    int64_t& saved = *static_cast<int64_t*>(number("saved"));
    saved = saved_columns(backend, *static_cast<Activation*>(number("activation")), *static_cast<int64_t*>(number("H")),
                          *static_cast<DType*>(number("compute")));
    t.size = *static_cast<int64_t*>(number("R")) * saved;
    t.numbers.assign(static_cast<size_t>(t.size), 0);
    if (t.role != Role::input) continue;
    const Result result = run(*forward);
    check(result.status.code == ErrorCode::none, "%s: %s", forward->op->name, result.status.text);
    t.bytes = std::make_shared<Bytes>(result.bytes[forward->find(t.name) - forward->tensors.data()]);
  }
}

std::string Case::name() const {
  std::string text = std::string(empty.op->name) + " " + dtype_name(empty.dtype());
  if (!label.empty()) text += " (" + label + ")";
  char number[40];
  for (const Field& field : empty.op->fields) {
    void* args = const_cast<char*>(empty.args);
    if (field.role == Role::dim || (field.role == Role::attribute &&
                                    (field.attribute == AttributeType::size || field.attribute == AttributeType::seed)))
      text += " " + std::to_string(member<int64_t>(args, field.offset));
    else if (field.role == Role::attribute && field.attribute == AttributeType::number)
      std::snprintf(number, sizeof number, " %g", member<double>(args, field.offset)), text += number;
    else if (field.role == Role::attribute)
      text += " " + std::to_string(member<int32_t>(args, field.offset));
    else if (field.role == Role::compute)
      text += std::string(" in ") + dtype_name(member<DType>(args, field.offset));
    else if (field.role == Role::stored && is_compact(member<DType>(args, field.offset)))
      text += std::string(", ") + field.shape + " in " + dtype_name(member<DType>(args, field.offset));
  }
  for (const Tensor& t : empty.tensors) {
    if (!t.present) text += ", no " + t.name;
    if (empty.op->by_hand) text += " " + t.name + " " + dtype_name(t.dtype) + " " + std::to_string(t.size);
  }
  return text;
}

void fill_normal(Tensor& t, TestRandom& random) {
  for (double& x : t.numbers) x = t.dtype == DType::i32 ? 0 : static_cast<float>(random.normal());
}

Problem Case::problem(int64_t most) const {
  Problem p = empty;
  for (Tensor& t : p.tensors) {
    if (t.size > most) continue;
    t.numbers.assign(static_cast<size_t>(t.size), 0);
    if (t.role != Role::output) fill_normal(t, p.random);
  }
  for (const Fill& f : fills) f(p);
  for (Tensor& t : p.tensors) t.round();
  return p;
}

std::string difference(const Case& c, const Problem& wanted, const std::vector<Bytes>& bytes, double factor, double f32,
                       double f64) {
  char text[200];
  for (size_t i = 0; i < c.empty.tensors.size(); ++i) {
    const Tensor& t = c.empty.tensors[i];  // of the dtype that was run
    if (t.role == Role::input || !t.present || t.opaque || c.only_runs) continue;
    const bool exact = c.exact || t.dtype == DType::i32;
    Tensor expected = t;
    expected.numbers = wanted.tensors[i].numbers;
    if (exact && !is_blocked(t.dtype)) expected.round();
    const std::vector<double>& want = expected.numbers;
    const std::vector<double> got = t.decode(bytes[i]);
    double squares = 0, norm = 0;
    for (size_t j = 0; j < want.size(); ++j) {
      const double a = got[j], b = want[j];
      if ((std::isnan(a) && std::isnan(b)) || (a == b && (!exact || std::signbit(a) == std::signbit(b)))) {
        norm += std::isfinite(b) ? b * b : 0;
      } else if (exact || !std::isfinite(a) || !std::isfinite(b)) {
        std::snprintf(text, sizeof text, "%s[%zu] is %.9g, not %.9g", t.name.c_str(), j, a, b);
        return text;
      } else {
        squares += (a - b) * (a - b), norm += b * b;
      }
    }
    norm = std::fmax(std::sqrt(norm), c.magnitude);
    const double error = std::sqrt(squares) / (norm > 0 ? norm : 1);
    const auto loose = c.loose_tensors.find(t.name);
    const double limit =
        factor * (t.dtype == DType::f64 ? f64 : f32) * (loose == c.loose_tensors.end() ? 1 : loose->second);
    if (squares == 0 || error <= limit) continue;
    std::snprintf(text, sizeof text, "%s has a relative error of %.2g, more than %.2g", t.name.c_str(), error, limit);
    return text;
  }
  return "";
}

}  // namespace st_moe::test

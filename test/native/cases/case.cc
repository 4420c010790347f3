#include "case.h"

#include <algorithm>
#include <cstring>

#include "core/convert.h"

namespace st_moe::test {

void creation(Table&);
void elementwise(Table&);
void layers(Table&);
void attention(Table&);
void gemms(Table&);
void topk(Table&);
void selection(Table&);
void routing(Table&);

constexpr std::pair<const char*, void (*)(Table&)> kGroups[] = {{"creation", creation},   {"elementwise", elementwise},
                                                                {"layers", layers},       {"attention", attention},
                                                                {"gemms", gemms},         {"topk", topk},
                                                                {"selection", selection}, {"routing", routing}};

double rounded(DType dtype, double value) {
  switch (dtype) {
    case DType::f32: return static_cast<float>(value);
    case DType::f64: return value;
    case DType::bf16: return bf16_to_float(float_to_bf16(static_cast<float>(value)));
    case DType::f16: return f16_to_float(float_to_f16(static_cast<float>(value)));
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

void fill_normal(Tensor& t, TestRandom& random) {
  for (double& x : t.numbers) x = t.dtype == DType::i32 ? 0 : static_cast<float>(random.normal());
}

bool is_finite(const std::vector<double>& numbers) {
  for (double x : numbers)
    if (!std::isfinite(x)) return false;
  return true;
}

}  // namespace

Bytes Tensor::encode() const {
  switch (dtype) {
    case DType::f32: return encoded<float>(numbers, same<double>);
    case DType::f64: return encoded<double>(numbers, same<double>);
    case DType::bf16: return encoded<uint16_t>(numbers, float_to_bf16);
    case DType::f16: return encoded<uint16_t>(numbers, float_to_f16);
    default: return encoded<int32_t>(numbers, [](double x) { return rounded(DType::i32, x); });
  }
}

std::vector<double> Tensor::decode(const Bytes& bytes) const {
  switch (dtype) {
    case DType::f32: return decoded<float>(bytes, same<float>);
    case DType::f64: return decoded<double>(bytes, same<double>);
    case DType::bf16: return decoded<uint16_t>(bytes, bf16_to_float);
    case DType::f16: return decoded<uint16_t>(bytes, f16_to_float);
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

Result run_on_host(const Problem& problem, const OpTable& ops, int threads, bool host_copies) {
  Problem call = problem;
  Result result;
  for (const Tensor& t : call.tensors) result.bytes.push_back(t.encode());
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    const Tensor& t = call.tensors[i];
    if (t.role == Role::output) result.bytes[i].assign(t.size * dtype_size(t.dtype), '\xff');
    const size_t at = t.shares.empty() ? i : call.find(t.shares) - call.tensors.data();
    member<void*>(call.args, t.offset) = t.present ? result.bytes[at].data() : nullptr;
    for (const Field& field : call.op->fields)
      if (host_copies && field.role == Role::host_copy && t.name == field.shape)
        member<void*>(call.args, field.offset) = result.bytes[at].data();
  }
  const std::vector<Bytes> before = result.bytes;
  result.status = call.op->run(ops, Context{threads, nullptr}, call.args, 1);
  for (size_t i = 0; i < before.size(); ++i)
    check(call.tensors[i].role != Role::input || result.bytes[i] == before[i], "%s writes its input %s", call.op->name,
          call.tensors[i].name.c_str());
  return result;
}

std::string Case::name() const {
  std::string text = std::string(empty.op->name) + " " + dtype_name(empty.dtype());
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
  }
  for (const Tensor& t : empty.tensors) {
    if (!t.present) text += ", no " + t.name;
    if (empty.op->by_hand) text += " " + t.name + " " + dtype_name(t.dtype) + " " + std::to_string(t.size);
  }
  return text;
}

Problem Case::problem() const {
  Problem p = empty;
  for (Tensor& t : p.tensors) {
    t.numbers.assign(static_cast<size_t>(t.size), 0);
    if (t.role != Role::output) fill_normal(t, p.random);
  }
  for (const Fill& f : fills) f(p);
  for (Tensor& t : p.tensors)
    for (double& x : t.numbers) x = rounded(t.dtype, x);
  return p;
}

Case& Table::add(const char* op, const void* args, size_t size, std::vector<Tensor> tensors) {
  Case c{};
  for (const OpInfo& info : declared_ops())
    if (std::strcmp(info.name, op) == 0) c.empty.op = &info;
  std::memcpy(c.empty.args, args, size);
  c.empty.tensors = std::move(tensors);
  const DType real = c.empty.dtype();
  for (const Field& field : c.empty.op->fields) {
    if (!field.is_tensor()) continue;
    int64_t elements = 1;
    const Shape shape = known_shape(field, args);
    for (size_t i = 0; i < shape.size(); ++i) elements *= shape[i];
    const DType dtype = field.element == ElementType::i32   ? DType::i32
                        : field.element == ElementType::f32 ? DType::f32
                                                            : real;
    c.empty.tensors.push_back(
        {field.name, field.offset, field.role == Role::created ? Role::output : field.role, dtype, elements});
  }
  cases_.push_back(std::move(c));
  return cases_.back();
}

const Fill* Table::find_loop(const std::string& op) const {
  for (const auto& [name, loop] : loops_)
    if (name == op) return &loop;
  return nullptr;
}

// With the arguments and inputs of the same names, and normal numbers for others; without tensors if there is no loop.
Problem Table::forward_of(const Problem& backward) const {
  std::string name = backward.op->name;
  const size_t end = name.rfind("_backward");
  Problem forward{};
  if (end == std::string::npos || !find_loop(name.substr(0, end))) return forward;
  name.resize(end);
  for (const OpInfo& info : declared_ops())
    if (name == info.name) forward.op = &info;
  for (const Field& to : forward.op->fields)
    for (const Field& from : backward.op->fields) {
      if (to.is_tensor() || to.role == Role::packed || std::strcmp(to.name, from.name) != 0) continue;
      const bool narrow = to.role == Role::dtype || to.role == Role::compute ||
                          (to.role == Role::attribute && to.attribute >= AttributeType::integer &&
                           to.attribute != AttributeType::number);
      std::memcpy(forward.args + to.offset, backward.args + from.offset, narrow ? 4 : 8);
    }
  Table table;
  forward.tensors = table.add(name.c_str(), forward.args, kMaxArgsSize, {}).empty.tensors;
  for (Tensor& t : forward.tensors) {
    t.numbers.assign(static_cast<size_t>(t.size), 0);
    if (t.role != Role::input) continue;
    if (const Tensor* given = const_cast<Problem&>(backward).find(t.name))
      t.numbers = given->numbers, t.present = given->present;
    else
      fill_normal(t, forward.random);
  }
  return forward;
}

Problem Table::problem(const Case& c) const {
  Problem p = c.problem();
  Problem forward = forward_of(p);
  const auto needed = [&](const Tensor& out) {
    const Tensor* to = p.find(out.name);
    return out.role == Role::output && is_float(out.dtype) && to && to->role == Role::input;
  };
  if (std::none_of(forward.tensors.begin(), forward.tensors.end(), needed)) return p;
  (*find_loop(forward.op->name))(forward);
  for (const Tensor& from : forward.tensors)
    if (needed(from))
      for (size_t i = 0; i < from.numbers.size(); ++i) p[from.name][i] = rounded(from.dtype, from.numbers[i]);
  return p;
}

// Differences of the fourth order of Σ <dy, y>, for a sample of the entries of each input x, against dx.
void Table::check_differences(const std::string& name, Problem& backward) const {
  Problem forward = forward_of(backward);
  const Fill& loop = *find_loop(forward.op->name);
  std::vector<std::vector<double>> base;  // what is subtracted, so that less rounding is left
  const auto loss = [&] {
    double sum = 0;
    for (Tensor& t : forward.tensors)
      if (t.role == Role::output) std::fill(t.numbers.begin(), t.numbers.end(), 0);
    loop(forward);
    for (size_t k = 0; k < base.size(); ++k) {
      const Tensor& t = forward.tensors[k];
      if (t.role != Role::output || !backward.has("d" + t.name)) continue;
      const std::vector<double>& dy = backward["d" + t.name];
      for (size_t i = 0; i < dy.size(); ++i) sum += (t.numbers[i] - base[k][i]) * dy[i];
    }
    return sum;
  };
  loss();
  for (const Tensor& t : forward.tensors) base.push_back(t.numbers);
  for (Tensor& t : forward.tensors) {
    if (t.role != Role::input || !backward.has("d" + t.name) || t.size == 0) continue;
    TestRandom random{static_cast<uint64_t>(t.size) + 7};
    std::vector<double> wanted, got;
    for (int64_t sample = 0; sample < 24; ++sample) {
      const size_t i = static_cast<size_t>(t.size <= 24 ? sample % t.size : random.below(t.size));
      const double kept = t.numbers[i], h = 1e-3;
      const auto at = [&](double step) {
        t.numbers[i] = kept + step;
        return loss();
      };
      wanted.push_back((8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h));
      t.numbers[i] = kept;
      if (backward.has("d" + t.name + "_addend")) wanted.back() += backward["d" + t.name + "_addend"][i];
      got.push_back(backward["d" + t.name][i]);
    }
    const double error = relative_error(got.data(), wanted.data(), static_cast<int64_t>(got.size()));
    check(error <= 1e-8, "%s: d%s differs from finite differences by %.2g", name.c_str(), t.name.c_str(), error);
  }
}

Problem Table::wanted(const Case& c, const Problem& problem, const OpTable& ops) const {
  Problem p = problem;
  if (const Fill* loop = find_loop(p.op->name)) {
    (*loop)(p);
    return p;
  }
  bool whole = true;  // and finite
  for (Tensor& t : p.tensors) {
    if (t.dtype == DType::f32) t.dtype = DType::f64;
    whole = whole && t.present && is_finite(t.numbers);
  }
  for (const Field& field : p.op->fields)
    if (field.role == Role::dtype || field.role == Role::compute) member<DType>(p.args, field.offset) = DType::f64;
  const Result result = run_on_host(p, ops, 1);
  for (size_t i = 0; i < p.tensors.size(); ++i) p.tensors[i].numbers = p.tensors[i].decode(result.bytes[i]);
  check(!forward_of(problem).tensors.empty(), "%s has neither a loop nor a forward with one", p.op->name);
  if (whole && problem.dtype() == DType::f64 && c.magnitude == 0) check_differences(c.name(), p);
  return p;
}

std::string difference(const Case& c, const Problem& wanted, const std::vector<Bytes>& bytes, double factor, double f32,
                       double f64) {
  char text[200];
  for (size_t i = 0; i < c.empty.tensors.size(); ++i) {
    const Tensor& t = c.empty.tensors[i];  // of the dtype that was run
    if (t.role == Role::input || !t.present) continue;
    const std::vector<double>& want = wanted.tensors[i].numbers;
    const std::vector<double> got = t.decode(bytes[i]);
    const bool exact = c.exact || t.dtype == DType::i32;
    double squares = 0, norm = 0;
    for (size_t j = 0; j < want.size(); ++j) {
      const double a = got[j], b = exact ? rounded(t.dtype, want[j]) : want[j];
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
    const double limit = factor * (t.dtype == DType::f64 ? f64 : f32);
    if (squares == 0 || error <= limit) continue;
    std::snprintf(text, sizeof text, "%s has a relative error of %.2g, more than %.2g", t.name.c_str(), error, limit);
    return text;
  }
  return "";
}

Table table_of(int count, char** names) {
  Table table;
  for (const auto& [name, add] : kGroups)
    if (count == 0 || std::find(names, names + count, std::string(name)) != names + count) add(table);
  return table;
}

}  // namespace st_moe::test

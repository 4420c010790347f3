#include <algorithm>
#include <cstring>

#include "case.h"

namespace st_moe::test {

void creation(Table&);
void elementwise(Table&);
void optimizers(Table&);
void layers(Table&);
void attention(Table&);
void gemms(Table&);
void topk(Table&);
void selection(Table&);
void routing(Table&);
void route(Table&);
void experts(Table&);
void collectives(Table&);
void model(Table&);

constexpr std::pair<const char*, void (*)(Table&)> kGroups[] = {
    {"creation", creation}, {"elementwise", elementwise}, {"optimizers", optimizers},
    {"layers", layers},     {"attention", attention},     {"gemms", gemms},
    {"topk", topk},         {"selection", selection},     {"routing", routing},
    {"route", route},       {"experts", experts},         {"collectives", collectives},
    {"model", model}};

Case& Table::add(const char* op, const void* args, size_t size, std::vector<Tensor> tensors) {
  Case c{};
  for (const OpInfo& info : declared_ops())
    if (std::strcmp(info.name, op) == 0) c.empty.op = &info;
  std::memcpy(c.empty.args, args, size);
  c.empty.tensors = std::move(tensors), c.empty.fitted = true;
  const DType real = c.empty.dtype();
  for (const Field& field : c.empty.op->fields) {
    if (!field.is_tensor()) continue;
    int64_t elements = 1;
    const Shape shape = known_shape(field, args);
    for (size_t i = 0; i < shape.size(); ++i) elements *= shape[i];
    const DType dtype = field.element == ElementType::i32      ? DType::i32
                        : field.element == ElementType::f32    ? DType::f32
                        : field.element == ElementType::f64    ? DType::f64
                        : field.element == ElementType::weight ? c.empty.stored(field)
                                                               : real;
    c.empty.tensors.push_back(
        {field.name, field.offset, field.role == Role::created ? Role::output : field.role, dtype, elements});
    if (shape.size() > 0) c.empty.tensors.back().columns = shape[shape.size() - 1];
    c.empty.tensors.back().opaque = std::string(field.shape).ends_with(" saved");
    c.empty.fitted = c.empty.fitted && !c.empty.tensors.back().opaque;
  }
  cases_.push_back(std::move(c));
  return cases_.back();
}

const Fill* Table::find_loop(const std::string& op) const {
  for (const auto& [name, loop] : loops_)
    if (name == op) return &loop;
  return nullptr;
}

// Copies the arguments that have the same names in both.
static void copy_args(const OpInfo& from_op, const void* from_args, const OpInfo& to_op, char* to_args) {
  for (const Field& to : to_op.fields)
    for (const Field& from : from_op.fields) {
      if (to.is_tensor() || to.role == Role::packed || to.role == Role::host_copy) continue;
      if (std::strcmp(to.name, from.name) != 0) continue;
      const bool narrow = to.role == Role::dtype || to.role == Role::compute || to.role == Role::stored ||
                          (to.role == Role::attribute && to.attribute >= AttributeType::integer &&
                           to.attribute != AttributeType::number);
      std::memcpy(to_args + to.offset, static_cast<const char*>(from_args) + from.offset, narrow ? 4 : 8);
    }
}

Case& Table::add_backward(const Case& forward, const char* op, const void* args, size_t size) {
  const auto kept = std::make_shared<const Case>(forward);
  alignas(8) char all[kMaxArgsSize];
  std::memcpy(all, args, size);
  for (const OpInfo& info : declared_ops())
    if (std::strcmp(info.name, op) == 0) copy_args(*kept->empty.op, kept->empty.args, info, all);
  Case& c = add(op, all, size, {});
  c.forward = kept;
  for (Tensor& t : c.empty.tensors) {
    const std::string of = t.name[0] == 'd' && t.role == Role::output ? t.name.substr(1) : t.name;
    if (const Tensor* given = const_cast<Problem&>(kept->empty).find(of); given && !t.opaque)
      t.present = given->present;
  }
  return c;
}

// That of the case; or with the arguments and inputs of the same names, and normal numbers for others; without tensors
// if there is no loop.
Problem Table::forward_of(const Problem& backward) const {
  if (backward.forward) return *backward.forward;
  std::string name = backward.op->name;
  const size_t end = name.rfind("_backward");
  Problem forward{};
  if (end == std::string::npos || !find_loop(name.substr(0, end))) return forward;
  name.resize(end);
  for (const OpInfo& info : declared_ops())
    if (name == info.name) forward.op = &info;
  copy_args(*backward.op, backward.args, *forward.op, forward.args);
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
  if (c.forward) p.forward = std::make_shared<Problem>(c.forward->problem());
  Problem forward = forward_of(p);
  const bool given = p.forward != nullptr;
  const auto needed = [&](const Tensor& t) {
    const Tensor* to = p.find(t.name);
    const bool copied = t.role == Role::output ? given || is_float(t.dtype) : given;
    return copied && !t.opaque && to && to->role == Role::input;
  };
  const auto computed = [&](const Tensor& t) { return t.role == Role::output && needed(t); };
  if (std::any_of(forward.tensors.begin(), forward.tensors.end(), computed)) (*find_loop(forward.op->name))(forward);
  for (const Tensor& from : forward.tensors)
    if (needed(from))
      for (size_t i = 0; i < from.numbers.size(); ++i) p[from.name][i] = rounded(from.dtype, from.numbers[i]);
  for (const Fill& f : c.spoils) f(p);
  return p;
}

// Differences of the fourth order of Σ <dy, y>, for a sample of the entries of each input x, against dx.
void Table::check_differences(const Case& c, const Problem& before, Problem& backward) const {
  Problem forward = forward_of(backward);
  for (const std::string& name : c.detached) {
    forward.tensors.push_back(*forward.find(name));
    forward.tensors.back().name = "before " + name, forward.tensors.back().role = Role::derived;
  }
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
    const bool adds = backward.has("d" + t.name + "_sum");
    const std::string gradient = "d" + t.name + (adds ? "_sum" : "");
    if (t.role != Role::input || !t.present || !backward.has(gradient) || t.size == 0) continue;
    TestRandom random{static_cast<uint64_t>(t.size) + 7};
    std::vector<double> wanted, got;
    for (int64_t sample = 0; sample < 24; ++sample) {
      const size_t i = static_cast<size_t>(t.size <= 24 ? sample % t.size : random.below(t.size));
      const double kept = t.numbers[i], h = c.step;
      const auto at = [&](double step) {
        t.numbers[i] = kept + step;
        return loss();
      };
      wanted.push_back((8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h));
      t.numbers[i] = kept;
      if (backward.has("d" + t.name + "_addend")) wanted.back() += backward["d" + t.name + "_addend"][i];
      if (adds) wanted.back() += const_cast<Problem&>(before)[gradient][i];
      got.push_back(backward[gradient][i]);
    }
    const double error = relative_error(got.data(), wanted.data(), static_cast<int64_t>(got.size()));
    check(error <= c.difference_limit, "%s: %s differs from finite differences by %.2g", c.name().c_str(),
          gradient.c_str(), error);
  }
}

std::vector<std::string> groups() {
  std::vector<std::string> names;
  for (const auto& group : kGroups) names.push_back(group.first);
  return names;
}

Table table_of(const std::vector<std::string>& names, const ModelSizes& sizes) {
  Table table(sizes);
  for (const auto& [name, add] : kGroups) {
    const size_t before = table.cases().size();
    add(table);
    if (std::ranges::find(names, name) == names.end()) table.keep(before);  // and the loops, which others use too
  }
  return table;
}

}  // namespace st_moe::test

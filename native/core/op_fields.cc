#include "core/op_fields.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>

#include "core/binary.h"
#include "core/op_rules.h"
#include "core/optimizers.h"
#include "core/unary.h"

namespace st_moe {
namespace {

template <class Args>
struct Declared;

// DIMS(T, I, O) → one field each, at most eight.
#define ST_MOE_COUNT(a, b, c, d, e, f, g, h, count, ...) count
#define ST_MOE_DIM(name) Declaration{Role::dim, #name, offsetof(Args, name)},
#define ST_MOE_DIMS_1(a) ST_MOE_DIM(a)
#define ST_MOE_DIMS_2(a, ...) ST_MOE_DIM(a) ST_MOE_DIMS_1(__VA_ARGS__)
#define ST_MOE_DIMS_3(a, ...) ST_MOE_DIM(a) ST_MOE_DIMS_2(__VA_ARGS__)
#define ST_MOE_DIMS_4(a, ...) ST_MOE_DIM(a) ST_MOE_DIMS_3(__VA_ARGS__)
#define ST_MOE_DIMS_5(a, ...) ST_MOE_DIM(a) ST_MOE_DIMS_4(__VA_ARGS__)
#define ST_MOE_DIMS_6(a, ...) ST_MOE_DIM(a) ST_MOE_DIMS_5(__VA_ARGS__)
#define ST_MOE_DIMS_7(a, ...) ST_MOE_DIM(a) ST_MOE_DIMS_6(__VA_ARGS__)
#define ST_MOE_DIMS_8(a, ...) ST_MOE_DIM(a) ST_MOE_DIMS_7(__VA_ARGS__)
#define ST_MOE_JOIN(a, b) a##b
#define ST_MOE_DIMS_N(n) ST_MOE_JOIN(ST_MOE_DIMS_, n)

// `= value` or nothing
constexpr bool given(const char* text) {
  return *text != 0;
}

#define OP(Name, name)                        \
  template <>                                 \
  struct Declared<Name##Args> {               \
    using Args [[maybe_unused]] = Name##Args; \
    static constexpr Declaration fields[] = {
#define TENSOR(role, name, type, optional, shape) \
  Declaration{Role::role, #name, offsetof(Args, name), ElementType::type, optional, shape},
#define INPUT(name, type, shape) TENSOR(input, name, type, false, shape)
#define WEIGHT(name, shape)                 \
  TENSOR(input, name, weight, false, shape) \
  Declaration{Role::stored, #name "_stored", offsetof(Args, name##_stored), ElementType::weight, false, #name},
#define OPTIONAL_INPUT(name, type, shape) TENSOR(input, name, type, true, shape)
#define OUTPUT(name, type, shape) TENSOR(output, name, type, false, shape)
#define OPTIONAL_OUTPUT(name, type, shape) TENSOR(output, name, type, true, shape)
#define HOST_OUTPUT(tensor, type, dims)         \
  Declaration{.role = Role::output,             \
              .name = #tensor,                  \
              .offset = offsetof(Args, tensor), \
              .element = ElementType::type,     \
              .shape = dims,                    \
              .on_host = true},
#define UPDATED(name, shape) TENSOR(updated, name, real, false, shape)
#define OPTIONAL_UPDATED(name, shape) TENSOR(updated, name, real, true, shape)
#define CREATED(name, type) TENSOR(created, name, type, false, "...")
#define PACKED(name) \
  Declaration{Role::packed, #name "_packed", offsetof(Args, name##_packed), ElementType::any, true, #name},
#define HOST_COPY(name, of) Declaration{Role::host_copy, #name, offsetof(Args, name), ElementType::i32, true, #of},
#define DTYPE() Declaration{Role::dtype, "dtype", offsetof(Args, dtype)},
#define COMPUTE() Declaration{Role::compute, "compute", offsetof(Args, compute)},
#define DIMS(...) ST_MOE_DIMS_N(ST_MOE_COUNT(__VA_ARGS__, 8, 7, 6, 5, 4, 3, 2, 1))(__VA_ARGS__)
#define DERIVED(name) Declaration{Role::derived, #name, offsetof(Args, name)},
#define GROUP() Declaration{Role::group, "group", offsetof(Args, group)},
#define COUNTS(name) Declaration{Role::counts, #name, offsetof(Args, name)},
#define ATTRIBUTE(name, type, min, max, ...)                                                                       \
  Declaration{                                                                                                     \
      Role::attribute,    #name, offsetof(Args, name), ElementType::any, false, "", AttributeType::type, min, max, \
      given(#__VA_ARGS__)},
#define SIZE(name, min, max) ATTRIBUTE(name, size, min, max)
#define SEED(name) ATTRIBUTE(name, seed, 0, (int64_t{1} << 53) - 1)
#define INTEGER(name) ATTRIBUTE(name, integer, INT32_MIN, INT32_MAX)
#define NUMBER(name, ...) ATTRIBUTE(name, number, 0, 0, __VA_ARGS__)
#define FLAG(name, ...) ATTRIBUTE(name, flag, 0, 1, __VA_ARGS__)
#define KIND(name, type, count, ...) ATTRIBUTE(name, kind, 0, (count) - 1, __VA_ARGS__)
#define BY_HAND() Declaration{Role::derived, "", 0},  // an array cannot be empty
#define END \
  }         \
  ;         \
  }         \
  ;
#include "core/op_list.inc"
#undef TENSOR
#undef ATTRIBUTE

std::string camel_case(const char* name) {
  std::string text;
  for (; *name; ++name) {
    if (*name == '_' && name[1])
      ++name, text += static_cast<char>(std::toupper(*name));
    else
      text += *name;
  }
  return text;
}

// A declaration that cannot be parsed ends the program at start, so that every test finds it.
const Field& letter(const std::vector<Field>& fields, const std::string& name) {
  for (const Field& field : fields)
    if (name == field.name && field.role >= Role::dim) return field;
  std::abort();
}

void read_shape(Field& field, const std::vector<Field>& fields) {
  field.any_shape = std::strcmp(field.shape, "...") == 0;
  Dim dim;
  std::string word;
  const auto end_factor = [&] {
    if (const size_t dots = word.find("..."); dots != std::string::npos) {
      word.resize(dots);
      field.lead = word == "T" ? 0 : 1;
    }
    if (std::isdigit(static_cast<unsigned char>(word[0]))) {
      int64_t number = 0;  // not atoll: it needs the newest glibc
      for (const char digit : word) number = 10 * number + (digit - '0');
      dim.factor *= number;
    } else {
      const Field& found = letter(fields, word);
      field.has_derived |= found.role == Role::derived;
      dim.letters.push_back(found.offset);
    }
    word.clear();
  };
  for (const char* c = field.shape; !field.any_shape; ++c) {
    if (*c != ' ' && *c != '*' && *c) {
      word += *c;
      continue;
    }
    if (!word.empty()) end_factor();
    if (*c != '*' && !(dim.letters.empty() && dim.factor == 1)) {
      field.dims.push_back(dim);
      dim = Dim{};
    }
    if (!*c) return;
  }
  field.dims = {Dim{1, {letter(fields, "size").offset}}};
}

size_t tensor_named(const std::vector<Field>& fields, const char* name) {
  for (size_t i = 0; i < fields.size(); ++i)
    if (fields[i].is_tensor() && std::strcmp(fields[i].name, name) == 0) return i;
  std::abort();
}

template <class Args>
FactorList (*factors_function())(const void*) {
  if constexpr (is_optimizer<Args>)
    return [](const void* args) { return factors_of(*static_cast<const Args*>(args)); };
  else
    return nullptr;
}

// Whether the argument is a number or a tensor, or follows from those.
bool fits_batch(const Field& field) {
  switch (field.role) {
    case Role::input:
    case Role::updated:
    case Role::packed:
    case Role::dtype:
    case Role::dim: return true;
    case Role::attribute: return field.attribute != AttributeType::flag;
    default: return false;
  }
}

OpInfo derived(OpInfo info, const Declaration* begin, const Declaration* end) {
  info.js_name = camel_case(info.name);
  if (info.by_hand) return info;
  info.fields = std::vector<Field>(begin, end);
  if (info.fields.size() > kMaxFields) std::abort();
  for (const Field& field : info.fields)
    if (info.takes_batch && !fits_batch(field)) std::abort();
  for (Field& field : info.fields) {
    field.js_name = camel_case(field.name);
    field.is_size = field.role == Role::dim && std::strcmp(field.name, "size") == 0;
    if (field.is_tensor()) read_shape(field, info.fields);
    if (field.role == Role::group) info.group = &field;
    if (field.role == Role::packed || field.role == Role::stored || field.role == Role::host_copy)
      field.of = tensor_named(info.fields, field.shape);
  }
  return info;
}

template <class Args, Op<Given<Args>> OpTable::* op>
OpInfo describe(const char* name, bool by_hand) {
  static_assert(sizeof(Args) <= kMaxArgsSize);
  const auto& fields = Declared<Args>::fields;
  return derived({name,
                  "",
                  by_hand,
                  {},
                  [](void* args) { new (args) Args{}; },
                  sizeof(Args),
                  run_op<Args, op>,
                  [](const OpTable& table) { return table.*op != nullptr; },
                  is_batch<Args>,
                  takes_memory<Args>,
                  [](void* args, const Backend& backend) { apply_rules(*static_cast<Args*>(args), backend); },
                  factors_function<Args>()},
                 std::begin(fields), std::end(fields));
}

}  // namespace

const std::vector<OpInfo>& declared_ops() {
  // Never freed: the threads of asynchronous calls may still run when the process exits.
  static const std::vector<OpInfo>& ops = *[] {
    auto* const made = new std::vector<OpInfo>;
#define OP(Name, name) made->push_back(describe<Name##Args, &OpTable::name>(#name, false
#define BY_HAND() || true
#define END ));
#include "core/op_list.inc"
    return made;
  }();
  return ops;
}

const OpInfo& op_of(OpFunction run) {
  return *std::ranges::find(declared_ops(), run, &OpInfo::run);
}

void expect_op(const Backend& backend, const OpInfo& op) {
  if (!op.is_in(backend.ops)) fail(ErrorCode::unsupported, "%s has no op %s", backend.name, op.name);
}

Shape known_shape(const Field& field, const void* args) {
  Shape shape;
  for (const Dim& dim : field.dims) {
    int64_t size = dim.factor;
    for (const size_t offset : dim.letters) {
      const int64_t value = member<int64_t>(const_cast<void*>(args), offset);
      size = size == kUnknown || value == kUnknown ? kUnknown : size * value;
    }
    shape.push_back(size);
  }
  return shape;
}

void learn_letters(const Field& field, const Shape& shape, void* args) {
  if (field.has_derived) return;
  for (size_t i = 0; i < field.dims.size(); ++i) {
    int64_t* unknown = nullptr;
    int64_t known = field.dims[i].factor;
    for (const size_t offset : field.dims[i].letters) {
      int64_t& value = member<int64_t>(args, offset);
      if (value == kUnknown)
        unknown = &value;
      else
        known *= value;
    }
    if (!unknown) continue;
    if (known == 0 ? shape[i] != 0 : shape[i] % known != 0)
      fail(ErrorCode::shape, "dimension %zu of %s must be a multiple of %lld, got %lld", i, field.js_name.c_str(),
           static_cast<long long>(known), static_cast<long long>(shape[i]));
    *unknown = known == 0 ? 0 : shape[i] / known;
  }
}

}  // namespace st_moe

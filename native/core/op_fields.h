#pragma once
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/shape.h"

// The declarations of ops.inc as data, for the binding and for tests that fill and compare any op.
namespace st_moe {

enum class Role : uint8_t {
  input,
  output,
  updated,
  created,
  packed,
  stored,
  host_copy,
  group,
  counts,
  dtype,
  compute,
  dim,
  derived,
  attribute
};
enum class ElementType : uint8_t { real, weight, any, i32, f32, f64 };
enum class AttributeType : uint8_t { size, seed, integer, number, flag, kind };

// A dimension: 2*H is {2, {H}}, heads*d is {1, {heads, d}}.
struct Dim {
  int64_t factor = 1;
  std::vector<size_t> letters;  // offsets of int64_t in the struct of arguments
};

struct Declaration {
  Role role;
  const char* name;
  size_t offset;  // in the struct of arguments
  ElementType element = ElementType::real;
  bool optional = false;
  const char* shape = "";  // of a tensor; or the tensor that a `packed`, `stored` or `host_copy` belongs to
  AttributeType attribute = AttributeType::number;
  int64_t min = 0, max = 0;
  bool has_default = false;
  bool on_host = false;  // an output of which the host gets a copy
};

// A declaration and what follows from it.
struct Field : Declaration {
  explicit Field(const Declaration& declared) : Declaration(declared) {}

  std::string js_name;
  bool any_shape = false;    // "..."
  int lead = -1;             // of "T... D" 0, of "R... D" 1
  bool has_derived = false;  // a letter of its shape is known only after the rules
  std::vector<Dim> dims;
  bool is_size = false;  // the letter of "...", its number of elements
  size_t of = 0;         // index of the tensor that a `packed`, `stored` or `host_copy` belongs to

  bool is_tensor() const { return role <= Role::created; }
};

constexpr size_t kMaxArgsSize = 512, kMaxFields = 64;

// Runs an op `count` times, with arguments that follow each other.
using OpFunction = Status (*)(const OpTable&, const Context&, const void* args, int64_t count);

template <class Args, Op<Given<Args>> OpTable::* op>
Status run_op(const OpTable& table, const Context& ctx, const void* args, int64_t count) {
  if constexpr (is_batch<Args>)
    return (table.*op)(ctx, Batch<Args>{static_cast<const Args*>(args), count});
  else
    return (table.*op)(ctx, *static_cast<const Args*>(args));
}

struct OpInfo {
  const char* name;
  std::string js_name;
  bool by_hand;
  std::vector<Field> fields;
  void (*construct)(void* args);  // the defaults
  size_t args_size;
  OpFunction run;
  bool (*is_in)(const OpTable&);                    // whether a backend has it
  bool takes_batch;                                 // else `count` is 1
  bool takes_memory;                                // and makes no tensor
  void (*apply_rules)(void* args, const Backend&);  // of op_rules.h
  FactorList (*factors)(const void* args);          // of optimizers.h; null for other ops
  const Field* group = nullptr;                     // its process group, if it has one
};

const std::vector<OpInfo>& declared_ops();
const OpInfo& op_of(OpFunction run);

// Throws Error(unsupported) if the backend lacks the op.
void expect_op(const Backend& backend, const OpInfo& op);

template <class T>
T& member(void* args, size_t offset) {
  return *reinterpret_cast<T*>(static_cast<char*>(args) + offset);
}

constexpr int64_t kUnknown = -1;
constexpr int kLeads = 2;  // letters of leading dimensions

// The dimensions of a field, the leading ones as one; kUnknown if a letter is not known.
Shape known_shape(const Field& field, const void* args);

// Sets the letters from the shape of a tensor, if it matches known_shape; not derived ones. Throws Error(shape).
void learn_letters(const Field& field, const Shape& shape, void* args);

}  // namespace st_moe

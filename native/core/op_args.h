#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/context.h"
#include "core/enum.h"
#include "core/pack.h"
#include "core/qualifiers.h"

// The arguments of each op: plain data, so that a backend may be in a plugin. The ops are declared in ops.inc.
namespace st_moe {

template <class Args>
inline constexpr bool is_batch = requires { Args::is_batch; };
template <class Args>
inline constexpr bool takes_memory = requires { Args::takes_memory; };
template <class Args>
using Given = std::conditional_t<is_batch<Args>, Batch<Args>, Args>;

template <class Args>
using Op = Status (*)(const Context&, const Args&);

ST_MOE_ENUM(Distribution, uniform, normal);
enum class UnaryKind : int32_t {
#define UNARY(name, value, slope) name,
#include "core/unary_kinds.inc"
};
constexpr const char* kUnaryKindNames[] = {
#define UNARY(name, value, slope) #name,
#include "core/unary_kinds.inc"
};
constexpr int32_t kUnaryKindCount = sizeof kUnaryKindNames / sizeof *kUnaryKindNames;
enum class BinaryKind : int32_t {
#define BINARY(name, value) name,
#include "core/binary_kinds.inc"
};
constexpr const char* kBinaryKindNames[] = {
#define BINARY(name, value) #name,
#include "core/binary_kinds.inc"
};
constexpr int32_t kBinaryKindCount = sizeof kBinaryKindNames / sizeof *kBinaryKindNames;

// What the scores of a token's experts are divided by: the sum over its K experts, nothing, or the sum over those kept.
ST_MOE_ENUM(GateNormalization, topk, none, kept);

// By what a token chooses its experts, and what becomes their gates. softmax, sigmoid: the scores, of which the gates
// are made. The others: the logits, and their softmax (a gate is then divided by the sum over the K) or sigmoid.
ST_MOE_ENUM(ScoreFunction, softmax, sigmoid, softmax_after_topk, sigmoid_after_topk);

// Whether the second and later experts of a token are used: by chance, always, never, or if the gate exceeds a
// threshold.
ST_MOE_ENUM(SecondPolicy, random, all, none, threshold);

// The activation of the experts.
enum class Activation : int32_t {
#define ACTIVATION(name, gated, f) name,
#include "core/activations.inc"
};
constexpr const char* kActivationNames[] = {
#define ACTIVATION(name, gated, f) #name,
#include "core/activations.inc"
};
constexpr int32_t kActivationCount = sizeof kActivationNames / sizeof *kActivationNames;

ST_MOE_HOST_DEVICE static constexpr bool is_gated(Activation activation) {
  switch (activation) {
#define ACTIVATION(name, gated, f) \
  case Activation::name: return gated;
#include "core/activations.inc"
  }
  return false;
}

// Rows P of one expert's w1: columns of the pre-activations.
ST_MOE_HOST_DEVICE static constexpr int64_t w1_rows(Activation activation, int64_t H) {
  return is_gated(activation) ? 2 * H : H;
}

// Entries of b1 and mult_bias of one expert.
ST_MOE_HOST_DEVICE static constexpr int64_t hidden_biases(Activation activation, int64_t H) {
  return is_gated(activation) ? 3 * H : H;
}

// The element types of the tensor types in ops.inc.
struct Element {
  using real = void;
  using any = void;
  using i32 = int32_t;
  using f32 = float;
};

#define OP(Name, name) struct Name##Args {
#define INPUT(name, type, shape) const Element::type* name;
#define OPTIONAL_INPUT INPUT
#define OUTPUT(name, type, shape) Element::type* name;
#define OPTIONAL_OUTPUT OUTPUT
#define UPDATED(name, shape) void* name;
#define OPTIONAL_UPDATED UPDATED
#define CREATED(name, type) void* name;
#define PACKED(name) PackedCopies* name##_packed = nullptr;
#define HOST_COPY(name, of) const int32_t* name;
#define DTYPE() DType dtype;
#define COMPUTE() DType compute;
#define DIMS(...) int64_t __VA_ARGS__;
#define DERIVED(name) int64_t name = 0;
#define SIZE(name, min, max) int64_t name;
#define SEED(name) uint64_t name;
#define INTEGER(name) int32_t name;
#define NUMBER(name, ...) double name __VA_ARGS__;
#define FLAG(name, ...) int32_t name __VA_ARGS__;
#define KIND(name, type, count, ...) type name __VA_ARGS__;
#define BATCH() static constexpr bool is_batch = true;
#define TAKES_MEMORY() static constexpr bool takes_memory = true;
#define FIELD(type, ...) type __VA_ARGS__;
#define END \
  }         \
  ;
#include "core/op_list.inc"

}  // namespace st_moe

#pragma once
#include "core/activation.h"
#include "core/binary.h"
#include "core/plugin.h"
#include "core/unary.h"

// What an addon and a plugin must agree on, as one number: a hash of every declaration that crosses the boundary. A
// plugin that was built from others has another number, and is refused.
namespace st_moe {

// FNV-1a. Spaces do not count: compilers may differ in them.
class AbiHash {
 public:
  constexpr void add(const char* text) {
    for (; *text; ++text)
      if (*text != ' ') add_byte(static_cast<unsigned char>(*text));
    add_byte('\n');
  }
  template <size_t count>
  constexpr void add(const char* const (&texts)[count]) {
    for (const char* text : texts) add(text);
  }
  constexpr void add(size_t number) {
    for (; number > 0; number >>= 8) add_byte(number & 0xff);
    add_byte('\n');
  }
  constexpr uint32_t value() const { return value_; }

 private:
  constexpr void add_byte(uint32_t byte) { value_ = (value_ ^ byte) * 16777619u; }

  uint32_t value_ = 2166136261u;
};

constexpr void add_ops(AbiHash& hash) {
#define OP(...) hash.add("OP" #__VA_ARGS__);
#define INPUT(...) hash.add("INPUT" #__VA_ARGS__);
#define WEIGHT(...) hash.add("WEIGHT" #__VA_ARGS__);
#define OPTIONAL_INPUT(...) hash.add("OPTIONAL_INPUT" #__VA_ARGS__);
#define OUTPUT(...) hash.add("OUTPUT" #__VA_ARGS__);
#define HOST_OUTPUT(...) hash.add("HOST_OUTPUT" #__VA_ARGS__);
#define OPTIONAL_OUTPUT(...) hash.add("OPTIONAL_OUTPUT" #__VA_ARGS__);
#define UPDATED(...) hash.add("UPDATED" #__VA_ARGS__);
#define OPTIONAL_UPDATED(...) hash.add("OPTIONAL_UPDATED" #__VA_ARGS__);
#define CREATED(...) hash.add("CREATED" #__VA_ARGS__);
#define PACKED(...) hash.add("PACKED" #__VA_ARGS__);
#define HOST_COPY(...) hash.add("HOST_COPY" #__VA_ARGS__);
#define DTYPE() hash.add("DTYPE");
#define COMPUTE() hash.add("COMPUTE");
#define DIMS(...) hash.add("DIMS" #__VA_ARGS__);
#define DERIVED(...) hash.add("DERIVED" #__VA_ARGS__);
#define SIZE(...) hash.add("SIZE" #__VA_ARGS__);
#define SEED(...) hash.add("SEED" #__VA_ARGS__);
#define INTEGER(...) hash.add("INTEGER" #__VA_ARGS__);
#define NUMBER(...) hash.add("NUMBER" #__VA_ARGS__);
#define FLAG(...) hash.add("FLAG" #__VA_ARGS__);
#define KIND(name, type, ...) hash.add("KIND" #name "," #type "," #__VA_ARGS__), hash.add(k##type##Names);
#define GROUP() hash.add("GROUP");
#define COUNTS(...) hash.add("COUNTS" #__VA_ARGS__);
#define BATCH() hash.add("BATCH");
#define TAKES_MEMORY() hash.add("TAKES_MEMORY");
#define FACTORS(...) hash.add("FACTORS" #__VA_ARGS__);
#define TENSOR_FACTORS(...) hash.add("TENSOR_FACTORS" #__VA_ARGS__);
#define BY_HAND() hash.add("BY_HAND");
#define FIELD(...) hash.add("FIELD" #__VA_ARGS__);
#include "core/op_list.inc"
}

constexpr void add_kinds(AbiHash& hash) {
  hash.add(kDTypeNames);
  hash.add(kErrorCodeNames);
#define UNARY(...) hash.add("UNARY" #__VA_ARGS__);
#include "core/unary_kinds.inc"
#define BINARY(...) hash.add("BINARY" #__VA_ARGS__);
#include "core/binary_kinds.inc"
#define ACTIVATION(...) hash.add("ACTIVATION" #__VA_ARGS__);
#include "core/activations.inc"
}

constexpr void add_structs(AbiHash& hash) {
  for (const size_t number : {size_t{kMaxRank}, kErrorText, size_t{kFactors}}) hash.add(number);
#define TEMPLATE(...) hash.add("TEMPLATE" #__VA_ARGS__);
#define STRUCT(...) hash.add("STRUCT" #__VA_ARGS__);
#define FIELD(...) hash.add("FIELD" #__VA_ARGS__);
#define COMPARABLE(...) hash.add("COMPARABLE" #__VA_ARGS__);
#define FUNCTION(...) hash.add("FUNCTION" #__VA_ARGS__);
#define END hash.add("END");
#include "core/abi/backend.inc"
#include "core/abi/context.inc"
#include "core/abi/packed_copies.inc"
#include "core/abi/plugin.inc"
#include "core/abi/steps.inc"
#undef TEMPLATE
#undef STRUCT
#undef FIELD
#undef COMPARABLE
#undef FUNCTION
#undef END
  // Fields beside the lists, and other layouts.
  for (const size_t size :
       {sizeof(Status), sizeof(Context), sizeof(PackKey), sizeof(PackedCopy), sizeof(PackedCopies), sizeof(StepArgs),
        sizeof(CaptureTable), sizeof(OpTable), sizeof(Backend), sizeof(Probe), sizeof(Plugin)})
    hash.add(size);
}

constexpr uint32_t abi_number() {
  AbiHash hash;
  add_ops(hash);
  add_kinds(hash);
  add_structs(hash);
  return hash.value();
}

constexpr uint32_t kBackendAbi = abi_number();

}  // namespace st_moe

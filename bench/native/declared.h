#pragma once
#include <map>

#include "../../test/native/cases/case.h"
#include "bench.h"
#include "core/op_fields.h"

// Any op of core/ops.inc, called with memory of the benchmark: with values by name, or a case of the tests' table.
namespace st_moe::bench {

// Optional inputs that are null: noise comes from the generator, nothing is padding, of the losses only the total
// counts.
inline const std::map<std::string, std::string> kNotGiven{
    {"mask", ""},        {"uniforms", ""},       {"gumbel_uniforms", ""}, {"second_place_uniforms", ""},
    {"expert_bias", ""}, {"second_density", ""}, {"dbalance_loss", ""},   {"dz_loss", ""}};

// Tensors by name and number of elements, which ops share: outputs of a forward are inputs of its backward.
class Memory {
 public:
  explicit Memory(const Bench& bench) : bench(bench) {}
  // Made if it is not there: normal numbers, or indices below `limit`.
  Tensor& at(const std::string& name, const Shape& shape, DType dtype = DType::f32, int64_t limit = 1);
  Tensor& of_dtype(const std::string& name, const Shape& shape, DType dtype);  // the same, of this dtype
  Tensor& put(const std::string& name, Tensor tensor);
  // The copy on the host of a tensor of integers, always at the same place; null if the device's memory is the host's.
  const int32_t* host_copy(const std::string& name, int64_t size);
  void copy_to_host(const std::string& name, int64_t size);

  const Bench& bench;

 private:
  std::map<std::pair<std::string, int64_t>, std::vector<int32_t>> host_copies_;
  std::map<std::pair<std::string, int64_t>, Tensor> tensors_;
};

class DeclaredOp {
 public:
  // `renamed`: another name in memory than that of the field; empty: a tensor that is null. Throws if a value is
  // missing.
  DeclaredOp(Memory& memory, const std::string& name, const Values& values,
             const std::map<std::string, std::string>& renamed = {}, DType compute = DType::f32);
  // Large inputs are normal numbers, what is updated ones; small inputs are those of the case.
  DeclaredOp(Memory& memory, const test::Case& from);

  void operator()(int threads) const;
  double bytes() const { return bytes_; }  // of its tensors, each read or written once

 private:
  struct Args {
    alignas(std::max_align_t) char bytes[kMaxArgsSize];
  };
  void use_packed(Memory& memory);
  void use_host_copies(Memory& memory);

  const Bench& bench_;
  const OpInfo* op_ = nullptr;
  Args args_{};
  double bytes_ = 0;
  std::vector<Tensor> tensors_;  // that it holds
};

}  // namespace st_moe::bench

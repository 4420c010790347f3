#pragma once
#include <functional>
#include <string>

#include "kernels.h"

// oneDNN's matmul on the same GEMMs, if the library was found when this was built.
namespace st_moe::bench {

std::string onednn_version();  // empty without it

// One primitive per expert, experts spread over our pool with one thread each: its own threads lose more on GEMMs of
// this size. packed: weights were brought into its own layout before. A bf16 GEMM gets operands that are bf16 in
// memory. Empty if the library or the machine cannot.
std::function<void()> onednn_gemm(const GroupedGemm& group, int threads, bool packed);

}  // namespace st_moe::bench

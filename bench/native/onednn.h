#pragma once
#include <functional>
#include <string>

#include "kernels.h"

// oneDNN's matmul on the same products, where the library was found when this was built.
namespace st_moe::bench {

std::string onednn_version();  // empty without it

// One primitive an expert, experts spread over our pool with one thread each: its own threads lose more on products of
// this size. packed: weights were brought into its own layout before. A bf16 product gets operands that are bf16 in
// memory. Empty where the library or the machine cannot.
std::function<void()> onednn_product(const ProductArgs& args, int threads, bool packed);

}  // namespace st_moe::bench

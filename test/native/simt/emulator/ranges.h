#pragma once
#include <string>
#include <vector>

// The ranges of NVTX that this thread has opened and closed since `clear_ranges`: "st-moe: fill" and "end".
namespace simt {

const std::vector<std::string>& ranges();
void clear_ranges();

}  // namespace simt

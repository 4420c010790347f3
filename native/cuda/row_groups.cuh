#pragma once
#include "cuda/rows.cuh"
#include "cuda/search.cuh"

// Rows in the order of their groups, such as the experts: equally many of each group, or any number.
namespace st_moe::cuda {

struct RowGroups {
  int64_t G = 0, each = 0;             // groups; rows of each, if they have equally many
  Divisor by_each{};                   // each
  int64_t R = 0;                       // rows, or if only the device knows how many, the most that there can be
  const int32_t* ends = nullptr;       // [G] on the device: the rows of group g are those before ends[g]; null: `each`
  const int32_t* host_ends = nullptr;  // [G] the same on the host, null if only the device knows them

  static RowGroups equal(int64_t G, int64_t each) { return {G, each, Divisor(each), G * each}; }
  // At most R rows.
  static RowGroups uneven(int64_t G, int64_t R, const int32_t* ends, const int32_t* host_ends) {
    return {G, 0, {}, G == 0 ? 0 : host_ends ? host_ends[G - 1] : R, ends, host_ends};
  }

  // R for a group beyond the last.
  __device__ int64_t end(int64_t g) const {
    return min_of(R, ends ? max_of(int64_t{0}, int64_t{ends[g]}) : (g + 1) * each);
  }
  __device__ int64_t begin(int64_t g) const { return g > 0 ? end(g - 1) : 0; }
  // Of rows that belong to no group, the last.
  __device__ int64_t group_of(int64_t row) const {
    if (!ends) return by_each.quotient(static_cast<uint32_t>(row));
    return lower_bound(ends, G - 1, row + 1);
  }
};

// Blocks of up to kSize rows of one group. Uneven groups start at block (first row) / kSize + g, which leaves each of
// them room enough, so that some blocks are empty.
template <int64_t kSize>
struct RowBlocks {
  struct Block {
    int64_t group, begin, end;
    __device__ bool empty() const { return begin >= end; }
  };

  RowGroups groups;
  int64_t each;  // blocks of a group, if groups are equal
  Divisor by_each;

  RowBlocks() = default;
  explicit RowBlocks(const RowGroups& of) : groups(of), each(ceil_div(of.each, kSize)), by_each(each) {}

  int64_t count() const { return groups.ends ? groups.R / kSize + groups.G : groups.G * each; }
  __device__ int64_t first(int64_t g) const { return groups.ends ? groups.begin(g) / kSize + g : g * each; }
  __device__ int64_t blocks_of(int64_t g) const { return ceil_div(groups.end(g) - groups.begin(g), kSize); }
  __device__ Block at(int64_t block) const {
    const int64_t group = groups.ends ? group_of(block) : by_each.quotient(static_cast<uint32_t>(block));
    const int64_t begin = groups.begin(group) + (block - first(group)) * kSize;
    return {group, begin, min_of(begin + kSize, groups.end(group))};
  }

  // A grid with a block of threads for each strip of columns of each block of rows, the strips of a block of rows next
  // to each other. Nothing is left to divide or to loop over, which would take registers.
  dim3 grid(int64_t strips) const {
    const int64_t z = ceil_div(count(), kMostY), y = ceil_div(count(), z);
    return dim3(static_cast<unsigned>(strips), static_cast<unsigned>(y), static_cast<unsigned>(z));
  }
  // Of a block of threads; those beyond count() have no rows.
  __device__ static int strip() { return static_cast<int>(blockIdx.x); }
  __device__ static int block() { return static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y); }
  __device__ Block rows() const { return at(block()); }

 private:
  static constexpr int64_t kMostY = 1100;  // enough for 2^31 rows; 65,535 are allowed, but fewer are easier to test

  // The last group that starts at or before a block.
  __device__ int64_t group_of(int64_t block) const {
    int64_t low = 0, high = groups.G;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first(middle) <= block ? low : high) = middle;
    }
    return low;
  }
};

}  // namespace st_moe::cuda

#pragma once
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace st_moe {

// Identifies a copy of a weight: a layout number of the backend, and its shape.
struct PackKey {
  int32_t layout;
  DType dtype;
  int64_t batch, rows, columns;
  bool operator==(const PackKey&) const = default;
};

struct PackedCopy {
  PackKey key;
  void* data;
  size_t bytes;
  bool outdated = false;  // the op that runs changes the weight
};

// Copies of a weight in layouts of the backend (panels, lower precision, padding), kept until the weight changes or is
// freed. An op looks up its copy, or creates it and passes ownership. Only parameters have copies, because those of
// other tensors would rarely be used twice. Called only by the thread of the op.
struct PackedCopies {
  const void* (*find)(const PackedCopies&, const PackKey&);  // null: not there
  // Takes ownership of memory from Backend::allocate that the op filled, once per key. false: the op keeps it.
  bool (*keep)(PackedCopies&, const PackKey&, void* data, size_t bytes);
  // All of them; returns how many. An op that changes the weight may write outdated ones anew, and says so in them.
  // Those that remain outdated are dropped after the op.
  size_t (*list)(PackedCopies&, PackedCopy** copies);
};

}  // namespace st_moe

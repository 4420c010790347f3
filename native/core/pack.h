#pragma once
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace st_moe {

// Which copy of a weight: a layout, as the backend numbers them, and the shape it was made for.
struct PackKey {
  int32_t layout;
  DType dtype;
  int64_t batch, rows, columns;
  bool operator==(const PackKey&) const = default;
};

// Copies of a weight in layouts of the backend's own (panels, a narrower type, padding), kept with the weight until it
// changes or is freed. An op looks for the copy it needs; where there is none it makes one and hands it over. Only
// parameters have this: a copy of another tensor would seldom be used twice. Called by the thread of the op alone.
struct PackedCopies {
  const void* (*find)(const PackedCopies&, const PackKey&);  // null: not there
  // Takes over memory that Backend::allocate gave and the op has filled, once for each key. false: it stays the op's.
  bool (*keep)(PackedCopies&, const PackKey&, void* data, size_t bytes);
};

}  // namespace st_moe

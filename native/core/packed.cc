#include "core/packed.h"

#include <new>

#include "core/tensor.h"

namespace st_moe {

PackedStore::PackedStore(Device& device) : PackedCopies{find_copy, keep_copy}, device_(device) {}

void PackedStore::clear() {
  for (const Copy& copy : copies_) {
    device_.stats.remove(copy.bytes);
    device_.release(copy.data, copy.bytes);
  }
  copies_.clear();
}

const void* PackedStore::find_copy(const PackedCopies& copies, const PackKey& key) {
  for (const Copy& copy : static_cast<const PackedStore&>(copies).copies_)
    if (copy.key == key) return copy.data;
  return nullptr;
}

bool PackedStore::keep_copy(PackedCopies& copies, const PackKey& key, void* data, size_t bytes) noexcept {
  auto& store = static_cast<PackedStore&>(copies);
  try {
    store.copies_.push_back({key, data, bytes});
  } catch (const std::bad_alloc&) {
    return false;
  }
  store.device_.stats.add(bytes);
  return true;
}

}  // namespace st_moe

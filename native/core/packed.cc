#include "core/packed.h"

#include <new>

#include "core/tensor.h"

namespace st_moe {

PackedStore::PackedStore(Device& device) : PackedCopies{find_copy, keep_copy, list_copies}, device_(device) {}

void PackedStore::clear() {
  outdate();
  drop_outdated();
}

void PackedStore::outdate() {
  for (PackedCopy& copy : copies_) copy.outdated = true;
}

void PackedStore::drop_outdated() {
  std::erase_if(copies_, [this](const PackedCopy& copy) {
    if (!copy.outdated) return false;
    device_.stats.remove(copy.bytes);
    device_.release(copy.data, copy.bytes);
    return true;
  });
}

const void* PackedStore::find_copy(const PackedCopies& copies, const PackKey& key) {
  for (const PackedCopy& copy : static_cast<const PackedStore&>(copies).copies_)
    if (!copy.outdated && copy.key == key) return copy.data;
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

size_t PackedStore::list_copies(PackedCopies& copies, PackedCopy** list) {
  auto& store = static_cast<PackedStore&>(copies);
  *list = store.copies_.data();
  return store.copies_.size();
}

}  // namespace st_moe

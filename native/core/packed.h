#pragma once
#include <vector>

#include "core/pack.h"

namespace st_moe {

struct Device;

// The packed copies of one storage. They count as live bytes of its device.
class PackedStore : public PackedCopies {
 public:
  explicit PackedStore(Device& device);
  ~PackedStore() { clear(); }
  PackedStore(const PackedStore&) = delete;
  PackedStore& operator=(const PackedStore&) = delete;
  void clear();  // the weight has changed
  void outdate();
  void drop_outdated();

 private:
  static const void* find_copy(const PackedCopies& copies, const PackKey& key);
  static bool keep_copy(PackedCopies& copies, const PackKey& key, void* data, size_t bytes) noexcept;
  static size_t list_copies(PackedCopies& copies, PackedCopy** list);

  Device& device_;
  std::vector<PackedCopy> copies_;
};

}  // namespace st_moe

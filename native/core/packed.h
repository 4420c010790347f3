#pragma once
#include <vector>

#include "core/backend.h"

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

 private:
  struct Copy {
    PackKey key;
    void* data;
    size_t bytes;
  };
  static const void* find_copy(const PackedCopies& copies, const PackKey& key);
  static bool keep_copy(PackedCopies& copies, const PackKey& key, void* data, size_t bytes) noexcept;

  Device& device_;
  std::vector<Copy> copies_;
};

}  // namespace st_moe

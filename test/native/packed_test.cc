// What a storage keeps besides its memory. The packed copies of a weight: found under their own key, gone when the
// weight changes or is freed, counted. Short lists of i32 that the host put there: until a change.
#include <cstring>

#include "check.h"
#include "core/tensor.h"

using namespace st_moe;

namespace {

void* filled(Device& device, size_t bytes, int byte) {
  void* data = device.backend->allocate(device.context, bytes);
  std::memset(data, byte, bytes);
  return data;
}

void test_copies() {
  Device device(&cpu_backend(), Context{1, nullptr});
  const PackKey key{1, DType::bf16, 2, 3, 4};
  {
    const Tensor other = make_tensor(device, DType::f32, {2, 3, 4});
    check(!other.storage->packed(), "a tensor that is no parameter keeps no copies");
    Tensor weight = make_tensor(device, DType::f32, {2, 3, 4});
    weight.storage->keep_packed();
    PackedCopies* copies = weight.storage->packed();
    weight.storage->keep_packed();
    check(copies && weight.storage->packed() == copies, "a parameter stays one");
    const int64_t plain = device.stats.bytes;
    check(!copies->find(*copies, key), "nothing is there at first");

    void* data = filled(device, 100, 7);
    check(copies->keep(*copies, key, data, 100), "kept");
    check(copies->find(*copies, key) == data, "found");
    check(device.stats.bytes == plain + 100 && device.stats.peak_bytes == plain + 100, "counted");
    for (const PackKey& near :
         {PackKey{0, DType::bf16, 2, 3, 4}, PackKey{1, DType::f16, 2, 3, 4}, PackKey{1, DType::bf16, 1, 3, 4},
          PackKey{1, DType::bf16, 2, 1, 4}, PackKey{1, DType::bf16, 2, 3, 1}})
      check(!copies->find(*copies, near), "another key is another copy");
    PackKey second = key;
    second.dtype = DType::f16;
    void* more = filled(device, 60, 8);
    check(copies->keep(*copies, second, more, 60), "a second copy");
    check(copies->find(*copies, key) == data && copies->find(*copies, second) == more, "both are found");

    const Tensor view = weight;  // a reshape shares the storage
    const uint32_t version = view.storage->version();
    view.storage->change();
    check(view.storage->version() == version + 1, "a change raises the version");
    check(!copies->find(*copies, key) && !copies->find(*copies, second), "a change drops the copies");
    check(device.stats.bytes == plain, "and frees them");

    check(copies->keep(*copies, key, filled(device, 100, 9), 100), "kept again");
    check(device.stats.bytes == plain + 100, "counted again");
  }
  check(device.stats.bytes == 0, "freed with the weight: %lld bytes are left",
        static_cast<long long>(device.stats.bytes));
}

void test_remembered() {
  Device device(&cpu_backend(), Context{1, nullptr});
  const int32_t sizes[] = {3, 0, 5};
  const Tensor list = make_tensor(device, DType::i32, {3}), floats = make_tensor(device, DType::f32, {3});
  const Tensor empty = make_tensor(device, DType::i32, {0}), large = make_tensor(device, DType::i32, {5000});
  check(!list.storage->remembered(), "nothing is remembered at first");
  list.storage->remember(sizes, DType::i32);
  const int32_t* values = list.storage->remembered();
  check(values && values != sizes && std::memcmp(values, sizes, sizeof sizes) == 0, "a list is remembered");
  list.storage->change();
  check(!list.storage->remembered(), "until it changes");
  floats.storage->remember(sizes, DType::f32);
  empty.storage->remember(nullptr, DType::i32);
  const std::vector<int32_t> many(5000);
  large.storage->remember(many.data(), DType::i32);
  for (const Tensor* tensor : {&floats, &empty, &large})
    check(!tensor->storage->remembered(), "floats, nothing and long lists are not");
}

}  // namespace

int main() {
  test_copies();
  test_remembered();
  return check_result();
}

// Packed copies of weights on the device of a plugin: made once, used instead of the weights, written by optimizers.
#include <cstring>

#include "device.h"

using namespace st_moe;
using namespace st_moe::test;

namespace {

// Keeps copies, as a parameter does.
struct Copies : PackedCopies {
  Copies() : PackedCopies{find_copy, keep_copy, list_copies} {}
  ~Copies() { clear(); }
  void clear() {
    for (const PackedCopy& copy : held) machine().gpu().release(machine().context, copy.data, copy.bytes);
    held.clear();
  }
  static const void* find_copy(const PackedCopies& copies, const PackKey& key) {
    for (const PackedCopy& copy : static_cast<const Copies&>(copies).held)
      if (!copy.outdated && copy.key == key) return copy.data;
    return nullptr;
  }
  static bool keep_copy(PackedCopies& copies, const PackKey& key, void* data, size_t bytes) {
    static_cast<Copies&>(copies).held.push_back({key, data, bytes});
    return true;
  }
  static size_t list_copies(PackedCopies& copies, PackedCopy** list) {
    auto& held = static_cast<Copies&>(copies).held;
    *list = held.data();
    return held.size();
  }
  std::vector<PackedCopy> held;
};

const Bytes& output(const Problem& p, const Result& result, const std::string& name) {
  return result.bytes[const_cast<Problem&>(p).find(name) - p.tensors.data()];
}

// Experts whose hidden size has to be padded, and their backward.
struct Layer {
  Table table = table_of({});
  Problem forward, backward;

  Layer(int64_t D, DType compute) {
    const Case c = table.add(ExpertFfnArgs{
        .dtype = DType::f32, .compute = compute, .T = 16, .K = 1, .R = 16, .D = D, .O = D, .E = 4, .H = 127, .P = 254});
    Case experts = c;
    for (const char* name : {"assignment", "ends", "row_of", "weight"}) experts.without(name);
    backward = table.problem(table.add_backward(experts, ExpertFfnBackwardArgs{}));
    forward = *backward.forward;
  }
};

Result run(const Problem& p, const char* name, const Packed& packed) {
  Result result = run_on_device(p, name, false, 0, packed);
  check(result.status.code == ErrorCode::none, "%s: %s", name, result.status.text);
  return result;
}

// Packed copies are made once, change nothing, and cost the forward no launch.
void test_copies() {
  Layer layer(67, DType::bf16);
  Copies w1, w2;
  const Packed packed{{"w1_packed", &w1}, {"w2_packed", &w2}};
  const Result plain = run(layer.forward, "without copies", {}), first = run(layer.forward, "with copies", packed);
  const Result plain_back = run(layer.backward, "backward without copies", {});
  for (const char* name : {"backward with copies", "backward with copies again"})
    check(run(layer.backward, name, packed).bytes == plain_back.bytes, "%s: other bits", name);
  const Result again = run(layer.forward, "with copies again", packed);
  check(first.bytes == plain.bytes && again.bytes == plain.bytes, "copies change bits");
  check(first.launches <= plain.launches + 2 && again.launches <= plain.launches,
        "copies cost launches: %d, %d, not %d", int(first.launches), int(again.launches), int(plain.launches));
  check(w1.held.size() == 1 && w2.held.size() == 1, "one copy of each, for forward and backward");
  check(w1.held[0].bytes == 2 * 4 * 256 * 128 && w2.held[0].bytes == 2 * 4 * 128 * 128, "bytes of the copies");
  for (double& value : layer.forward["w1"]) value = -value;  // behind the back of the copies
  check(output(layer.forward, run(layer.forward, "with copies of other weights", packed), "y") ==
            output(layer.forward, plain, "y"),
        "the copies are what is multiplied");
  w1.clear(), w2.clear();
  check(output(layer.forward, run(layer.forward, "without copies of changed weights", packed), "y") !=
            output(layer.forward, plain, "y"),
        "new copies of changed weights");
}

// An optimizer writes the copy of a weight with the weight: the same as a new copy.
template <class Args>
void test_rewritten(int64_t D, DType compute, Args args) {
  const std::string name = std::string("a copy that ") + name_of(args) + " writes, columns " + std::to_string(D);
  Layer layer(D, compute);
  Copies w1;
  const Packed packed{{"w1_packed", &w1}};
  const Result before = run(layer.forward, name.c_str(), packed);
  check(w1.held.size() == 1, "%s: no copy", name.c_str());
  const void* copy = w1.held[0].data;
  w1.held[0].outdated = true;
  args.dtype = DType::f32, args.size = static_cast<int64_t>(layer.forward["w1"].size()), args.step = 1, args.lr = 0.1;
  Problem update = layer.table.add(args).problem();
  update["p"] = layer.forward["w1"];
  for (const char* state : {"m", "v", "buffer"})
    if (update.has(state)) std::fill(update[state].begin(), update[state].end(), 0);
  const Result updated = run(update, name.c_str(), {{"p_packed", &w1}});
  check(w1.held.size() == 1 && w1.held[0].data == copy && !w1.held[0].outdated, "%s", name.c_str());
  layer.forward["w1"] = update.find("p")->decode(output(update, updated, "p"));
  const Bytes got = output(layer.forward, run(layer.forward, name.c_str(), packed), "y");
  check(got == output(layer.forward, run(layer.forward, name.c_str(), {}), "y"), "%s: other bits", name.c_str());
  check(got != output(layer.forward, before, "y"), "%s: the same output", name.c_str());
}

}  // namespace

int main() {
  test_copies();
  for (const int64_t D : {67, 68})
    for (const DType compute : {DType::bf16, DType::f16}) {
      test_rewritten(D, compute, AdamwArgs{.beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8});
      test_rewritten(D, compute, SgdArgs{});
    }
  std::printf("packed copies on %s\n", machine().gpu().variant);
  return check_result();
}

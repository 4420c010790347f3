// Collectives, in a process alone and in a group whose other ranks have what this one has. Real ones: test/distributed.
#include <cstring>

#include "case.h"
#include "core/process_group.h"

namespace st_moe::test {
namespace {

constexpr int kRanks = 3, kRank = 1;

// Rank 1 of 3. Every rank has the same tensors, so what comes from another is what this one has for that place.
class MirrorGroup : public ProcessGroup {
 public:
  int rank() const override { return kRank; }
  int size() const override { return kRanks; }
  void barrier(const char*) override {}
  void agree(const std::string&) override {}
  std::unique_ptr<ProcessGroup> subgroup(const std::vector<int>&) override { return nullptr; }
  void expect_same(const Collective&) override {}
  void all_to_all(const char*, const void* in, const int64_t* sent, void* out, const int64_t* received) override {
    const char* own = static_cast<const char*>(in);
    char* to = static_cast<char*>(out);
    for (int rank = 0; rank < kRank; ++rank) own += sent[rank];
    for (int rank = 0; rank < kRanks; to += received[rank++])
      std::copy_n(own, std::min(sent[kRank], received[rank]), to);
  }
  void all_gather(const char*, void* all, const int64_t* bytes) override {
    char* part = static_cast<char*>(all);
    const char* own = part;
    for (int rank = 0; rank < kRank; ++rank) own += bytes[rank];
    for (int rank = 0; rank < kRanks; part += bytes[rank++])
      if (rank != kRank) std::copy_n(own, std::min(bytes[kRank], bytes[rank]), part);
  }
  void broadcast(const char*, void* data, int64_t bytes, int root) override {
    if (root != kRank) std::memset(data, 0, static_cast<size_t>(bytes));
  }
  void send(const char*, const char*, const void*, int64_t, int) override {}
  void recv(const char*, const char*, void* data, int64_t bytes, int) override {
    std::memset(data, 0, static_cast<size_t>(bytes));
  }
  bool holds_memory() const override { return false; }
};

ProcessGroup* mirror() {
  static MirrorGroup group;
  return &group;
}
ProcessGroup* self() {
  return self_group().get();
}

double added(DType dtype, double x, int ranks) {
  const DType steps = dtype == DType::bf16 || dtype == DType::f16 ? DType::f32 : dtype;
  double sum = x;
  for (int rank = 1; rank < ranks; ++rank) sum = rounded(steps, sum + x);
  return rounded(dtype, sum);
}

void all_reduce(const AllReduceArgs& a, Problem& p) {
  const int ranks = a.reduction == Reduction::sum ? a.group->size() : 1;
  for (int64_t i = 0; i < a.size; ++i) p["y"][i] = added(a.dtype, p["x"][i], ranks);
}

void all_gather(const AllGatherArgs&, Problem& p) {
  for (size_t i = 0; i < p["y"].size(); ++i) p["y"][i] = p["x"][i % p["x"].size()];
}

int64_t first_row(const int64_t* rows, int rank) {
  int64_t sum = 0;
  for (int before = 0; before < rank; ++before) sum += rows[before];
  return sum;
}

void reduce_scatter(const ReduceScatterArgs& a, Problem& p) {
  const int64_t first = first_row(a.rows, a.group->rank()) * a.W;
  for (int64_t i = 0; i < a.M * a.W; ++i) p["y"][i] = added(a.dtype, p["x"][first + i], a.group->size());
}

void all_to_all(const AllToAllArgs& a, Problem& p) {
  const int64_t first = first_row(a.sent, a.group->rank()) * a.W, own = a.sent[a.group->rank()] * a.W;
  for (int64_t i = 0; i < a.M * a.W; ++i) p["y"][i] = p["x"][first + i % own];
}

void broadcast(const BroadcastArgs& a, Problem& p) {
  for (int64_t i = 0; i < a.size; ++i) p["y"][i] = a.root == a.group->rank() ? p["x"][i] : 0;
}

void broadcast_backward(const BroadcastBackwardArgs& a, Problem& p) {
  for (int64_t i = 0; i < a.size; ++i)
    p["dx"][i] = a.root == a.group->rank() ? added(a.dtype, p["dy"][i], a.group->size()) : 0;
}

template <class Args>
void nothing(const Args&, Problem&) {}

// The largest of two numbers of which one is NaN is NaN.
void with_nan(Problem& p) {
  for (size_t i = 0; i < p["x"].size(); i += 3) p["x"][i] = NAN;
}

}  // namespace

void collectives(Table& t) {
  t.loop(all_reduce);
  t.loop(all_gather);
  t.loop(reduce_scatter);
  t.loop(all_to_all);
  t.loop(broadcast);
  t.loop(broadcast_backward);
  t.loop<SendArgs>(nothing);
  t.loop<RecvArgs>(nothing);
  static const int64_t one[] = {7}, equal[] = {4, 4, 4}, uneven[] = {0, 5, 2}, much[] = {900, 1001, 13};
  for (const DType dtype : kDTypes) {
    const bool is_real = dtype != DType::i32;
    const auto add = [&](Case& c) -> Case& {
      c.cpu_only().same_bits();
      if (!is_real)
        c.fill([](Problem& p) {
          for (Tensor& tensor : p.tensors)
            for (double& x : tensor.numbers) x = std::trunc(p.random.normal() * 1e9);
        });
      return c;
    };
    for (const int64_t size : {0, 1, 5, 2000}) {
      for (const Reduction reduction : {Reduction::sum, Reduction::max, Reduction::min}) {
        const AllReduceArgs args{.group = mirror(), .dtype = dtype, .size = size, .reduction = reduction};
        if (is_real || reduction != Reduction::sum) add(t.add(args)).called("three ranks");
      }
      add(t.add(BroadcastArgs{.group = mirror(), .dtype = dtype, .size = size, .root = kRank}));
    }
    add(t.add(AllReduceArgs{.group = self(), .dtype = dtype, .size = 50000, .reduction = Reduction::sum}));
    add(t.add(AllGatherArgs{.group = self(), .rows = one, .dtype = dtype, .S = 7, .W = 3, .M = 7}));
    add(t.add(AllGatherArgs{.group = mirror(), .rows = equal, .dtype = dtype, .S = 4, .W = 5, .M = 12}));
    add(t.add(AllToAllArgs{.group = self(), .sent = one, .received = one, .dtype = dtype, .S = 7, .W = 3, .M = 7}));
    add(t.add(
        AllToAllArgs{.group = mirror(), .sent = equal, .received = equal, .dtype = dtype, .S = 12, .W = 2, .M = 12}));
    if (!is_real) continue;
    add(t.add(ReduceScatterArgs{.group = mirror(), .rows = uneven, .dtype = dtype, .S = 7, .W = 3, .M = 5}));
    add(t.add(ReduceScatterArgs{.group = mirror(), .rows = much, .dtype = dtype, .S = 1914, .W = 70, .M = 1001}));
    add(t.add(BroadcastBackwardArgs{.group = mirror(), .dtype = dtype, .size = 2, .root = 0})).without_differences();
    add(t.add(BroadcastBackwardArgs{.group = self(), .dtype = dtype, .size = 9000, .root = 0})).without_differences();
    for (const Reduction reduction : {Reduction::max, Reduction::min})
      add(t.add(AllReduceArgs{.group = mirror(), .dtype = dtype, .size = 100, .reduction = reduction}))
          .called("NaN")
          .fill(with_nan);
  }
  t.add(SendArgs{.group = mirror(), .dtype = DType::f32, .size = 3, .to = 0}).cpu_only();
  t.add(RecvArgs{.group = mirror(), .dtype = DType::f32, .size = 3, .from = 0}).cpu_only();
  t.add(SendArgs{.group = self(), .dtype = DType::f32, .size = 3, .to = 0})
      .cpu_only()
      .fails(ErrorCode::option, "send: there is no other rank");
}

}  // namespace st_moe::test

#if !defined(_WIN32)
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <unordered_set>

#include "mpi/job.h"

namespace st_moe::mpi {
namespace {

// A call as text, compared between ranks. A longer one ends with a hash of all of it.
using CallText = std::array<char, 256>;

uint64_t hash_of(const std::string& text) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

CallText text_of(const std::string& call) {
  CallText text{};
  if (call.size() < text.size())
    std::memcpy(text.data(), call.data(), call.size());
  else
    std::snprintf(text.data(), text.size(), "%.230s… #%016llx", call.c_str(),
                  static_cast<unsigned long long>(hash_of(call)));
  return text;
}

// Bytes by rank, and where each part begins.
struct Parts {
  std::vector<Count> bytes, at;

  void set(const int64_t* given) {
    bytes.assign(given, given + bytes.size());
    std::exclusive_scan(bytes.begin(), bytes.end(), at.begin(), Count{0});
  }
};

const auto kBytes = handle<Datatype>(kByte);

class MpiGroup : public ProcessGroup {
 public:
  // `ranks`: those of the job. `comparing`: another communicator of the same ones, so that a comparison is never taken
  // for what is compared.
  MpiGroup(Job& job, std::vector<int> ranks, Comm comm, Comm comparing)
      : job_(job),
        mpi_(job.mpi),
        ranks_(std::move(ranks)),
        first_place_(hash_of(std::string(reinterpret_cast<const char*>(ranks_.data()), ranks_.size() * sizeof(int)))),
        comm_(comm),
        comparing_(comparing),
        sent_(job, {}),
        received_(job, {}) {
    job.check(mpi_.Comm_rank(comm, &rank_), "MPI_Comm_rank");
    job.check(mpi_.Comm_size(comm, &size_), "MPI_Comm_size");
    for (Parts* parts : {&*sent_, &*received_}) {
      parts->bytes.resize(static_cast<size_t>(size_));
      parts->at.resize(static_cast<size_t>(size_));
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool holds_memory() const override { return job_.holds_memory(); }

  void barrier(const char* what) override {
    run(what, [&](Request* request) { return mpi_.Ibarrier(comm_, request); });
  }

  void agree(const std::string& call) override {
    const std::string name = call.substr(0, call.find('('));
    const auto all = texts_of_all(name.c_str(), text_of(call));
    for (int rank = 1; rank < size_; ++rank)
      if (all[rank] != all[0])
        job_.fail_with(ErrorCode::process_group, "the ranks disagree: rank 0 calls " + std::string(all[0].data()) +
                                                     ", rank " + std::to_string(rank) + " calls " + all[rank].data());
  }

  std::unique_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks) override {
    job_.expect_sound("newGroup");
    const Comm comm = job_.make_comm(comm_, ranks, "newGroup");
    std::vector<int> of_job;
    for (const int rank : ranks) of_job.push_back(ranks_[rank]);
    auto group = std::make_unique<MpiGroup>(job_, of_job, comm, job_.make_comm(comm_, ranks, "newGroup"));
    group->barrier("newGroup");
    unlink_shared_memory();
    return group;
  }

  void expect_same(const Collective& collective) override {
    const bool is_first = seen_.insert(hash_of(collective.call)).second;
    if (!is_first && !job_.debug()) return;
    std::string call = collective.call;
    for (int rank = 0; collective.rows && rank < size_; ++rank)
      call += (rank ? ", " : " of rows [") + std::to_string(collective.rows[rank]) + (rank + 1 < size_ ? "" : "]");
    agree(call);
    if (collective.sent) expect_splits(collective);
  }

  void all_to_all(const char* what, const void* in, const int64_t* sent, void* out, const int64_t* received) override {
    sent_->set(sent);
    received_->set(received);
    run(what, [&](Request* request) {
      return mpi_.Ialltoallv_c(in, sent_->bytes.data(), sent_->at.data(), kBytes, out, received_->bytes.data(),
                               received_->at.data(), kBytes, comm_, request);
    });
  }

  void all_gather(const char* what, void* all, const int64_t* bytes) override {
    if (std::all_of(bytes, bytes + size_, [&](int64_t each) { return each == bytes[0]; }))
      return run(what, [&](Request* request) {
        return mpi_.Iallgather_c(kInPlace, 0, kBytes, all, bytes[0], kBytes, comm_, request);
      });
    received_->set(bytes);
    // Intel MPI's Iallgatherv passes on parts in pieces of the smallest one: seconds for 1 row here and 40,000 there.
    const Count own = received_->bytes[rank_], own_at = received_->at[rank_];
    received_->bytes[rank_] = 0;  // it is there
    sent_->bytes.assign(sent_->bytes.size(), own);
    sent_->bytes[rank_] = 0;
    sent_->at.assign(sent_->at.size(), own_at);
    run(what, [&](Request* request) {
      return mpi_.Ialltoallv_c(all, sent_->bytes.data(), sent_->at.data(), kBytes, all, received_->bytes.data(),
                               received_->at.data(), kBytes, comm_, request);
    });
  }

  void broadcast(const char* what, void* data, int64_t bytes, int root) override {
    run(what, [&](Request* request) { return mpi_.Ibcast_c(data, bytes, kBytes, root, comm_, request); });
  }

  void send(const char* what, const char* message, const void* data, int64_t bytes, int to) override {
    Buffer<CallText> text(job_, text_of(message));
    meet(what, to, [&](Request* request) {
      return mpi_.Isend_c(text->data(), text->size(), kBytes, to, 0, comparing_, request);
    });
    meet(what, to, [&](Request* request) { return mpi_.Isend_c(data, bytes, kBytes, to, 0, comm_, request); });
  }

  void recv(const char* what, const char* message, void* data, int64_t bytes, int from) override {
    Buffer<CallText> text(job_, {});
    meet(what, from, [&](Request* request) {
      return mpi_.Irecv_c(text->data(), text->size(), kBytes, from, 0, comparing_, request);
    });
    if (*text != text_of(message))
      job_.fail_with(ErrorCode::process_group, "the ranks disagree: rank " + std::to_string(from) + " sends " +
                                                   text->data() + ", rank " + std::to_string(rank_) + " receives " +
                                                   message);
    meet(what, from, [&](Request* request) { return mpi_.Irecv_c(data, bytes, kBytes, from, 0, comm_, request); });
  }

 private:
  // A collective.
  template <class F>
  void run(const char* what, F&& start) {
    wait(what, ranks_, first_place_ + ++collectives_, start);
  }

  // What one other rank has a part in.
  template <class F>
  void meet(const char* what, int with, F&& start) {
    wait(what, {ranks_[with]}, 0, start);
  }

  template <class F>
  void wait(const char* what, const std::vector<int>& ranks, uint64_t place, F&& start) {
    job_.expect_sound(what);
    Request request = handle<Request>(kRequestNull);
    job_.check(start(&request), what);
    job_.wait(&request, {what, ranks, place});
  }

  std::vector<CallText> texts_of_all(const char* what, const CallText& text) {
    Buffer<CallText> own(job_, text);
    Buffer<std::vector<CallText>> all(job_, std::vector<CallText>(static_cast<size_t>(size_)));
    run(what, [&](Request* request) {
      return mpi_.Iallgather_c(own->data(), own->size(), kBytes, all->data(), own->size(), kBytes, comparing_, request);
    });
    return *all;
  }

  // What each rank sends to this one must be what this one expects of it. All ranks learn the first complaint.
  void expect_splits(const Collective& collective) {
    Buffer<std::vector<int64_t>> own(job_, std::vector<int64_t>(collective.sent, collective.sent + size_));
    Buffer<std::vector<int64_t>> comes(job_, std::vector<int64_t>(static_cast<size_t>(size_)));
    run(collective.what, [&](Request* request) {
      return mpi_.Ialltoall_c(own->data(), sizeof(int64_t), kBytes, comes->data(), sizeof(int64_t), kBytes, comparing_,
                              request);
    });
    std::string complaint;
    for (int rank = 0; rank < size_ && complaint.empty(); ++rank)
      if ((*comes)[rank] != collective.received[rank])
        complaint = "rank " + std::to_string(rank) + " sends " + std::to_string((*comes)[rank]) + " rows to rank " +
                    std::to_string(rank_) + ", which expects " + std::to_string(collective.received[rank]);
    for (const CallText& text : texts_of_all(collective.what, text_of(complaint)))
      if (text[0])
        job_.fail_with(ErrorCode::process_group,
                       std::string("the ranks disagree in ") + collective.call + ": " + std::string(text.data()));
  }

  Job& job_;
  const Library& mpi_;
  const std::vector<int> ranks_;
  const uint64_t first_place_;
  const Comm comm_, comparing_;
  int rank_ = 0, size_ = 1;
  Buffer<Parts> sent_, received_;
  std::unordered_set<uint64_t> seen_;  // collectives that have been compared
  uint64_t collectives_ = 0;
};

}  // namespace

std::unique_ptr<ProcessGroup> Job::world() {
  std::vector<int> ranks(static_cast<size_t>(size_));
  std::iota(ranks.begin(), ranks.end(), 0);
  return std::make_unique<MpiGroup>(*this, ranks, handle<Comm>(kCommWorld), comparing_);
}

}  // namespace st_moe::mpi
#endif

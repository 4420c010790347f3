#if !defined(_WIN32)
#include <array>
#include <cstring>
#include <memory>

#include "mpi/job.h"

namespace st_moe::mpi {
namespace {

// A call as text, compared between ranks. A longer one ends with a hash of all of it.
using CallText = std::array<char, 256>;

CallText text_of(const std::string& call) {
  CallText text{};
  if (call.size() < text.size()) {
    std::memcpy(text.data(), call.data(), call.size());
    return text;
  }
  uint32_t hash = 2166136261u;  // FNV-1a
  for (const char c : call) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  std::snprintf(text.data(), text.size(), "%.240s… #%08x", call.c_str(), hash);
  return text;
}

class MpiGroup : public ProcessGroup {
 public:
  MpiGroup(Job& job, Comm comm) : job_(job), comm_(comm) {
    job.check(job.mpi.Comm_rank(comm, &rank_), "MPI_Comm_rank");
    job.check(job.mpi.Comm_size(comm, &size_), "MPI_Comm_size");
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void barrier(const char* what) override {
    job_.expect_sound(what);
    Request request = handle<Request>(kRequestNull);
    job_.check(job_.mpi.Ibarrier(comm_, &request), what);
    job_.wait(&request, what);
  }

  void agree(const std::string& call) override {
    const std::string name = call.substr(0, call.find('('));
    job_.expect_sound(name.c_str());
    auto own = std::make_unique<CallText>(text_of(call));
    auto all = std::make_unique<std::vector<CallText>>(size_);
    Request request = handle<Request>(kRequestNull);
    const auto byte = handle<Datatype>(kByte);
    job_.check(job_.mpi.Iallgather_c(own->data(), own->size(), byte, all->data(), own->size(), byte, comm_, &request),
               name.c_str());
    try {
      job_.wait(&request, name.c_str());
    } catch (...) {
      (void)own.release(), (void)all.release();  // the library may still write to them
      throw;
    }
    for (int rank = 1; rank < size_; ++rank)
      if ((*all)[rank] != (*all)[0])
        job_.fail_with(ErrorCode::process_group, "the ranks disagree: rank 0 calls " + std::string((*all)[0].data()) +
                                                     ", rank " + std::to_string(rank) + " calls " +
                                                     (*all)[rank].data());
  }

  std::unique_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks) override {
    job_.expect_sound("newGroup");
    struct Made {
      Group all = nullptr, some = nullptr;
      Comm comm = nullptr;
    };
    const auto made = std::make_shared<Made>();
    const Library& mpi = job_.mpi;
    job_.check(mpi.Comm_group(comm_, &made->all), "MPI_Comm_group");
    job_.check(mpi.Group_incl(made->all, static_cast<int>(ranks.size()), ranks.data(), &made->some), "MPI_Group_incl");
    job_.call("MPI_Comm_create_group",
              [&mpi, made, comm = comm_] { return mpi.Comm_create_group(comm, made->some, 0, &made->comm); });
    mpi.Group_free(&made->some);
    mpi.Group_free(&made->all);
    auto group = std::make_unique<MpiGroup>(job_, made->comm);
    group->barrier("newGroup");
    unlink_shared_memory();
    return group;
  }

 private:
  Job& job_;
  const Comm comm_;
  int rank_ = 0, size_ = 1;
};

}  // namespace

std::unique_ptr<ProcessGroup> Job::world() {
  return std::make_unique<MpiGroup>(*this, handle<Comm>(kCommWorld));
}

}  // namespace st_moe::mpi
#endif

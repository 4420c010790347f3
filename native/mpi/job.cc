#if !defined(_WIN32)
#include "mpi/job.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <numeric>
#include <thread>

namespace st_moe::mpi {

namespace {

constexpr int kSpins = 200, kYields = 5000;  // turns of waiting before the next kind of it
constexpr useconds_t kSleep = 50;            // microseconds
constexpr auto kNotice = std::chrono::seconds(1);
constexpr auto kDrain = std::chrono::milliseconds(100);  // in which what a lost rank has sent may still arrive

// What tells machines apart; processes of one can share memory.
struct HostName {
  char text[192];
};

HostName own_host() {
  HostName host{};
  gethostname(host.text, 128);
  host.text[127] = '\0';
  if (FILE* file = std::fopen("/proc/sys/kernel/random/boot_id", "r")) {
    const size_t length = std::strlen(host.text);
    (void)!std::fgets(host.text + length, static_cast<int>(sizeof host.text - length), file);
    std::fclose(file);
  }
  return host;
}

std::string seconds_of(std::chrono::duration<double> time) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", time.count());
  return text;
}

}  // namespace

Job::Job(const Library& library, Options options) : mpi(library), timeout_(options.timeout), debug_(options.debug) {
  initialize(options.expected_size);
  find_hosts();
  start_watch();
  std::vector<int> ranks(static_cast<size_t>(size_));
  std::iota(ranks.begin(), ranks.end(), 0);
  comparing_ = make_comm(handle<Comm>(kCommWorld), ranks, "initProcessGroup");
  const auto all = world();
  all->agree(options.call);
  all->barrier("initProcessGroup");
  unlink_shared_memory();
  is_started_ = true;
}

void Job::initialize(int expected_size) {
  int initialized = 0;
  check(mpi.Initialized(&initialized), "MPI_Initialized");
  if (initialized) fail(ErrorCode::unsupported, "other code of this process has initialized MPI");
  const auto provided = std::make_shared<int>(0);
  {
    const SignalHandlers handlers;
    call("MPI_Init_thread",
         [&library = mpi, provided] { return library.Init_thread(nullptr, nullptr, kThreadMultiple, provided.get()); });
  }
  for (const uintptr_t comm : {kCommWorld, kCommSelf})
    check(mpi.Comm_set_errhandler(handle<Comm>(comm), handle<Errhandler>(kErrorsReturn)), "MPI_Comm_set_errhandler");
  check(mpi.Comm_rank(handle<Comm>(kCommWorld), &rank_), "MPI_Comm_rank");
  check(mpi.Comm_size(handle<Comm>(kCommWorld), &size_), "MPI_Comm_size");
  if (*provided != kThreadMultiple)
    fail_with(ErrorCode::backend_unavailable, mpi.version() + " has no MPI_THREAD_MULTIPLE");
  if (expected_size != 0 && expected_size != size_) {
    if (size_ == 1) unlink_shared_memory();  // it has initialized MPI alone
    fail_with(ErrorCode::backend_unavailable,
              "the launcher started " + std::to_string(expected_size) + " processes, the library sees " +
                  std::to_string(size_) + ": " + mpi.version() +
                  " and the launcher do not fit. Start the program with st-moe launch or the library's own mpiexec");
  }
}

void Job::find_hosts() {
  Buffer<HostName> own(*this, own_host());
  Buffer<std::vector<HostName>> all(*this, std::vector<HostName>(static_cast<size_t>(size_)));
  Request request = handle<Request>(kRequestNull);
  const auto byte = handle<Datatype>(kByte);
  check(mpi.Iallgather_c(&*own, sizeof *own, byte, all->data(), sizeof *own, byte, handle<Comm>(kCommWorld), &request),
        "initProcessGroup");
  wait(&request, {"initProcessGroup", {}, 0});
  hosts_.resize(size_);
  for (int r = 0; r < size_; ++r)
    for (hosts_[r] = 0; std::memcmp((*all)[hosts_[r]].text, (*all)[r].text, sizeof(HostName)) != 0;) ++hosts_[r];
}

void Job::start_watch() {
  auto watch = std::make_unique<Watch>(rank_, size_);
  Buffer<Watch::Invitation> invitation(*this, {});
  bool one_host = true;
  for (const int host : hosts_) one_host &= host == 0;
  if (rank_ == 0) *invitation = watch->listen(one_host);
  Request request = handle<Request>(kRequestNull);
  check(mpi.Ibcast_c(&*invitation, sizeof *invitation, handle<Datatype>(kByte), 0, handle<Comm>(kCommWorld), &request),
        "initProcessGroup");
  wait(&request, {"initProcessGroup", {}, 0});
  try {
    watch->connect(*invitation, hosts_[rank_] == 0, deadline());
  } catch (const Error& error) {
    check_watch("initProcessGroup");  // the likely reason, with its name
    fail_with(error.code(), error.what());
  }
  watch_ = std::move(watch);
}

Clock::time_point Job::deadline() const {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(timeout_);
}

void Job::expect_sound(const char* what) {
  if (broken_) throw Error(*broken_);
  check_watch(what);
}

void Job::fail_with(ErrorCode code, const std::string& text) {
  broken_ = std::make_unique<Error>(code, text.c_str());
  throw Error(*broken_);
}

int Job::lost() const {
  const int told = is_started_ ? Watch::kNobody : Watch::ended();
  return told == Watch::kNobody && watch_ ? watch_->lost() : told;
}

void Job::check_watch(const char* what) {
  const int gone = lost();
  if (gone == Watch::kNobody) return;
  const std::string who = gone == Watch::kLauncher ? "the launcher" : "rank " + std::to_string(gone);
  fail_with(ErrorCode::peer_lost, std::string(what) + ": " + who + " has ended");
}

void Job::check(int code, const char* what) {
  if (code == kSuccess) return;
  for (const auto until = Clock::now() + kNotice; watch_ && Clock::now() < until; usleep(1000))
    check_watch(what);  // the likely reason
  fail_with(ErrorCode::process_group, std::string(what) + ": the MPI library says: " + mpi.text_of(code));
}

void Job::wait(Request* request, const Wait& wait) {
  try {
    poll(request, wait);
  } catch (...) {
    holds_memory_ = true;
    throw;
  }
}

void Job::poll(Request* request, const Wait& wait) {
  const char* what = wait.what;
  const auto start = Clock::now(), until = deadline();
  const auto told_after = std::min<std::chrono::duration<double>>(timeout_ / 4, kNotice);
  const bool tells = watch_ && wait.place != 0;
  bool told = false;
  Clock::time_point noticed{};  // when the watch has seen a loss
  for (int turn = 0;; ++turn) {
    int done = 0;
    check(mpi.Test(request, &done, nullptr), what);
    if (done) {
      if (told) watch_->wait_at(0);
      return;
    }
    if (lost() != Watch::kNobody) {
      if (noticed == Clock::time_point{}) noticed = Clock::now();
      if (Clock::now() - noticed > kDrain) check_watch(what);
    }
    if (turn < kSpins) continue;
    const auto now = Clock::now();
    if (tells && !told && now - start > told_after) {
      told = true;
      watch_->wait_at(wait.place);
    }
    if (now > until)
      fail_with(ErrorCode::timeout, std::string(what) + ": not all ranks came within " + seconds_of(timeout_) +
                                        " s (timeout)" + missing(wait));
    if (turn < kYields)
      sched_yield();
    else
      usleep(kSleep);
  }
}

// Which ranks have not come, as far as it can be known.
std::string Job::missing(const Wait& wait) {
  std::vector<bool> here(static_cast<size_t>(size_)), absent = here;
  if (wait.place != 0) {
    const auto patience = std::min<std::chrono::duration<double>>(timeout_ / 20, kNotice);
    here = watch_->who_waits(wait.place, Clock::now() + std::chrono::duration_cast<Clock::duration>(patience));
    if (here.empty()) return ": rank 0 does not answer";
  }
  for (const int rank : wait.ranks) absent[rank] = !here[rank];
  std::string names;
  int count = 0;
  for (int rank = 0; rank < size_; ++rank)
    if (absent[rank] && ++count) names += (count > 1 ? ", " : "") + std::to_string(rank);
  if (count == 0) return "";
  return count == 1 ? ": rank " + names + " is missing" : ": ranks " + names + " are missing";
}

void Job::call(const char* what, std::function<int()> function) {
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    int code = kSuccess;
  };
  const auto state = std::make_shared<State>();
  std::thread([state, function = std::move(function)] {
    const int code = function();
    const std::lock_guard<std::mutex> lock(state->mutex);
    state->code = code;
    state->done = true;
    state->changed.notify_one();
  }).detach();
  const auto until = deadline();
  std::unique_lock<std::mutex> lock(state->mutex);
  while (!state->changed.wait_for(lock, std::chrono::milliseconds(5), [&] { return state->done; })) {
    check_watch(what);
    if (Clock::now() > until)
      fail_with(ErrorCode::timeout,
                std::string(what) + " did not return within " + seconds_of(timeout_) + " s (timeout)");
  }
  check(state->code, what);
}

Comm Job::make_comm(Comm of, const std::vector<int>& ranks, const char* what) {
  struct Made {
    Group all = nullptr, some = nullptr;
    Comm comm = nullptr;
  };
  const auto made = std::make_shared<Made>();
  check(mpi.Comm_group(of, &made->all), "MPI_Comm_group");
  check(mpi.Group_incl(made->all, static_cast<int>(ranks.size()), ranks.data(), &made->some), "MPI_Group_incl");
  call(what, [&library = mpi, made, of] { return library.Comm_create_group(of, made->some, 0, &made->comm); });
  mpi.Group_free(&made->some);
  mpi.Group_free(&made->all);
  return made->comm;
}

void Job::finish() {
  world()->barrier("destroy");
  watch_->leave();
  call("MPI_Finalize", [&library = mpi] { return library.Finalize(); });
  broken_ = std::make_unique<Error>(ErrorCode::disposed, "the process group has been destroyed");
}

void Job::abandon() {
  if (watch_) watch_->stop();
  if (!broken_) broken_ = std::make_unique<Error>(ErrorCode::process_group, "the owner of the process group has ended");
}

void unlink_shared_memory() {
  FILE* file = std::fopen("/proc/self/maps", "r");
  if (!file) return;
  char line[4500];
  while (std::fgets(line, sizeof line, file)) {
    const char* path = std::strstr(line, "/dev/shm/mpich_shm_");
    if (path && !std::strstr(path, " (deleted)")) unlink(std::string(path, std::strcspn(path, "\n")).c_str());
  }
  std::fclose(file);
}

}  // namespace st_moe::mpi
#endif

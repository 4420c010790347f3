#include "mpi/watch.h"

#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "core/error.h"

#if !defined(_WIN32)
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace st_moe;
using namespace st_moe::mpi;
using namespace std::chrono_literals;

static constexpr auto kPatience = 60s;

static int connect_to(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  to.sin_port = port;
  check(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0, "a stranger cannot connect");
  return fd;
}

// The watches of a job, each connected in a thread of its own.
struct Job {
  std::vector<std::unique_ptr<Watch>> ranks;
  explicit Job(int size, const std::function<void(const Watch::Invitation&)>& before = {}, bool one_host = true) {
    for (int rank = 0; rank < size; ++rank) ranks.push_back(std::make_unique<Watch>(rank, size));
    const Watch::Invitation invitation = ranks[0]->listen(one_host);
    if (before) before(invitation);
    std::vector<std::thread> threads;
    for (auto& watch : ranks)
      threads.emplace_back([&] { watch->connect(invitation, one_host, Clock::now() + kPatience); });
    for (std::thread& thread : threads) thread.join();
  }
  void expect_lost(int rank, int lost) {
    const auto until = Clock::now() + kPatience;
    while (ranks[rank]->lost() != lost && Clock::now() < until) std::this_thread::sleep_for(1ms);
    check(ranks[rank]->lost() == lost, "rank %d sees that %d is lost, not %d", rank, ranks[rank]->lost(), lost);
  }
};

static void test_loss() {
  for (int gone = 0; gone < 4; ++gone) {
    Job job(4);
    for (int rank = 0; rank < 4; ++rank) check(job.ranks[rank]->lost() == Watch::kNobody, "nobody is lost yet");
    job.ranks[gone]->stop();
    for (int rank = 0; rank < 4; ++rank)
      if (rank != gone) job.expect_lost(rank, gone);
  }
}

static void test_farewell() {
  Job job(3);
  job.ranks[1]->leave();
  job.ranks[0]->leave();
  std::this_thread::sleep_for(50ms);
  check(job.ranks[2]->lost() == Watch::kNobody, "a farewell is a loss");
  job.ranks[2]->leave();
}

// They neither become ranks nor keep ranks from coming.
static void test_strangers() {
  std::vector<int> strangers;
  Job job(3, [&](const Watch::Invitation& invitation) {
    for (const size_t bytes : {0, 1, 20, 4000}) {
      strangers.push_back(connect_to(invitation.port));
      const std::vector<char> garbage(bytes, 1);
      check(send(strangers.back(), garbage.data(), bytes, 0) == static_cast<ssize_t>(bytes), "a stranger cannot send");
    }
    char hello[20] = {};  // another token, and rank 1
    hello[16] = 1;
    strangers.push_back(connect_to(invitation.port));
    check(send(strangers.back(), hello, sizeof hello, 0) == sizeof hello, "a stranger cannot send");
    std::memcpy(hello, invitation.token.data(), 16);
    hello[16] = 0, hello[19] = 1;  // the right token, and no rank
    strangers.push_back(connect_to(invitation.port));
    check(send(strangers.back(), hello, sizeof hello, 0) == sizeof hello, "a stranger cannot send");
  });
  for (const int stranger : strangers) close(stranger);
  std::this_thread::sleep_for(50ms);
  for (int rank = 0; rank < 3; ++rank)
    check(job.ranks[rank]->lost() == Watch::kNobody, "rank %d: the end of a stranger is a loss", rank);
  job.ranks[2]->stop();
  job.expect_lost(0, 2);
  job.expect_lost(1, 2);
}

static void test_missing() {
  Watch watch(0, 4), second(2, 4);
  const Watch::Invitation invitation = watch.listen(true);
  second.connect(invitation, true, Clock::now() + kPatience);
  try {
    watch.connect(invitation, true, Clock::now() + 200ms);
    check(false, "ranks that have not come are not missed");
  } catch (const Error& error) {
    check(error.code() == ErrorCode::timeout && std::strstr(error.what(), "in time: 1, 3"), "the error is '%s'",
          error.what());
  }
}

// Ranks of several machines come by the addresses of rank 0's.
static void test_addresses() {
  Watch alone(0, 1);
  const Watch::Invitation invitation = alone.listen(false);
  for (int i = 0; i < invitation.count; ++i)
    check(invitation.addresses[i] != htonl(INADDR_LOOPBACK), "other machines are told of the loopback");
  if (invitation.count == 0) {
    std::printf("no network: ranks of several machines are not tried\n");
    return;
  }
  Job job(3, {}, false);
  job.ranks[1]->stop();
  job.expect_lost(0, 1);
  job.expect_lost(2, 1);
}

static void test_nobody_listens() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);  // keeps its port, and does not listen
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  auto* address = reinterpret_cast<sockaddr*>(&at);
  check(bind(fd, address, size) == 0 && getsockname(fd, address, &size) == 0, "no port");
  for (const bool same_host : {true, false}) {
    Watch::Invitation invitation{};
    invitation.port = at.sin_port;
    Watch watch(1, 2);
    try {
      watch.connect(invitation, same_host, Clock::now() + kPatience);
      check(false, "a rank connects to nobody");
    } catch (const Error& error) {
      check(error.code() == ErrorCode::timeout &&
                std::strcmp(error.what(), "rank 1 cannot connect to the watch of rank 0") == 0,
            "the error is '%s'", error.what());
    }
  }
  close(fd);
}

// Rank 0 knows who waits where, and forgets it.
static void test_waiting() {
  Job job(3);
  const auto expect_here = [&](int asked, uint64_t place, const std::vector<bool>& wanted) {
    std::vector<bool> here;
    for (const auto until = Clock::now() + kPatience; here != wanted && Clock::now() < until;)
      here = job.ranks[asked]->who_waits(place, Clock::now() + kPatience);
    check(here == wanted, "rank %d does not know who waits at %d", asked, static_cast<int>(place));
  };
  expect_here(1, 7, {false, false, false});
  job.ranks[0]->wait_at(7);
  job.ranks[2]->wait_at(7);
  job.ranks[1]->wait_at(8);
  for (int rank = 0; rank < 3; ++rank) {
    expect_here(rank, 7, {true, false, true});
    expect_here(rank, 8, {false, true, false});
  }
  job.ranks[2]->wait_at(0);
  expect_here(1, 7, {true, false, false});
  for (int rank = 0; rank < 3; ++rank) check(job.ranks[rank]->lost() == Watch::kNobody, "a question is a loss");
  job.ranks[0]->wait_at(9);
  job.ranks[1]->wait_at(10);
  expect_here(2, 10, {false, true, false});
  check(job.ranks[0]->who_waits(9, Clock::now()) == std::vector<bool>{true, false, false},
        "rank 0 does not know itself");
  job.ranks[0]->stop();
  for (int rank = 1; rank < 3; ++rank) {
    check(job.ranks[rank]->who_waits(9, Clock::now() + kPatience).size() == 3, "the answer of rank 0 is lost with it");
  }
  check(job.ranks[1]->who_waits(7, Clock::now() + 50ms).empty(), "there is an answer without rank 0");
}

int main() {
  test_loss();
  test_waiting();
  test_farewell();
  test_strangers();
  test_missing();
  test_addresses();
  test_nobody_listens();
  return check_result();
}
#else
int main() {
  return check_result();
}
#endif

#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace st_moe::mpi {

using Clock = std::chrono::steady_clock;

// Notices that a process of the job has ended, within milliseconds: the system closes its sockets, whatever the MPI
// library knows. A star of TCP connections around rank 0, which tells the others; one thread per process. Rank 0 also
// keeps where ranks wait for others, to name those that do not come.
class Watch {
 public:
  // Where rank 0 listens, and what tells its peers from strangers. Bytes that rank 0 sends to the others.
  struct Invitation {
    std::array<uint8_t, 16> token;
    uint16_t port;                      // in network order
    uint16_t count;                     // of addresses
    std::array<uint32_t, 8> addresses;  // IPv4, in network order
  };
  static constexpr int kNobody = -1, kLauncher = -2;

  Watch(int rank, int size) : rank_(rank), size_(size), places_(static_cast<size_t>(size)) {}
  ~Watch() { stop(); }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // The rank of a process whose end st-moe's launcher has told, or kNobody, or kLauncher: what is known before
  // `connect`.
  static int ended();
  // Rank 0. `one_host`: all ranks run on this machine.
  Invitation listen(bool one_host);
  // All ranks, with the invitation of rank 0. Throws Error(timeout), which names ranks that have not come.
  void connect(const Invitation& invitation, bool same_host, Clock::time_point deadline);

  // The rank of a process that has ended without a farewell, or kNobody, or kLauncher.
  int lost() const { return lost_; }
  // Tells rank 0 that this rank waits at a place, a number that is the same on all ranks that have to come there.
  void wait_at(uint64_t place);
  // By rank, whether it has told so of that place; nothing if rank 0 does not answer in time. If rank 0 asks, all learn
  // it.
  std::vector<bool> who_waits(uint64_t place, Clock::time_point deadline);
  // Says farewell and ends the thread: from now on the end of a process is no loss.
  void leave();
  // Ends the thread without a farewell.
  void stop();

 private:
  enum class Kind : int32_t { farewell, lost, waits, who_waits, answer };
  // What ranks tell each other; a byte for each rank follows an answer.
  struct Message {
    Kind kind;
    int32_t rank;
    uint64_t place;
  };
  // A connection, and what has come of the next message.
  struct Peer {
    int fd;
    std::vector<char> bytes;
  };

  void accept_all(const Invitation& invitation, Clock::time_point deadline);
  void run();
  bool hear(Peer& peer);  // false after the last message
  void take(const Peer& peer, const Message& message);
  void answer(int fd, uint64_t place);
  std::vector<bool> waiting_at(uint64_t place);
  void note_lost(int rank);

  const int rank_, size_;
  int listener_ = -1;
  int launcher_ = -1;                // a copy of its socket
  std::array<int, 2> wake_{-1, -1};  // a pipe that ends the thread
  std::vector<int> peers_;           // of rank 0: by rank − 1; of the others: rank 0; −1 once it has left
  std::atomic<int> lost_{kNobody};
  std::mutex mutex_;  // of what follows
  std::condition_variable answered_;
  std::vector<uint64_t> places_;                                  // of rank 0: where each rank waits
  std::optional<std::pair<uint64_t, std::vector<bool>>> answer_;  // of the others: the last place, and who waits there
  std::thread thread_;
};

}  // namespace st_moe::mpi

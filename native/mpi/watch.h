#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace st_moe::mpi {

using Clock = std::chrono::steady_clock;

// Notices that a process of the job has ended, within milliseconds: the system closes its sockets, whatever the MPI
// library knows. A star of TCP connections around rank 0, which tells the others; one thread per process.
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

  Watch(int rank, int size) : rank_(rank), size_(size) {}
  ~Watch() { stop(); }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Rank 0. `one_host`: all ranks run on this machine.
  Invitation listen(bool one_host);
  // All ranks, with the invitation of rank 0. Throws Error(timeout), which names ranks that have not come.
  void connect(const Invitation& invitation, bool same_host, Clock::time_point deadline);

  // The rank of a process that has ended without a farewell, or kNobody, or kLauncher.
  int lost() const { return lost_; }
  // Says farewell and ends the thread: from now on the end of a process is no loss.
  void leave();
  // Ends the thread without a farewell.
  void stop();

 private:
  void accept_all(const Invitation& invitation, Clock::time_point deadline);
  void run();
  bool read_from(size_t peer);
  void note_lost(int rank);

  const int rank_, size_;
  int listener_ = -1;
  int launcher_ = -1;                // a copy of its socket
  std::array<int, 2> wake_{-1, -1};  // a pipe that ends the thread
  std::vector<int> peers_;           // of rank 0: by rank − 1; of the others: rank 0; −1 once it has left
  std::atomic<int> lost_{kNobody};
  std::thread thread_;
};

}  // namespace st_moe::mpi

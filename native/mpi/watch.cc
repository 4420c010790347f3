#if !defined(_WIN32)
#include "mpi/watch.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <random>

#include "core/error.h"

namespace st_moe::mpi {
namespace {

constexpr int kConnectMs = 5000;
constexpr int kEndedMs = 50;  // after which to ask again whether a rank has ended

// The first message of a rank to rank 0.
struct Hello {
  std::array<uint8_t, 16> token;
  int32_t rank;
};

int remaining_ms(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

int new_socket() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0) fail(ErrorCode::process_group, "the watch of the processes has no socket: %s", std::strerror(errno));
  return fd;
}

// Not inherited by programs that this one starts, and never waits.
void set_flags(int fd) {
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
#if defined(SO_NOSIGPIPE)
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
}

// Notices a machine that is gone.
void keep_alive(int fd) {
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#if defined(TCP_KEEPIDLE)
  const int idle = 5, interval = 5, count = 3;
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
#endif
}

void tell(int fd, const void* message, size_t size) {
#if defined(MSG_NOSIGNAL)
  constexpr int flags = MSG_NOSIGNAL;
#else
  constexpr int flags = 0;
#endif
  while (send(fd, message, size, flags) < 0 && errno == EINTR) {
  }
}

void close_fd(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

// A descriptor that a launcher has named, or −1.
int descriptor_in(const char* variable) {
  const char* text = std::getenv(variable);
  int fd = -1;  // not atoi: its C++20 form needs glibc 2.38
  const bool is_one = text && std::from_chars(text, text + std::strlen(text), fd).ec == std::errc() && fd >= 0;
  return is_one ? fd : -1;
}

// A copy of the launcher's socket, or −1.
int copy_of_launcher() {
  const int fd = descriptor_in("PMI_FD");
  return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

std::vector<uint32_t> own_addresses() {
  std::vector<uint32_t> found;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return found;
  for (const ifaddrs* each = list; each; each = each->ifa_next)
    if (each->ifa_addr && each->ifa_addr->sa_family == AF_INET && (each->ifa_flags & IFF_UP) &&
        !(each->ifa_flags & IFF_LOOPBACK))
      found.push_back(reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr.s_addr);
  freeifaddrs(list);
  return found;
}

// A connection, or −1.
int connect_to(uint32_t address, uint16_t port, Clock::time_point deadline) {
  int fd = new_socket();
  set_flags(fd);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = address;
  to.sin_port = port;
  int error = connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0 ? 0 : errno;
  if (error == EINPROGRESS || error == EINTR) {
    pollfd wait{fd, POLLOUT, 0};
    socklen_t size = sizeof error;
    const int ready = poll(&wait, 1, std::min(remaining_ms(deadline), kConnectMs));
    if (ready <= 0 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = ETIMEDOUT;
  }
  if (error != 0) close_fd(fd);
  return fd;
}

}  // namespace

// Reads nothing away: a descriptor that is not the launcher's stays as it is.
int Watch::ended() {
  const int fd = descriptor_in("ST_MOE_ENDED_FD");
  int32_t rank = 0;
  if (fd < 0) return kNobody;
  const ssize_t n = recv(fd, &rank, sizeof rank, MSG_PEEK | MSG_DONTWAIT);
  if (n == 0) return kLauncher;
  return n == sizeof rank && rank >= 0 ? rank : kNobody;
}

Watch::Invitation Watch::listen(bool one_host) {
  Invitation invitation{};
  std::random_device random;
  for (uint8_t& byte : invitation.token) byte = static_cast<uint8_t>(random());
  listener_ = new_socket();
  set_flags(listener_);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(one_host ? INADDR_LOOPBACK : INADDR_ANY);
  socklen_t size = sizeof at;
  auto* address = reinterpret_cast<sockaddr*>(&at);
  if (bind(listener_, address, size) != 0 || ::listen(listener_, SOMAXCONN) != 0 ||
      getsockname(listener_, address, &size) != 0)
    fail(ErrorCode::process_group, "the watch of the processes cannot listen: %s", std::strerror(errno));
  invitation.port = at.sin_port;
  if (!one_host)
    for (const uint32_t own : own_addresses())
      if (invitation.count < invitation.addresses.size()) invitation.addresses[invitation.count++] = own;
  return invitation;
}

void Watch::connect(const Invitation& invitation, bool same_host, Clock::time_point deadline) {
  if (rank_ == 0) {
    accept_all(invitation, deadline);
  } else {
    std::vector<uint32_t> addresses(invitation.addresses.begin(), invitation.addresses.begin() + invitation.count);
    if (same_host) addresses.insert(addresses.begin(), htonl(INADDR_LOOPBACK));
    int fd = -1;
    for (size_t i = 0; fd < 0 && i < addresses.size(); ++i) fd = connect_to(addresses[i], invitation.port, deadline);
    if (fd < 0) fail(ErrorCode::timeout, "rank %d cannot connect to the watch of rank 0", rank_);
    keep_alive(fd);
    const Hello hello{invitation.token, rank_};
    tell(fd, &hello, sizeof hello);
    peers_.assign(1, fd);
  }
  if (pipe(wake_.data()) != 0) fail(ErrorCode::process_group, "the watch of the processes has no pipe");
  for (const int fd : wake_) set_flags(fd);
  launcher_ = copy_of_launcher();
  thread_ = std::thread(&Watch::run, this);
}

// Strangers may connect: whoever has not said a right hello is dropped when all ranks have come.
void Watch::accept_all(const Invitation& invitation, Clock::time_point deadline) {
  struct Guest {
    int fd;
    size_t got = 0;
    Hello hello{};
  };
  std::vector<Guest> guests;
  peers_.assign(size_ - 1, -1);
  const auto missing = [&] { return std::find(peers_.begin(), peers_.end(), -1); };
  while (missing() != peers_.end() && remaining_ms(deadline) > 0) {
    std::vector<pollfd> fds{{listener_, POLLIN, 0}};
    for (const Guest& guest : guests) fds.push_back({guest.fd, POLLIN, 0});
    if (ended() != kNobody) fail(ErrorCode::peer_lost, "a process of the job has ended");
    if (poll(fds.data(), fds.size(), std::min(remaining_ms(deadline), kEndedMs)) < 0) continue;
    for (size_t i = 0; i < guests.size(); ++i) {
      Guest& guest = guests[i];
      if (fds[i + 1].revents == 0) continue;
      const ssize_t n = recv(guest.fd, reinterpret_cast<char*>(&guest.hello) + guest.got, sizeof(Hello) - guest.got, 0);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      guest.got += static_cast<size_t>(std::max<ssize_t>(n, 0));
      if (n > 0 && guest.got < sizeof(Hello)) continue;
      const int rank = guest.hello.rank;
      const bool is_right = n > 0 && guest.hello.token == invitation.token && rank > 0 && rank < size_;
      if (is_right && peers_[rank - 1] < 0) {
        keep_alive(guest.fd);
        peers_[rank - 1] = guest.fd;
        guest.fd = -1;
      } else {
        close_fd(guest.fd);
      }
    }
    std::erase_if(guests, [](const Guest& guest) { return guest.fd < 0; });
    if (fds[0].revents == 0) continue;
    const int fd = accept(listener_, nullptr, nullptr);
    if (fd < 0) continue;
    set_flags(fd);
    guests.push_back({fd});
  }
  for (Guest& guest : guests) close_fd(guest.fd);
  close_fd(listener_);
  if (missing() == peers_.end()) return;
  std::string absent;
  for (int rank = 1; rank < size_; ++rank)
    if (peers_[rank - 1] < 0) absent += (absent.empty() ? "" : ", ") + std::to_string(rank);
  fail(ErrorCode::timeout, "these ranks did not come in time: %s", absent.c_str());
}

void Watch::run() {
  std::vector<pollfd> fds{{wake_[0], POLLIN, 0}, {launcher_, 0, 0}};
  std::vector<Peer> peers;
  for (const int fd : peers_) {
    fds.push_back({fd, POLLIN, 0});
    peers.push_back({fd, {}});
  }
  while (true) {
    if (poll(fds.data(), fds.size(), -1) < 0) continue;
    if (fds[0].revents) return;
    if (fds[1].revents) {
      fds[1].fd = -1;
      note_lost(kLauncher);
    }
    for (size_t i = 0; i < peers.size(); ++i) {
      if (fds[i + 2].fd < 0 || fds[i + 2].revents == 0 || hear(peers[i])) continue;
      fds[i + 2].fd = -1;
      if (peers[i].fd < 0) continue;  // a farewell
      const int gone = rank_ == 0 ? static_cast<int>(i) + 1 : 0;
      note_lost(gone);
      const Message told{Kind::lost, gone, 0};
      for (size_t other = 0; rank_ == 0 && other < peers.size(); ++other)
        if (fds[other + 2].fd >= 0) tell(fds[other + 2].fd, &told, sizeof told);
    }
  }
}

bool Watch::hear(Peer& peer) {
  char bytes[512];
  const ssize_t n = recv(peer.fd, bytes, sizeof bytes, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (n <= 0) return false;
  peer.bytes.insert(peer.bytes.end(), bytes, bytes + n);
  Message message;
  while (peer.bytes.size() >= sizeof message) {
    std::memcpy(&message, peer.bytes.data(), sizeof message);
    const size_t size = sizeof message + (message.kind == Kind::answer ? static_cast<size_t>(size_) : 0);
    if (peer.bytes.size() < size) return true;
    if (message.kind == Kind::farewell) {
      peer.fd = -1;
      return false;
    }
    take(peer, message);
    peer.bytes.erase(peer.bytes.begin(), peer.bytes.begin() + static_cast<ptrdiff_t>(size));
  }
  return true;
}

void Watch::take(const Peer& peer, const Message& message) {
  if (message.kind == Kind::lost) note_lost(message.rank);
  if (message.kind == Kind::who_waits) answer(peer.fd, message.place);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (message.kind == Kind::waits && message.rank > 0 && message.rank < size_) places_[message.rank] = message.place;
  if (message.kind == Kind::answer) {
    const auto begin = peer.bytes.begin() + sizeof message;
    answer_ = {message.place, {begin, begin + size_}};
    answered_.notify_one();
  }
}

void Watch::answer(int fd, uint64_t place) {
  const std::vector<bool> here = waiting_at(place);
  const Message head{Kind::answer, 0, place};
  std::vector<char> bytes(sizeof head);
  std::memcpy(bytes.data(), &head, sizeof head);
  bytes.insert(bytes.end(), here.begin(), here.end());
  tell(fd, bytes.data(), bytes.size());
}

std::vector<bool> Watch::waiting_at(uint64_t place) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<bool> here(static_cast<size_t>(size_));
  for (int rank = 0; rank < size_; ++rank) here[rank] = places_[rank] == place;
  return here;
}

void Watch::wait_at(uint64_t place) {
  if (rank_ == 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    places_[0] = place;
    return;
  }
  const Message message{Kind::waits, rank_, place};
  tell(peers_[0], &message, sizeof message);
}

std::vector<bool> Watch::who_waits(uint64_t place, Clock::time_point deadline) {
  if (rank_ == 0) {
    for (const int peer : peers_) answer(peer, place);  // this process may end before they ask
    return waiting_at(place);
  }
  std::unique_lock<std::mutex> lock(mutex_);
  const auto is_known = [&] { return answer_ && answer_->first == place; };
  if (!is_known()) {
    const Message question{Kind::who_waits, rank_, place};
    tell(peers_[0], &question, sizeof question);
  }
  if (!answered_.wait_until(lock, deadline, is_known)) return {};
  const std::vector<bool> here = answer_->second;
  answer_.reset();
  return here;
}

void Watch::note_lost(int rank) {
  int nobody = kNobody;
  lost_.compare_exchange_strong(nobody, rank);
}

void Watch::leave() {
  const Message message{Kind::farewell, rank_, 0};
  for (const int peer : peers_)
    if (peer >= 0) tell(peer, &message, sizeof message);
  stop();
}

void Watch::stop() {
  if (thread_.joinable()) {
    const char byte = 0;
    while (write(wake_[1], &byte, 1) < 0 && errno == EINTR) {
    }
    thread_.join();
  }
  for (int& peer : peers_) close_fd(peer);
  for (int& fd : wake_) close_fd(fd);
  close_fd(launcher_);
  close_fd(listener_);
}

}  // namespace st_moe::mpi
#endif

#include "forkpool/worker/rank_link.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>

namespace thaw::forkpool::worker {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMostWords = std::size_t{16} << 20;
constexpr std::size_t kMostDescriptors = 8;

struct Header {
  std::uint32_t kind = 0;
  std::uint32_t words = 0;
};

// Room for the ancillary data of one message.
struct alignas(cmsghdr) Control {
  std::array<char, CMSG_SPACE(sizeof(int) * kMostDescriptors)> bytes{};
};

Error gone() {
  return make_error(Errc::kUnavailable, "another rank of this worker is gone");
}

}  // namespace

Result<void> RankLink::wait(short events, Clock::time_point end) {
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    pollfd polled{socket_.get(), events, 0};
    const int ready = ::poll(&polled, 1, static_cast<int>(std::max<std::int64_t>(left.count(), 0)));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return io_error("cannot wait for another rank", errno);
    if (ready == 0)
      return make_error(Errc::kDeadlineExceeded, "another rank of this worker is silent");
  }
}

Result<void> RankLink::send(RankMessageKind kind, std::span<const std::int32_t> words,
                            std::span<const int> descriptors, std::chrono::milliseconds deadline) {
  const auto end = Clock::now() + deadline;
  const Header header{static_cast<std::uint32_t>(kind), static_cast<std::uint32_t>(words.size())};
  const std::array<std::span<const std::byte>, 2> parts = {std::as_bytes(std::span(&header, 1)),
                                                           std::as_bytes(words)};
  std::size_t sent = 0;
  const std::size_t total = sizeof header + words.size_bytes();
  while (sent < total) {
    iovec vectors[2];
    int count = 0;
    for (std::size_t i = 0, before = 0; i < parts.size(); before += parts[i].size(), ++i) {
      const std::size_t skip = std::min(sent > before ? sent - before : 0, parts[i].size());
      if (skip == parts[i].size()) continue;
      vectors[count++] = {const_cast<std::byte*>(parts[i].data()) + skip,  // NOLINT: iovec
                          parts[i].size() - skip};
    }
    msghdr message{};
    message.msg_iov = vectors;
    message.msg_iovlen = static_cast<std::size_t>(count);
    Control control;
    if (sent == 0 && !descriptors.empty()) {
      message.msg_control = control.bytes.data();
      message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
      cmsghdr* ancillary = CMSG_FIRSTHDR(&message);
      ancillary->cmsg_level = SOL_SOCKET;
      ancillary->cmsg_type = SCM_RIGHTS;
      ancillary->cmsg_len = CMSG_LEN(descriptors.size_bytes());
      std::memcpy(CMSG_DATA(ancillary), descriptors.data(), descriptors.size_bytes());
    }
    const ssize_t done = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (done >= 0) {
      sent += static_cast<std::size_t>(done);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (auto waited = wait(POLLOUT, end); !waited) return waited;
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return gone();
    } else if (errno != EINTR) {
      return io_error("cannot write to another rank", errno);
    }
  }
  return {};
}

Result<void> RankLink::receive_bytes(std::span<std::byte> to, std::vector<UniqueFd>* descriptors,
                                     Clock::time_point end) {
  while (!to.empty()) {
    iovec part{to.data(), to.size()};
    Control control;
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    const ssize_t count = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (count == 0) return gone();
    if (count < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) {
        if (auto waited = wait(POLLIN, end); !waited) return waited;
        continue;
      }
      if (errno == EINTR) continue;
      if (errno == ECONNRESET) return gone();
      return io_error("cannot read from another rank", errno);
    }
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t size = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < size; ++i) {
        int descriptor = -1;
        std::memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof descriptor);
        UniqueFd owned(descriptor);
        if (descriptors != nullptr) descriptors->push_back(std::move(owned));
      }
    }
    to = to.subspan(static_cast<std::size_t>(count));
  }
  return {};
}

Result<void> RankLink::receive(RankMessage& message, std::chrono::milliseconds deadline) {
  const auto end = Clock::now() + deadline;
  Header header;
  message.descriptors.clear();
  if (auto received =
          receive_bytes(std::as_writable_bytes(std::span(&header, 1)), &message.descriptors, end);
      !received)
    return received;
  if (header.words > kMostWords) {
    return make_error(Errc::kProtocol, "another rank sent a message of " +
                                           std::to_string(header.words) + " words; at most " +
                                           std::to_string(kMostWords) + " are right");
  }
  message.kind = static_cast<RankMessageKind>(header.kind);
  message.words.resize(header.words);
  return receive_bytes(std::as_writable_bytes(std::span(message.words)), nullptr,
                       std::max(end, Clock::now() + std::chrono::seconds(10)));
}

Result<void> RankLink::receive(RankMessage& message, RankMessageKind kind,
                               std::chrono::milliseconds deadline) {
  if (auto received = receive(message, deadline); !received) return received;
  if (message.kind == kind) return {};
  if (message.kind == RankMessageKind::kFailed && !message.words.empty()) {
    const std::string text(message.words.begin() + 1, message.words.end());
    return make_error(static_cast<Errc>(message.words.front()), "another rank: " + text);
  }
  return make_error(Errc::kProtocol, "another rank sent message " +
                                         std::to_string(static_cast<std::uint32_t>(message.kind)) +
                                         "; expected " +
                                         std::to_string(static_cast<std::uint32_t>(kind)));
}

std::vector<std::int32_t> words_of(std::uint64_t value) {
  return {static_cast<std::int32_t>(static_cast<std::uint32_t>(value)),
          static_cast<std::int32_t>(static_cast<std::uint32_t>(value >> 32))};
}

std::uint64_t number_of(std::span<const std::int32_t> words) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(words[1])) << 32 |
         static_cast<std::uint32_t>(words[0]);
}

}  // namespace thaw::forkpool::worker

#include "forkpool/frame_socket.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace thaw::forkpool {
namespace {

// Room for the ancillary data of one message.
struct alignas(cmsghdr) Control {
  std::array<char, CMSG_SPACE(sizeof(int) * kMaxDescriptors)> bytes{};
};

ssize_t send_once(int socket, std::span<char> bytes, const std::vector<int>& descriptors) {
  iovec part{bytes.data(), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  Control control;
  if (!descriptors.empty()) {
    const std::size_t size = descriptors.size() * sizeof(int);
    message.msg_control = control.bytes.data();
    message.msg_controllen = CMSG_SPACE(size);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(header), descriptors.data(), size);
  }
  return ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

std::vector<UniqueFd> take_descriptors(msghdr& message) {
  std::vector<UniqueFd> descriptors;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof descriptor);
      descriptors.emplace_back(descriptor);
    }
  }
  return descriptors;
}

}  // namespace

void FrameSender::push(const Frame& frame) {
  if (!frame_descriptors(frame).empty()) parcels_.push_back({bytes_.size(), frame});
  bytes_ += encode_frame(frame);
}

void FrameSender::clear() {
  bytes_.clear();
  sent_ = 0;
  parcels_.clear();
}

int FrameSender::send_some(int socket) {
  while (unsent_bytes() > 0) {
    std::vector<int> descriptors;
    std::size_t end = bytes_.size();
    if (!parcels_.empty()) {
      const bool due = parcels_.front().offset == sent_;
      if (due) descriptors = frame_descriptors(parcels_.front().frame);
      // A message ends where the next parcel's frame begins.
      if (!due) end = parcels_.front().offset;
      if (due && parcels_.size() > 1) end = parcels_[1].offset;
    }
    const ssize_t count =
        send_once(socket, std::span(bytes_).subspan(sent_, end - sent_), descriptors);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : errno;
    sent_ += static_cast<std::size_t>(count);
    if (count > 0 && !descriptors.empty()) parcels_.pop_front();
  }
  clear();
  return 0;
}

ssize_t receive_some(int socket, std::span<char> buffer, FrameDecoder& decoder) {
  iovec part{buffer.data(), buffer.size()};
  Control control;
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  message.msg_controllen = control.bytes.size();
  const ssize_t count = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (count <= 0) return count;
  std::vector<UniqueFd> descriptors = take_descriptors(message);
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    errno = EPROTO;
    return -1;
  }
  decoder.feed(std::span(buffer.data(), static_cast<std::size_t>(count)), std::move(descriptors));
  return count;
}

}  // namespace thaw::forkpool

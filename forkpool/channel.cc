#include "forkpool/channel.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

namespace thaw::forkpool {
namespace {

constexpr std::size_t kReadBytes = std::size_t{64} << 10;
// So that one worker's flood does not keep the loop from the others.
constexpr int kReadsPerTurn = 16;

}  // namespace

Channel::Channel(Loop& loop, UniqueFd fd, Callbacks callbacks)
    : loop_(loop),
      fd_(std::move(fd)),
      callbacks_(std::move(callbacks)),
      watch_(loop, fd_.get()),
      in_(kReadBytes, '\0'),
      last_progress_(loop.now()) {}

void Channel::start() {
  wait_readable();
}

void Channel::wait_readable() {
  watch_.wait_readable([this] {
    for (int i = 0; i < kReadsPerTurn && !ended_; ++i) {
      const ssize_t count = ::recv(fd_.get(), in_.data(), in_.size(), MSG_DONTWAIT);
      if (count < 0 && (errno == EAGAIN || errno == EINTR)) break;
      if (count < 0) return end(io_error("reading the worker's channel", errno));
      if (count == 0) return end({});
      decode(static_cast<std::size_t>(count));
      if (static_cast<std::size_t>(count) < in_.size()) break;
    }
    if (!ended_) wait_readable();
  });
}

void Channel::drain() {
  while (!ended_) {
    const ssize_t count = ::recv(fd_.get(), in_.data(), in_.size(), MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    // A descendant of the worker may hold its end of the socket open: nothing more will be read.
    if (count < 0 && errno != EAGAIN) return end(io_error("reading the worker's channel", errno));
    if (count <= 0) return end({});
    decode(static_cast<std::size_t>(count));
  }
}

void Channel::decode(std::size_t count) {
  decoder_.feed(std::span(in_.data(), count));
  while (!ended_) {
    auto next = decoder_.next();
    if (!next) return end(std::move(next).error());
    if (!next->found) return;
    callbacks_.on_frame(std::move(next->frame));
  }
}

void Channel::send(const Frame& frame) {
  if (broken_) return;
  if (unsent_bytes() == 0) {
    out_.clear();
    written_ = 0;
    last_progress_ = loop_.now();
    out_ = encode_frame(frame);
    write_available();
  } else {
    out_ += encode_frame(frame);
  }
}

void Channel::write_available() {
  while (unsent_bytes() > 0) {
    const ssize_t count =
        ::send(fd_.get(), out_.data() + written_, unsent_bytes(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) {
      watch_.wait_writable([this] { write_available(); });
      return;
    }
    if (count < 0) {  // its death is noticed elsewhere; what was queued is sent again then
      broken_ = true;
      break;
    }
    written_ += static_cast<std::size_t>(count);
    last_progress_ = loop_.now();
  }
  out_.clear();
  written_ = 0;
}

void Channel::end(Result<void> how) {
  if (std::exchange(ended_, true)) return;
  callbacks_.on_end(std::move(how));
}

}  // namespace thaw::forkpool

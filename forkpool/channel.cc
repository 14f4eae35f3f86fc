#include "forkpool/channel.h"

#include <cerrno>
#include <utility>

namespace thaw::forkpool {
namespace {

constexpr std::size_t kReadBytes = std::size_t{64} << 10;
// So that one worker's flood does not keep the loop from the others.
constexpr int kReadsPerTurn = 16;
// What a socket takes at once: with as much to say, the worker begins with what there is.
constexpr std::size_t kMostGathered = std::size_t{256} << 10;

Error read_error(int error_number) {
  if (error_number == EPROTO) {
    return make_error(Errc::kProtocol, "more descriptors at once than any frame has");
  }
  return io_error("reading the worker's channel", error_number);
}

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
      const ssize_t count = receive_some(fd_.get(), in_, decoder_);
      if (count < 0 && (errno == EAGAIN || errno == EINTR)) break;
      if (count < 0) return end(read_error(errno));
      if (count == 0) return end({});
      decode();
      if (static_cast<std::size_t>(count) < in_.size()) break;
    }
    if (!ended_) wait_readable();
  });
}

void Channel::drain() {
  while (!ended_) {
    const ssize_t count = receive_some(fd_.get(), in_, decoder_);
    if (count < 0 && errno == EINTR) continue;
    // A descendant of the worker may hold its end of the socket open: nothing more will be read.
    if (count < 0 && errno != EAGAIN) return end(read_error(errno));
    if (count <= 0) return end({});
    decode();
  }
}

void Channel::decode() {
  while (!ended_) {
    auto next = decoder_.next();
    if (!next) return end(std::move(next).error());
    if (!next->found) return;
    callbacks_.on_frame(std::move(next->frame));
  }
}

void Channel::send(const Frame& frame) {
  if (broken_) return;
  if (unsent_bytes() == 0) last_progress_ = loop_.now();
  out_.push(frame);
  if (waits_) return;
  if (unsent_bytes() >= kMostGathered)
    write_available();
  else
    write_at_end_of_turn();
}

void Channel::send_at_once(const Frame& frame) {
  send(frame);
  if (!broken_ && !waits_ && unsent_bytes() > 0) write_available();
}

void Channel::write_at_end_of_turn() {
  if (std::exchange(posted_, true)) return;
  loop_.post([weak = std::weak_ptr(self_)] {
    const auto self = weak.lock();
    if (!self) return;
    Channel& channel = **self;
    channel.posted_ = false;
    if (!channel.waits_ && channel.unsent_bytes() > 0) channel.write_available();
  });
}

void Channel::write_available() {
  waits_ = false;
  const std::size_t before = unsent_bytes();
  if (const int error = out_.send_some(fd_.get()); error != 0) {
    broken_ = true;
    // A death is noticed elsewhere, and what was queued is sent again then. A worker that lives,
    // but cannot be told anything, has made no progress while something is queued.
    if (error == EPIPE || error == ECONNRESET) out_.clear();
    return;
  }
  if (unsent_bytes() < before) last_progress_ = loop_.now();
  if (unsent_bytes() == 0) return;
  waits_ = true;
  watch_.wait_writable([this] { write_available(); });
}

void Channel::end(Result<void> how) {
  if (std::exchange(ended_, true)) return;
  callbacks_.on_end(std::move(how));
}

}  // namespace thaw::forkpool

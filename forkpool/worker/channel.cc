#include "forkpool/worker/channel.h"

#include <poll.h>

#include <array>
#include <cerrno>

namespace thaw::forkpool::worker {

Result<void> Channel::write_some() {
  const int failed = ended_ ? 0 : out_.send_some(socket_.get());
  if (failed == EPIPE || failed == ECONNRESET) {
    ended_ = true;
  } else if (failed != 0) {
    return io_error("cannot write to the pool", failed);
  }
  if (ended_) out_.clear();
  return {};
}

Result<void> Channel::read_some() {
  std::array<char, std::size_t{64} << 10> buffer;
  while (!ended_) {
    const ssize_t count = receive_some(socket_.get(), buffer, decoder_);
    if (count > 0) {
      undecoded_ = true;
    } else if (count == 0 || errno == ECONNRESET) {
      ended_ = true;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      break;
    } else if (errno == EPROTO) {
      return make_error(Errc::kProtocol, "more descriptors at once than any frame has");
    } else if (errno != EINTR) {
      return io_error("cannot read from the pool", errno);
    }
  }
  return {};
}

Result<FrameDecoder::Next> Channel::next() {
  auto next = decoder_.next();
  if (next && !next->found) undecoded_ = false;
  return next;
}

Result<void> Channel::wait(std::chrono::microseconds timeout) {
  return undecoded_ ? Result<void>() : poll(timeout);
}

Result<void> Channel::poll(std::chrono::microseconds timeout) {
  if (ended_) return {};
  const auto events = static_cast<short>(POLLIN | (pending_bytes() > 0 ? POLLOUT : 0));
  pollfd polled{socket_.get(), events, 0};
  const timespec time{timeout.count() / 1000000, timeout.count() % 1000000 * 1000};
  if (::ppoll(&polled, 1, &time, nullptr) < 0 && errno != EINTR) {
    return io_error("cannot poll the pool's channel", errno);
  }
  return {};
}

Result<void> Channel::flush(std::chrono::milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (true) {
    if (auto written = write_some(); !written) return written;
    if (pending_bytes() == 0) return {};
    if (auto received = read_some(); !received) return received;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      return make_error(Errc::kDeadlineExceeded,
                        "the pool has not taken " + std::to_string(pending_bytes()) +
                            " bytes within " + std::to_string(deadline.count()) + " ms");
    }
    if (auto waited = poll(left); !waited) return waited;
  }
}

}  // namespace thaw::forkpool::worker

#pragma once

#include <chrono>
#include <cstddef>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"
#include "forkpool/frame_socket.h"
#include "forkpool/protocol.h"

namespace thaw::forkpool::worker {

/// The worker's end of its socketpair: frames in, frames out. Nothing here waits for the pool
/// without reading from it at the same time, so two ends that both have much to say never block
/// each other. One thread.
class Channel {
 public:
  explicit Channel(UniqueFd socket) : socket_(std::move(socket)) {}

  /// Appends a frame to the out-buffer; sends nothing yet.
  void queue(const Frame& frame) { out_.push(frame); }
  std::size_t pending_bytes() const { return out_.unsent_bytes(); }

  /// Sends what the socket takes now. Errors: kIo.
  Result<void> write_some();
  /// Sends everything, reading meanwhile. Errors: kDeadlineExceeded, kIo, what next() may return.
  Result<void> flush(std::chrono::milliseconds deadline);

  /// Reads what has arrived. Errors: kIo; kProtocol for descriptors that no frame has.
  Result<void> read_some();
  /// The next whole frame among what was read. Errors (kProtocol) are final.
  Result<FrameDecoder::Next> next();
  /// Where next() found none: whether the pool is in the middle of one.
  bool has_part() const { return decoder_.has_part() && !ended_; }
  /// No more frames will come: the pool has closed its end or is gone. Writing is pointless then.
  bool ended() const { return ended_; }

  /// The socket, for whoever speaks otherwise from here on. Nothing else may be called afterwards.
  UniqueFd release() { return std::move(socket_); }

  /// Until there is something to read or to take with next(), more can be sent, or the timeout is
  /// over. Errors: kIo.
  Result<void> wait(std::chrono::microseconds timeout);

 private:
  Result<void> poll(std::chrono::microseconds timeout);

  UniqueFd socket_;
  FrameSender out_;
  FrameDecoder decoder_;
  bool undecoded_ = false;  ///< bytes were read since next() last found no frame
  bool ended_ = false;
};

}  // namespace thaw::forkpool::worker

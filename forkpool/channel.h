#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/base/unique_fd.h"
#include "forkpool/frame_socket.h"
#include "forkpool/loop.h"
#include "forkpool/protocol.h"

namespace thaw::forkpool {

/// The pool's end of one worker's socket. Sends never block: what one turn of the loop has to say
/// is written at its end, so that the branches of a fork reach the worker together, and what the
/// socket does not take goes on when it is writable. Belongs to the loop's thread. The callbacks
/// must not destroy the channel.
class Channel {
 public:
  struct Callbacks {
    std::function<void(Frame)> on_frame;
    /// Once: end of file (success), a read error (kIo), or bytes or descriptors that are no frame
    /// (kProtocol).
    /// Nothing is read afterwards.
    std::function<void(Result<void> how)> on_end;
  };

  /// `fd` is a connected stream socket.
  Channel(Loop& loop, UniqueFd fd, Callbacks callbacks);

  /// Starts to read.
  void start();
  /// Written at the end of the loop's turn, together with what else comes until then.
  void send(const Frame& frame);
  /// Written now, behind what waits.
  void send_at_once(const Frame& frame);
  /// Reads what a process that has exited left behind: to end of file, without waiting.
  void drain();

  std::size_t unsent_bytes() const { return out_.unsent_bytes(); }
  /// When the socket last took a byte, or the queue began to fill.
  Clock::TimePoint last_progress() const { return last_progress_; }

 private:
  void wait_readable();
  void decode();
  void write_available();
  void write_at_end_of_turn();
  void end(Result<void> how);

  Loop& loop_;
  UniqueFd fd_;
  Callbacks callbacks_;
  Loop::Watch watch_;
  FrameDecoder decoder_;
  std::string in_;  // read buffer
  FrameSender out_;
  Clock::TimePoint last_progress_;
  bool ended_ = false;
  bool broken_ = false;  // the peer takes no more bytes
  bool waits_ = false;  // until the socket is writable
  bool posted_ = false;  // a write at the end of the turn
  std::shared_ptr<Channel*> self_ =
      std::make_shared<Channel*>(this);  // for tasks that may outlive it
};

}  // namespace thaw::forkpool

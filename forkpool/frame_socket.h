#pragma once

#include <sys/types.h>

#include <cstddef>
#include <deque>
#include <span>
#include <string>

#include "forkpool/protocol.h"

namespace thaw::forkpool {

/// Encoded frames on their way into a stream socket, with the descriptors that travel with them:
/// these go with the first byte of their frame (SCM_RIGHTS). Never blocks. One thread.
class FrameSender {
 public:
  /// Keeps the frame's descriptors open until they are sent.
  void push(const Frame& frame);
  std::size_t unsent_bytes() const { return bytes_.size() - sent_; }
  void clear();

  /// Sends what the socket takes now. 0, or the error number that sending failed with.
  int send_some(int socket);

 private:
  struct Parcel {
    std::size_t offset = 0;  ///< of its frame in bytes_
    Frame frame;  ///< keeps the descriptors
  };
  std::string bytes_;
  std::size_t sent_ = 0;  ///< of bytes_
  std::deque<Parcel> parcels_;
};

/// Reads once from a stream socket into `decoder`, with the descriptors that come along
/// (close-on-exec), without waiting. Bytes read, 0 at the end of file, or -1 and errno as recv()
/// sets it; EPROTO where there came more descriptors than any frame has. `buffer` is scratch.
ssize_t receive_some(int socket, std::span<char> buffer, FrameDecoder& decoder);

}  // namespace thaw::forkpool

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"

namespace thaw::forkpool::worker {

/// What ranks of one worker tell each other. The first one leads: it speaks with the pool, plans
/// the steps and tells the others, who follow.
enum class RankMessageKind : std::uint32_t {
  /// Follower: blocks that it has room for (two words), whether its KV is that of a former process,
  /// its exchange's descriptor.
  kReport = 1,
  kBegin = 2,  ///< leader: blocks to make (two words), every rank's exchange by rank
  /// Follower: steps may come; bytes of its KV (two words), of its weights where the pool has not
  /// heard of them (two words, else 0), their digest (four words), and the descriptors of both.
  kReady = 3,
  kLaunch = 4,  ///< leader: a batch (engine/model/batch_message.h)
  kCopyBlock = 5,  ///< leader: from, to
  kFailed = 6,  ///< follower: the error's code, then its text, a character a word
};

struct RankMessage {
  RankMessageKind kind = RankMessageKind::kFailed;
  std::vector<std::int32_t> words;
  std::vector<UniqueFd> descriptors;
};

/// One end of a stream socket between two ranks, which are one program started at one time: what
/// arrives is checked for its size only. Every wait has a deadline. One thread.
class RankLink {
 public:
  explicit RankLink(UniqueFd socket) : socket_(std::move(socket)) {}

  int socket() const { return socket_.get(); }

  /// Errors: kUnavailable where the other rank is gone, kDeadlineExceeded, kIo.
  Result<void> send(RankMessageKind kind, std::span<const std::int32_t> words,
                    std::span<const int> descriptors, std::chrono::milliseconds deadline);

  /// The next message into `message`. Errors: as send(); kProtocol for one that is too long. The
  /// link is of no use after an error, but for a deadline before the first byte.
  Result<void> receive(RankMessage& message, std::chrono::milliseconds deadline);
  /// The same, and an error where it is of another kind: its own text, where it is kFailed.
  Result<void> receive(RankMessage& message, RankMessageKind kind,
                       std::chrono::milliseconds deadline);

 private:
  Result<void> wait(short events, std::chrono::steady_clock::time_point end);
  Result<void> receive_bytes(std::span<std::byte> to, std::vector<UniqueFd>* descriptors,
                             std::chrono::steady_clock::time_point end);

  UniqueFd socket_;
};

/// A 64-bit number as two words, and back. REQUIRES of the second: two words.
std::vector<std::int32_t> words_of(std::uint64_t value);
std::uint64_t number_of(std::span<const std::int32_t> words);

}  // namespace thaw::forkpool::worker

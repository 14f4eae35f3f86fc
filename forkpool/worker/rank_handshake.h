#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"
#include "forkpool/protocol.h"
#include "forkpool/worker/rank_link.h"

namespace thaw::forkpool::worker {

// How a group comes up, over its links:
//
//     follower ─report─► leader ─begin─► followers ─ready─► leader

/// For each step of it.
inline constexpr std::chrono::seconds kHandshakeDeadline{50};

/// Of a follower that has its weights and its end of the exchange.
struct RankReport {
  std::uint64_t num_blocks = 0;  ///< that it has room for
  bool kv_kept = false;  ///< its KV is that of a former process
  UniqueFd exchange;
};

/// From the leader, which has heard of all.
struct RankBegin {
  std::uint64_t num_blocks = 0;  ///< that every rank makes
  std::vector<UniqueFd> exchanges;  ///< by rank
};

// Errors of all of them: those of the link; kProtocol for a message of another form. Whoever waits
// for one is told what a rank that failed instead has said.
Result<void> send_report(RankLink& leader, const RankReport& report,
                         std::chrono::milliseconds deadline);
Result<RankReport> receive_report(RankLink& follower, std::chrono::milliseconds deadline);
Result<void> send_begin(RankLink& follower, std::uint64_t num_blocks,
                        std::span<const int> exchanges, std::chrono::milliseconds deadline);
Result<RankBegin> receive_begin(RankLink& leader, std::chrono::milliseconds deadline);
/// Steps may come. Of `memory` the bytes, the digest and the descriptors: KV always, weights where
/// the pool has not heard of them.
Result<void> send_ready(RankLink& leader, const DeviceMemory& memory,
                        std::chrono::milliseconds deadline);
Result<DeviceMemory> receive_ready(RankLink& follower, std::chrono::milliseconds deadline);

/// For who borrows descriptors: what they are to the kernel, in order.
std::vector<int> numbers_of(std::span<const UniqueFd> descriptors);

}  // namespace thaw::forkpool::worker

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"

namespace thaw {

/// What a request brings to its cache root (GenerateRequest): whose KV it is. Nothing is shared
/// between two owners.
struct TrunkOwner {
  std::string tenant;
  std::string cache_salt;
  std::string model;
  std::string adapter;

  bool operator==(const TrunkOwner&) const = default;
};

/// Names what a caller keeps; chosen by it, unique in the pool. At most 1,024 bytes, not empty.
using PinId = std::string;

/// Keep the KV of `token_ids`, in whole blocks, until `ttl` is over or the pin is released. A pin
/// that holds something already holds the new trunk instead, once that is safe.
struct KeepTrunk {
  PinId pin;
  TrunkOwner owner;
  std::vector<TokenId> token_ids;
  std::chrono::seconds ttl{0};  ///< 0: until it is released
};

/// Write the KV of `token_ids`, in whole blocks, to `path` (.thawkv) and what describes it to
/// `path`.meta (docs/snapshots.md). Files that were there are replaced.
struct SaveTrunk {
  std::string path;
  TrunkOwner owner;
  std::vector<TokenId> token_ids;
  std::chrono::milliseconds deadline{60000};
};

/// Read what SaveTrunk wrote, here or on another machine, and keep it as KeepTrunk does.
struct LoadTrunk {
  std::string path;
  PinId pin;
  TrunkOwner owner;  ///< the file must be that owner's
  std::chrono::seconds ttl{0};
  std::chrono::milliseconds deadline{60000};
};

/// What is kept, or was written.
struct KeptTrunk {
  std::uint32_t num_tokens = 0;  ///< whole blocks from the start of the tokens
  std::uint64_t bytes = 0;  ///< of KV, of all of the trunk that was written or is held
  std::vector<TokenId> token_ids;  ///< of a trunk that was loaded: those num_tokens
  /// Names what is held: a trunk that begins with these tokens, and may be longer. What is held
  /// under the same name is held once.
  Hash128 trunk{};
};

/// How a call about a trunk ended; called exactly once. Errors: kNotFound where none of its KV is
/// alive or there is no such file, kResourceExhausted where there is no room for it (in memory or
/// on the disk), kDataLoss where a file is damaged, kUnsupported where it was made by other weights
/// or kernels, kUnauthenticated where it is another owner's, kInvalidArgument, kUnavailable, kIo,
/// kDeadlineExceeded (the work may go on). Each message says what would be right.
using TrunkDone = std::function<void(Result<KeptTrunk>)>;

}  // namespace thaw

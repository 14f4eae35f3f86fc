#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <vector>

#include "engine/base/generate.h"
#include "engine/base/trunk_keeping.h"

namespace thaw::forkpool {

/// Whose the KV of a request's prompt is.
inline TrunkOwner trunk_owner(const GenerateRequest& request) {
  return {request.tenant, request.cache_salt, request.model, request.adapter};
}

/// Which prefixes were used of late, and how often: what is worth writing to files. A prompt that
/// goes on from an earlier one replaces it (a chat); prompts that part leave what they have in
/// common (branches). Bounded in entries and tokens, the least recently used go first. One thread.
class RecentTrunks {
 public:
  struct Entry {
    TrunkOwner owner;
    std::vector<TokenId> token_ids;
    std::uint32_t uses = 1;
    bool shared = false;  ///< prompts parted at its end
    std::uint64_t written_tokens = 0;  ///< that a file holds; kept by the caller
  };

  /// A prompt was computed or found. Those below `min_tokens` are not looked at.
  void note(const GenerateRequest& request, std::uint32_t min_tokens);

  /// Most recent first.
  std::list<Entry>& entries() { return entries_; }

 private:
  void trim();

  std::list<Entry> entries_;
};

}  // namespace thaw::forkpool

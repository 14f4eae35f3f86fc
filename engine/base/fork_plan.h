#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/generate.h"

namespace thaw {

/// A prefix that two or more requests of a plan share. Trunks nest: `parent` is the longest trunk
/// that is a proper prefix of this one, or -1.
struct PlannedTrunk {
  std::int32_t parent = -1;
  std::uint32_t num_tokens = 0;  ///< from the start of the prompt
  std::uint32_t num_requests = 0;  ///< requests at or below it
};

struct PlannedRequest {
  GenerateRequest request;
  std::int32_t trunk = -1;  ///< index into ForkPlan::trunks of the deepest one it shares; -1: none
};

/// What one window of requests becomes: a forest of trunks with the requests at its leaves. It
/// guides placement; whether tokens are shared is decided by the worker's index, token by token.
struct ForkPlan {
  std::vector<PlannedTrunk> trunks;  ///< parents before children
  std::vector<PlannedRequest> requests;
};

}  // namespace thaw

#pragma once

#include <string>
#include <vector>

#include "engine/base/fork_plan.h"

namespace thaw::coalescer {

/// Names what must be equal for two requests to share KV: tenant, salt, model, adapter.
std::string cache_key(const GenerateRequest& request);

/// Turns one window of requests into a fork plan: a token trie per cache key, in which every node
/// with two or more requests at or below it is a trunk. One odd request costs only itself. Requests
/// keep their order. O(total tokens).
ForkPlan make_plan(std::vector<GenerateRequest> requests);

}  // namespace thaw::coalescer

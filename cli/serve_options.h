#pragma once

#include <chrono>
#include <cstdint>

#include "cli/memory_budget.h"
#include "cli/settings.h"
#include "coalescer/http/server.h"
#include "engine/ops/packed_weight.h"
#include "forkpool/fork_pool.h"
#include "forkpool/model_pool.h"

namespace thaw::cli {

// What the rooms are told, of what the user told us. REQUIRES everywhere: settle_device() and
// check_sessions() had nothing against the settings.

template <typename Duration>
Duration seconds_to(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

bool on_gpu(const ServeSettings& settings);

/// Everything but weights.
MemoryBudget budget_of(const ServeSettings& settings);
ops::PackingOptions packing_options(const ServeSettings& settings);
/// `threads`: of each worker.
forkpool::PoolOptions pool_options(const ServeSettings& settings, std::uint32_t threads);
forkpool::ModelPoolOptions model_pool_options(const ServeSettings& settings);
/// But for keys and administration.
coalescer::ServerOptions server_options(const ServeSettings& settings);

}  // namespace thaw::cli

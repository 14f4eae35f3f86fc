#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "coalescer/openai/api_error.h"
#include "coalescer/openai/served_models.h"
#include "engine/base/pool_status.h"

namespace thaw::coalescer {

/// Body of POST /admin/snapshots: `name` or `model`, `snapshot` or `path`.
struct SnapshotRegistration {
  std::string name;
  std::string path;
};
ApiResult<SnapshotRegistration> parse_registration(std::string_view body);
/// Body of POST /admin/preload: its `model`. A `slot_id` must be that of a slot; which one the
/// model gets is not the caller's choice.
ApiResult<std::string> parse_preload(std::string_view body, std::size_t num_slots);
/// The slot that has the model's weights; 0 where none has.
std::uint32_t slot_of(const PoolStatus& status, const std::string& model);

/// GET /admin/pool. Paths are null unless `show_paths`.
std::string pool_status_body(const PoolStatus& status, const ServedModels& models, bool show_paths,
                             std::uint32_t tensor_parallel);
/// GET /admin/snapshots: `{"snapshots": {name: path}}`.
std::string snapshots_body(const ServedModels& models);
/// `{"status", "model", "snapshot"}`; an empty snapshot is left out.
std::string snapshot_body(std::string_view status, const std::string& name,
                          const std::string& snapshot);
std::string preloaded_body(const std::string& name, std::uint32_t slot, double seconds,
                           double bytes);
/// GET /health of a server that is well.
std::string health_body(const PoolStatus& status, const ServedModels& models);

}  // namespace thaw::coalescer

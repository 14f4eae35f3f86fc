#include "coalescer/openai/admin_bodies.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/shapes.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kMaxNameBytes = 200;

ordered_json stats_json(const EngineStats& stats) {
  return {{"steps", stats.steps},
          {"tokens_prefilled", stats.tokens_prefilled},
          {"tokens_reprefilled", stats.tokens_reprefilled},
          {"tokens_cached", stats.tokens_cached},
          {"tokens_decoded", stats.tokens_decoded},
          {"tokens_discarded", stats.tokens_discarded},
          {"preemptions", stats.preemptions},
          {"evicted_blocks", stats.evicted_blocks},
          {"copied_blocks", stats.copied_blocks},
          {"trunk_waits", stats.trunk_waits},
          {"snapshots", stats.snapshots},
          {"restores", stats.restores},
          {"grammars_compiled", stats.grammars_compiled},
          {"grammar_cache_hits", stats.grammar_cache_hits},
          {"grammar_compile_us", stats.grammar_compile_us},
          {"grammar_masks", stats.grammar_masks},
          {"grammar_mask_us", stats.grammar_mask_us},
          {"blocks_total", stats.blocks_total},
          {"blocks_free", stats.blocks_free},
          {"running", stats.running},
          {"waiting", stats.waiting}};
}

ordered_json paths_json(const ServedModels& models, bool show_paths) {
  ordered_json out = ordered_json::object();
  for (const ServedModelPtr& model : models.list())
    out[model->name()] = show_paths ? ordered_json(model->path) : ordered_json(nullptr);
  return out;
}

/// A server of one model has one slot that never changes.
std::vector<SlotStatus> slots_of(const PoolStatus& status, const ServedModels& models) {
  if (!status.slots.empty()) return status.slots;
  SlotStatus only;
  only.state = status.ready ? "serving" : "empty";
  if (const ServedModelPtr first = models.find("")) only.model = first->name();
  only.running = status.requests_running;
  return {only};
}

ordered_json slot_json(const SlotStatus& slot, double uptime_seconds) {
  return {{"id", slot.slot},
          {"model", slot.model.empty() ? ordered_json(nullptr) : ordered_json(slot.model)},
          {"busy", slot.running > 0 || slot.state == "swapping"},
          {"state", slot.state},
          {"running", slot.running},
          {"swaps", slot.swaps},
          {"last_swap_seconds", slot.last_swap_seconds},
          {"busy_seconds", slot.busy_seconds},
          {"utilisation", uptime_seconds > 0 ? slot.busy_seconds / uptime_seconds : 0.0}};
}

ordered_json model_status_json(const ModelStatus& model, const std::vector<SlotStatus>& slots) {
  ordered_json slot = nullptr;
  for (const SlotStatus& one : slots)
    if (one.model == model.model) slot = one.slot;
  return {{"model", model.model},
          {"slot", std::move(slot)},
          {"weight_bytes", model.weight_bytes},
          {"waiting", model.waiting},
          {"requests", model.requests},
          {"loads", model.loads},
          {"load_seconds", model.load_seconds},
          {"load_failures", model.load_failures},
          {"failure", model.failure.empty() ? ordered_json(nullptr) : ordered_json(model.failure)}};
}

/// The first of two fields that is there; both must be right.
std::string either(JsonFields& fields, std::string_view one, std::string_view other,
                   const char* right, bool (*is_right)(std::string_view)) {
  std::string value;
  for (const std::string_view name : {other, one}) {
    std::string text;
    fields.read(name, text);
    if (!fields.find(name) || fields.failed()) continue;
    if (!is_right(text)) {
      fields.fail(invalid_field(std::string(name), "`" + std::string(name) + "` must be " + right));
    }
    value = std::move(text);
  }
  return value;
}

/// A body that is no JSON is a 422 here, as these endpoints' older clients know it.
std::optional<ApiError> parse_body(JsonBody& json, std::string_view body, const Shape& shape,
                                   const ShapeLimits& limits = {}) {
  auto error = json.parse(body);
  if (error) error->status = 422;
  return error ? error : check_shape(shape, json.root(), limits);
}

bool is_model_name(std::string_view name) {
  const auto odd = [](unsigned char byte) { return byte < 0x20 || byte == 0x7f; };
  return !name.empty() && name.size() <= kMaxNameBytes && std::ranges::none_of(name, odd);
}

bool is_path(std::string_view path) {
  return !path.empty() && path.find('\0') == std::string_view::npos;
}

}  // namespace

ApiResult<SnapshotRegistration> parse_registration(std::string_view body) {
  JsonBody json;
  if (auto error = parse_body(json, body, kRegisterShape)) return std::move(*error);
  JsonFields fields(json.root());
  SnapshotRegistration registration;
  registration.name =
      either(fields, "name", "model", "1 to 200 bytes without control characters", is_model_name);
  registration.path = either(fields, "path", "snapshot", "a path, without a zero byte", is_path);
  if (auto error = fields.error()) return std::move(*error);
  return registration;
}

ApiResult<std::string> parse_preload(std::string_view body, std::size_t num_slots) {
  JsonBody json;
  ShapeLimits limits;
  limits.num_slots = static_cast<std::int64_t>(num_slots);
  if (auto error = parse_body(json, body, kPreloadShape, limits)) return std::move(*error);
  JsonFields fields(json.root());
  std::string name;
  fields.read("model", name);
  if (auto error = fields.error()) return std::move(*error);
  return name;
}

std::uint32_t slot_of(const PoolStatus& status, const std::string& model) {
  const auto found = std::ranges::find(status.slots, model, &SlotStatus::model);
  return found == status.slots.end() ? 0 : found->slot;
}

std::string pool_status_body(const PoolStatus& status, const ServedModels& models, bool show_paths,
                             std::uint32_t tensor_parallel) {
  const ServedModelPtr first = models.find("");
  const std::vector<SlotStatus> slots = slots_of(status, models);
  ordered_json out = {{"ready", status.ready},
                      {"draining", status.draining},
                      {"base_model", first == nullptr ? "" : first->name()},
                      {"tensor_parallel_size", tensor_parallel},
                      {"pool_size", slots.size()},
                      {"registered_models", paths_json(models, show_paths)},
                      {"slots", ordered_json::array()},
                      {"models", ordered_json::array()},
                      {"uptime_seconds", status.uptime_seconds},
                      {"requests_suspended", status.requests_suspended},
                      {"requests_running", status.requests_running},
                      {"requests_retried", status.requests_retried},
                      {"requests_resumed", status.requests_resumed},
                      {"worker_deaths", status.worker_deaths},
                      {"arena_bytes", status.arena_bytes},
                      {"arena_used_bytes", status.arena_used_bytes},
                      {"snapshots", status.snapshots},
                      {"workers", ordered_json::array()}};
  for (const SlotStatus& slot : slots)
    out["slots"].push_back(slot_json(slot, status.uptime_seconds));
  for (const ModelStatus& model : status.models)
    out["models"].push_back(model_status_json(model, slots));
  for (const WorkerStatus& worker : status.workers) {
    out["workers"].push_back(
        {{"worker", worker.worker},
         {"model", worker.model.empty() && first != nullptr ? first->name() : worker.model},
         {"pid", worker.pid},
         {"ready", worker.ready},
         {"generation", worker.generation},
         {"adopted_blocks", worker.adopted_blocks},
         {"system_fingerprint", worker.system_fingerprint},
         {"stats", stats_json(worker.stats)}});
  }
  return dump_json(out);
}

std::string snapshots_body(const ServedModels& models) {
  return dump_json({{"snapshots", paths_json(models, true)}});
}

std::string snapshot_body(std::string_view status, const std::string& name,
                          const std::string& snapshot) {
  ordered_json out = {{"status", status}, {"model", name}};
  if (!snapshot.empty()) out["snapshot"] = snapshot;
  return dump_json(out);
}

std::string preloaded_body(const std::string& name, std::uint32_t slot, double seconds,
                           double bytes) {
  return dump_json({{"status", "preloaded"},
                    {"model", name},
                    {"slot_id", slot},
                    {"throughput_gb_s", seconds > 0 ? bytes / seconds * 1e-9 : 0.0},
                    {"elapsed_s", seconds}});
}

std::string health_body(const PoolStatus& status, const ServedModels& models) {
  const std::vector<SlotStatus> slots = slots_of(status, models);
  const auto idle = std::ranges::count_if(
      slots, [](const SlotStatus& slot) { return slot.running == 0 && slot.state != "swapping"; });
  return dump_json({{"status", "ok"},
                    {"pool_size", slots.size()},
                    {"idle_slots", idle},
                    {"registered_models", models.list().size()}});
}

}  // namespace thaw::coalescer

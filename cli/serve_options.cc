#include "cli/serve_options.h"

#include <algorithm>
#include <string>
#include <thread>
#include <utility>

#include "cli/version.h"
#include "engine/base/device_name.h"
#include "engine/grammar/grammar.h"

namespace thaw::cli {
namespace {

constexpr std::uint64_t kWorkingBytes = 64ULL << 20;  // activations, logits, process images

/// A fan-out brings its long context as many times as it has branches, and each is tokenized. Where
/// the model runs on the same cores, several threads would only make its steps longer.
std::uint32_t num_text_threads(const ServeSettings& settings) {
  return on_gpu(settings) ? std::clamp(std::thread::hardware_concurrency() / 4, 1U, 4U) : 1;
}

}  // namespace

bool on_gpu(const ServeSettings& settings) {
  return parse_device(settings.device).value().kind == DeviceName::Kind::kCuda;
}

MemoryBudget budget_of(const ServeSettings& settings) {
  const auto times = [](std::uint64_t count) {
    return count > 1 ? std::to_string(count) + " x " : "";
  };
  const std::uint64_t workers = std::uint64_t{settings.workers} * settings.pool_size;
  MemoryBudget budget;
  if (!on_gpu(settings))
    budget.parts.push_back({times(workers) + "KV cache", workers * settings.kv_bytes});
  budget.parts.push_back(
      {times(settings.pool_size) + "snapshot arena", settings.pool_size * settings.arena_bytes});
  budget.parts.push_back({"working memory", (1 + workers) * kWorkingBytes});
  return budget;
}

ops::PackingOptions packing_options(const ServeSettings& settings) {
  ops::PackingOptions options;
  if (on_gpu(settings)) options.device = ops::DeviceKind::kCuda;
  if (settings.dtype == "f32") options.mode = ops::ComputeMode::kExact32;
  if (settings.dtype == "f16") options.quantize = ops::Quantize::kF16;
  if (settings.dtype == "bf16") options.quantize = ops::Quantize::kBF16;
  if (settings.quantize == "q8_0") options.quantize = ops::Quantize::kQ8_0;
  return options;
}

forkpool::PoolOptions pool_options(const ServeSettings& settings, std::uint32_t threads) {
  forkpool::PoolOptions options;
  options.num_workers = settings.workers;
  options.device = settings.device;
  options.tensor_parallel = settings.tensor_parallel;
  options.threads_per_worker = threads;
  options.isa = settings.isa;
  options.kv_dtype = settings.kv_dtype;
  options.kv_bytes = settings.kv_bytes;
  options.arena_bytes = settings.arena_bytes;
  options.max_num_seqs = settings.max_num_seqs;
  options.max_waiting = settings.max_queued_requests;
  options.prefill_chunk_tokens = settings.prefill_chunk_tokens;
  options.max_model_len = settings.max_model_len;
  options.fork_min_prefix_tokens = settings.fork_min_prefix_tokens;
  options.spill_directory = settings.spill_dir;
  options.spill_bytes = settings.spill_bytes;
  options.boot_deadline = seconds_to<std::chrono::milliseconds>(settings.boot_timeout_s);
  // A step of a large model takes minutes on few cores.
  const double by_device = on_gpu(settings) ? 120 : 600;
  options.stall_limit = seconds_to<std::chrono::milliseconds>(
      settings.stall_timeout_s > 0 ? settings.stall_timeout_s : by_device);
  options.log_level = settings.log_level;
  return options;
}

coalescer::ServerOptions server_options(const ServeSettings& settings) {
  coalescer::ServerOptions options;
  options.host = settings.host;
  options.port = settings.port;
  options.admin_tenants = settings.admin_tenants;
  options.allowed_origins = settings.allowed_origins;
  options.window = seconds_to<std::chrono::microseconds>(settings.window_ms / 1000);
  options.session_limits.default_ttl = std::chrono::seconds(settings.session_ttl_s);
  options.session_limits.max_ttl = std::chrono::seconds(settings.session_max_ttl_s);
  options.session_limits.max_sessions = settings.max_sessions;
  options.session_limits.max_history_bytes = settings.session_history_bytes;
  options.session_kept_bytes = session_bytes(settings).value();
  options.prompt_cache_bytes = prompt_cache_bytes(settings).value();
  options.session_dir = settings.session_dir;
  options.response_limits.max_responses = settings.max_responses;
  options.response_limits.max_bytes = settings.response_bytes;
  options.response_limits.ttl = std::chrono::seconds(settings.response_ttl_s);
  options.max_body_bytes = settings.max_body_bytes;
  options.max_connections = settings.max_connections;
  options.max_num_seqs = settings.max_num_seqs;
  options.max_queued_requests = settings.max_queued_requests;
  options.idle_timeout = seconds_to<std::chrono::seconds>(settings.idle_timeout_s);
  options.eager_tools = settings.tool_auto == "eager";
  options.tensor_parallel = settings.tensor_parallel;
  options.has_grammars = grammar::is_built_in();
  options.write_timeout = seconds_to<std::chrono::seconds>(settings.write_timeout_s);
  options.num_text_threads = num_text_threads(settings);
  options.version = kVersion;
  return options;
}

forkpool::ModelPoolOptions model_pool_options(const ServeSettings& settings) {
  forkpool::ModelPoolOptions options;
  options.schedule.num_slots = settings.pool_size;
  options.schedule.quantum = seconds_to<Clock::Duration>(settings.swap_quantum_s);
  options.schedule.grace = seconds_to<Clock::Duration>(settings.swap_grace_s);
  options.workers_per_slot = settings.workers;
  options.max_waiting = settings.max_queued_requests;
  options.swap_deadline = seconds_to<std::chrono::milliseconds>(settings.boot_timeout_s);
  return options;
}

}  // namespace thaw::cli

#include "coalescer/http/metrics.h"

#include <functional>
#include <string_view>

#include <spdlog/fmt/fmt.h>

namespace thaw::coalescer {
namespace {

void append_header(std::string& out, std::string_view name, std::string_view help,
                   std::string_view type) {
  out += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void append_single(std::string& out, std::string_view name, std::string_view help,
                   std::string_view type, std::uint64_t value) {
  append_header(out, name, help, type);
  out += fmt::format("{} {}\n", name, value);
}

/// Inside a label value backslash, quote and line feed are escaped.
std::string escape_label(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

struct WorkerMetric {
  const char* name;
  const char* help;
  const char* type;
  std::uint64_t EngineStats::*field;
};

constexpr WorkerMetric kWorkerMetrics[] = {
    {"thaw_tokens_prefilled_total", "Prompt tokens computed.", "counter",
     &EngineStats::tokens_prefilled},
    {"thaw_tokens_cached_total", "Prompt tokens not computed thanks to the index.", "counter",
     &EngineStats::tokens_cached},
    {"thaw_tokens_reprefilled_total", "Tokens computed again after a preemption or a resume.",
     "counter", &EngineStats::tokens_reprefilled},
    {"thaw_tokens_decoded_total", "Tokens generated.", "counter", &EngineStats::tokens_decoded},
    {"thaw_tokens_discarded_total", "Tokens computed for sequences that had ended meanwhile.",
     "counter", &EngineStats::tokens_discarded},
    {"thaw_engine_steps_total", "Steps of the scheduler.", "counter", &EngineStats::steps},
    {"thaw_preemptions_total", "Sequences that gave up their blocks.", "counter",
     &EngineStats::preemptions},
    {"thaw_kv_evicted_blocks_total", "Cached KV blocks given up.", "counter",
     &EngineStats::evicted_blocks},
    {"thaw_kv_copied_blocks_total", "Partial blocks copied at a fork's first write.", "counter",
     &EngineStats::copied_blocks},
    {"thaw_trunk_waits_total", "Sequences that waited for a prefill in flight.", "counter",
     &EngineStats::trunk_waits},
    {"thaw_kv_snapshots_total", "KV snapshots written to the arena.", "counter",
     &EngineStats::snapshots},
    {"thaw_kv_restores_total", "KV snapshots restored from the arena.", "counter",
     &EngineStats::restores},
    {"thaw_grammars_compiled_total", "Grammars compiled, those refused too.", "counter",
     &EngineStats::grammars_compiled},
    {"thaw_grammar_cache_hits_total", "Grammars found compiled.", "counter",
     &EngineStats::grammar_cache_hits},
    {"thaw_grammar_compile_microseconds_total", "Time that grammars took to compile.", "counter",
     &EngineStats::grammar_compile_us},
    {"thaw_grammar_masks_total", "Masks of constrained tokens.", "counter",
     &EngineStats::grammar_masks},
    {"thaw_grammar_mask_microseconds_total", "Time that steps waited for masks.", "counter",
     &EngineStats::grammar_mask_us},
    {"thaw_kv_blocks", "KV blocks of the worker.", "gauge", &EngineStats::blocks_total},
    {"thaw_kv_blocks_free", "KV blocks that are free or evictable.", "gauge",
     &EngineStats::blocks_free},
    {"thaw_sequences_running", "Sequences in the batch.", "gauge", &EngineStats::running},
    {"thaw_sequences_waiting", "Sequences that wait for room in the batch.", "gauge",
     &EngineStats::waiting},
};

struct TierMetric {
  const char* name;
  const char* help;
  const char* type;
  std::uint64_t TierStatus::*field;
};

constexpr TierMetric kTierMetrics[] = {
    {"thaw_tier_trunks", "Trunks in a tier: arena, files of the spill directory, or S3.", "gauge",
     &TierStatus::entries},
    {"thaw_tier_bytes", "Bytes that they take.", "gauge", &TierStatus::bytes},
    {"thaw_tier_hits_total", "Trunks brought back from there.", "counter", &TierStatus::hits},
    {"thaw_tier_restored_bytes_total", "Bytes of them.", "counter", &TierStatus::restored_bytes},
    {"thaw_tier_writes_total", "Trunks written there.", "counter", &TierStatus::writes},
    {"thaw_tier_written_bytes_total", "Bytes of them.", "counter", &TierStatus::written_bytes},
    {"thaw_tier_evictions_total", "Trunks that had to make room.", "counter",
     &TierStatus::evictions},
    {"thaw_tier_refused_total", "Damaged trunks.", "counter", &TierStatus::refused},
    {"thaw_tier_failures_total", "A disk that was full, a store that did not answer.", "counter",
     &TierStatus::failures},
    {"thaw_tier_waiting", "Trunks that are to be written there.", "gauge", &TierStatus::waiting},
    {"thaw_tier_crossover_tokens",
     "Tokens from which on bringing a trunk back beats prefill, as measured.", "gauge",
     &TierStatus::crossover_tokens},
};

void append_tiers(std::string& out, const PoolStatus& status) {
  for (const TierMetric& metric : kTierMetrics) {
    append_header(out, metric.name, metric.help, metric.type);
    out += fmt::format(
        "{0}{{tier=\"arena\"}} {1}\n{0}{{tier=\"files\"}} {2}\n{0}{{tier=\"s3\"}} {3}\n",
        metric.name, status.arena.*metric.field, status.files.*metric.field,
        status.store.*metric.field);
  }
  append_single(out, "thaw_tokens_restored_total",
                "Prompt tokens brought back for requests, not prefilled.", "counter",
                status.tokens_restored);
  append_single(out, "thaw_pinned_trunks", "Pins of trunks that callers keep.", "gauge",
                status.pins);
}

void append_sessions(std::string& out, const SessionCounts& counts) {
  append_single(out, "thaw_sessions", "Sessions kept.", "gauge", counts.sessions);
  append_single(out, "thaw_sessions_running", "Sessions whose turn is running.", "gauge",
                counts.running);
  append_single(out, "thaw_session_history_bytes", "Token lines and messages of all sessions.",
                "gauge", counts.history_bytes);
  append_single(out, "thaw_sessions_created_total", "Sessions made, forks and imports included.",
                "counter", counts.created);
  append_single(out, "thaw_sessions_forked_total", "Sessions made by forks.", "counter",
                counts.forked);
  append_single(out, "thaw_session_turns_total", "Turns that were finished.", "counter",
                counts.turns);
  append_single(out, "thaw_session_conflicts_total",
                "Turns and rewinds refused since a turn was running.", "counter", counts.conflicts);
  append_single(out, "thaw_sessions_expired_total", "Sessions whose time was over.", "counter",
                counts.expired);
  append_single(out, "thaw_sessions_kept", "Sessions whose KV is kept.", "gauge", counts.kept);
  append_single(out, "thaw_session_kept_bytes", "KV kept for sessions, shared KV once.", "gauge",
                counts.kept_bytes);
  append_single(out, "thaw_sessions_given_up_total",
                "Times that the KV of a session was let go for others.", "counter",
                counts.given_up);
}

void append_workers(std::string& out, const PoolStatus& status) {
  for (const WorkerMetric& metric : kWorkerMetrics) {
    append_header(out, metric.name, metric.help, metric.type);
    for (const WorkerStatus& worker : status.workers)
      out += fmt::format("{}{{worker=\"{}\"}} {}\n", metric.name, worker.worker,
                         worker.stats.*metric.field);
  }
  append_header(out, "thaw_worker_ready", "1 while the worker serves.", "gauge");
  for (const WorkerStatus& worker : status.workers)
    out +=
        fmt::format("thaw_worker_ready{{worker=\"{}\"}} {}\n", worker.worker, worker.ready ? 1 : 0);
  append_header(out, "thaw_worker_generation", "Respawns of the worker.", "gauge");
  for (const WorkerStatus& worker : status.workers)
    out += fmt::format("thaw_worker_generation{{worker=\"{}\"}} {}\n", worker.worker,
                       worker.generation);
}

/// Of a server of several models.
void append_models(std::string& out, const PoolStatus& status) {
  if (status.models.empty()) return;
  const auto each_model = [&](const char* name, const char* help, const char* type, auto value) {
    append_header(out, name, help, type);
    for (const ModelStatus& model : status.models)
      out += fmt::format("{}{{model=\"{}\"}} {}\n", name, escape_label(model.model), value(model));
  };
  each_model("thaw_model_requests_total", "Requests taken for the model.", "counter",
             [](const ModelStatus& model) { return model.requests; });
  each_model("thaw_model_requests_waiting", "Requests that wait for a slot.", "gauge",
             [](const ModelStatus& model) { return model.waiting; });
  each_model("thaw_model_swaps_total", "Times that the model was given a slot.", "counter",
             [](const ModelStatus& model) { return model.loads; });
  each_model("thaw_model_swap_seconds_total", "From the decision until it served, all swaps.",
             "counter", [](const ModelStatus& model) { return model.load_seconds; });
  each_model("thaw_model_swap_failures_total", "Swaps that failed.", "counter",
             [](const ModelStatus& model) { return model.load_failures; });
  append_header(out, "thaw_slot_busy_seconds_total", "With a request on the slot.", "counter");
  for (const SlotStatus& slot : status.slots)
    out += fmt::format("thaw_slot_busy_seconds_total{{slot=\"{}\"}} {}\n", slot.slot,
                       slot.busy_seconds);
  append_single(out, "thaw_requests_suspended_total",
                "Requests that gave way to another model and went on later.", "counter",
                status.requests_suspended);
}

}  // namespace

void DurationHistogram::observe(std::chrono::nanoseconds duration) {
  const double seconds = std::chrono::duration<double>(duration).count();
  std::size_t bucket = 0;
  while (bucket < kBoundsSeconds.size() && seconds > kBoundsSeconds[bucket])
    ++bucket;
  ++counts_[bucket];
  sum_seconds_ += seconds;
}

void DurationHistogram::append(std::string& out, const std::string& name,
                               const std::string& help) const {
  append_header(out, name, help, "histogram");
  std::uint64_t below = 0;
  for (std::size_t i = 0; i < kBoundsSeconds.size(); ++i) {
    below += counts_[i];
    out += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, kBoundsSeconds[i], below);
  }
  below += counts_.back();
  out += fmt::format("{}_bucket{{le=\"+Inf\"}} {}\n", name, below);
  out += fmt::format("{}_sum {:.9g}\n{}_count {}\n", name, sum_seconds_, name, below);
}

std::string Metrics::render(const PoolStatus& status, const std::string& version) const {
  std::string out;
  append_header(out, "thaw_info", "The build.", "gauge");
  out += fmt::format("thaw_info{{version=\"{}\"}} 1\n", escape_label(version));
  append_header(out, "thaw_requests_total", "HTTP requests by endpoint and status.", "counter");
  for (const auto& [key, count] : requests)
    out += fmt::format("thaw_requests_total{{endpoint=\"{}\",code=\"{}\"}} {}\n",
                       escape_label(key.first), key.second, count);
  time_to_first_token.append(out, "thaw_time_to_first_token_seconds",
                             "From the request's last byte to its first token.");
  request_duration.append(out, "thaw_request_duration_seconds",
                          "From the request's last byte to the end of its answer.");
  append_single(out, "thaw_http_connections_total", "Connections accepted.", "counter",
                connections_total);
  append_single(out, "thaw_http_connections", "Connections open.", "gauge", connections);
  append_single(out, "thaw_client_disconnects_total", "Calls whose client hung up.", "counter",
                client_disconnects);
  append_single(out, "thaw_requests_queued", "Requests without a first token yet.", "gauge",
                requests_queued);
  append_single(out, "thaw_requests_in_flight", "Requests that have not ended.", "gauge",
                requests_in_flight);
  append_single(out, "thaw_windows_total", "Windows sent to the pool.", "counter", windows);
  append_single(out, "thaw_planned_trunks_total", "Trunks in the fork plans.", "counter", trunks);

  append_sessions(out, sessions);
  append_single(out, "thaw_prompt_cache_pins", "Prompts whose KV is kept for a time.", "gauge",
                cache_pins);
  append_single(out, "thaw_prompt_cache_pin_bytes", "KV kept for them.", "gauge", cache_pin_bytes);
  append_single(out, "thaw_responses", "Stored responses.", "gauge", responses);
  append_single(out, "thaw_response_bytes", "Memory that they take.", "gauge", response_bytes);
  append_single(out, "thaw_responses_running", "Responses that run in the background.", "gauge",
                responses_running);
  append_single(out, "thaw_responses_dropped_total",
                "Responses that went for others, or whose time was over.", "counter",
                responses_dropped);

  append_single(out, "thaw_ready", "1 while at least one worker serves.", "gauge",
                status.ready ? 1 : 0);
  append_single(out, "thaw_requests_running", "Requests in the pool.", "gauge",
                status.requests_running);
  append_single(out, "thaw_requests_retried_total", "Requests sent again after a worker's death.",
                "counter", status.requests_retried);
  append_single(out, "thaw_requests_resumed_total",
                "Streams that went on from their last token after a worker's death.", "counter",
                status.requests_resumed);
  append_single(out, "thaw_worker_deaths_total", "Workers that died.", "counter",
                status.worker_deaths);
  append_single(out, "thaw_worker_spawn_failures_total",
                "Times that no worker process could be made.", "counter", status.spawn_failures);
  append_single(out, "thaw_arena_bytes", "Size of the snapshot arena.", "gauge",
                status.arena_bytes);
  append_single(out, "thaw_arena_used_bytes", "Bytes of the arena in use.", "gauge",
                status.arena_used_bytes);
  append_single(out, "thaw_arena_snapshots", "Snapshots published now.", "gauge", status.snapshots);
  append_tiers(out, status);
  append_workers(out, status);
  append_models(out, status);
  return out;
}

}  // namespace thaw::coalescer

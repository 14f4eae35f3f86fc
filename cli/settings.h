#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/model_paths.h"
#include "cli/s3_settings.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// Everything `thaw serve` can be told. Each field is a flag and an environment variable
/// (docs/configuration.md); this is the only place where the environment is read.
struct ServeSettings {
  std::string model;  ///< file, directory or org/name; empty: the default model
  std::string snapshot;  ///< .thaw file or s3:// URL; empty: the model's own files
  S3Settings s3;
  bool verify = true;  ///< checksums of the snapshot
  std::vector<std::string> served_model_names;
  std::string chat_template;  ///< file; empty: the model's own
  std::vector<std::string> registered;  ///< more models, NAME=PATH
  std::uint32_t pool_size = 1;  ///< models that are loaded at once
  std::vector<std::string> snapshot_dirs;  ///< where models may be registered from
  std::vector<std::string> admin_tenants;
  std::vector<std::string> allowed_origins;
  double swap_quantum_s = 5.0;
  double swap_grace_s = 2.0;
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;
  std::vector<std::string> api_keys;
  std::string api_key_file;
  std::string device = "cpu";
  std::uint32_t workers = 1;
  std::uint32_t tensor_parallel = 1;  ///< GPUs of each worker
  std::uint32_t threads = 0;  ///< a worker's; 0: the cores there are, shared out over the workers
  std::string isa;
  std::string dtype = "native";
  std::string quantize = "none";
  std::string generation_config = "auto";
  std::uint64_t image_cache_bytes = 32ULL << 30;  ///< packed weights on disk; 0: none
  bool verify_weights = false;
  std::string kv_dtype = "bf16";
  std::uint64_t kv_bytes = 0;  ///< 0: the device's default (kv_bytes_or_default)
  std::uint64_t arena_bytes = 256ULL << 20;
  std::uint32_t max_model_len = 0;
  std::uint32_t max_num_seqs = 64;
  std::uint32_t max_queued_requests = 1024;
  std::uint32_t prefill_chunk_tokens = 0;  ///< 0: the device's default
  double window_ms = 2.0;
  std::uint32_t fork_min_prefix_tokens = 500;  ///< 0: auto
  std::vector<std::string> kv_snapshots;  ///< .thawkv files
  std::string spill_dir;  ///< empty: none
  std::uint64_t spill_bytes = 16ULL << 30;
  std::string spill_s3;  ///< s3://BUCKET/PREFIX; empty: none
  std::uint64_t spill_s3_bytes = 0;  ///< 0: no bound
  std::uint64_t session_ttl_s = 3600;
  std::uint64_t session_max_ttl_s = 604800;
  std::uint32_t max_sessions = 1024;
  std::string session_bytes = "auto";  ///< KV kept for sessions; auto: half of the arena
  std::string prompt_cache_bytes = "auto";  ///< for prompts; auto: a quarter of the arena
  std::uint64_t session_history_bytes = 256ULL << 20;
  std::string session_dir;
  std::uint32_t max_responses = 4096;
  std::uint64_t response_bytes = 256ULL << 20;
  std::uint64_t response_ttl_s = 86400;
  std::uint64_t max_body_bytes = 32ULL << 20;
  std::uint32_t max_connections = 4096;
  double drain_timeout_s = 30.0;
  double boot_timeout_s = 60.0;
  double stall_timeout_s = 0.0;
  double idle_timeout_s = 75.0;
  double write_timeout_s = 30.0;
  std::string tool_auto = "lazy";  ///< or "eager"
  std::string log_level = "info";
};

/// What flags (`--kv-bytes=64MiB`, ...) and the environment say, on top of `settings`. Errors:
/// kInvalidArgument with the flag and its value.
Result<ServeSettings> parse_serve_settings(std::vector<std::string> arguments,
                                           ServeSettings settings);

/// Whether more than one model may be served: then slots change hands.
bool serves_several(const ServeSettings& settings);

/// Sets what was left to the device: KV memory (1 GiB on the CPU; 0, what is free, on a GPU) and
/// the prefill chunk. Errors: settings that exclude each other on that device, named.
Result<void> settle_device(ServeSettings& settings);

/// Bytes of KV kept for sessions. Errors: --session-bytes is no size, or more than the arena has.
Result<std::uint64_t> session_bytes(const ServeSettings& settings);
/// The same of KV kept for prompts that ask for it (--prompt-cache-bytes).
Result<std::uint64_t> prompt_cache_bytes(const ServeSettings& settings);

/// --spill-s3 without a slash at its end; empty where it was not given. Errors: no S3 URL, no
/// --spill-dir.
Result<std::string> spill_url(const ServeSettings& settings);

/// Errors: session settings that contradict each other, named.
Result<void> check_sessions(const ServeSettings& settings);

/// Hugging Face's cache: $HF_HUB_CACHE, else hub/ below $HF_HOME, else huggingface/hub/ below
/// $XDG_CACHE_HOME or ~/.cache. The default model: models/ below $THAW_CACHE_DIR, else below
/// ~/.cache/thaw, where scripts/get_model.py puts it.
ModelPaths model_paths_from_environment();

/// Declares the flags of `serve` on `command`; they write to `settings`, which must outlive the
/// parse.
void add_serve_options(CLI::App& command, ServeSettings& settings);

}  // namespace thaw::cli

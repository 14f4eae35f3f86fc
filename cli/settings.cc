#include "cli/settings.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <map>
#include <utility>

#include "engine/base/device_name.h"
#include "kvsnap/store/s3_url.h"

namespace thaw::cli {
namespace {

// "--window-ms" is also THAW_WINDOW_MS.
std::string environment_name(const std::string& flag) {
  std::string name = "THAW_";
  for (const char letter : flag.substr(2)) {
    name +=
        letter == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  }
  return name;
}

template <typename T>
CLI::Option* add(CLI::App& command, const std::string& flag, T& value, const std::string& help) {
  return command.add_option(flag, value, help)
      ->envname(environment_name(flag))
      ->capture_default_str();
}

constexpr std::uint32_t kMaxCount = 1U << 20;
constexpr std::uint64_t kMaxTtl = 366ULL * 24 * 3600;
constexpr std::uint64_t kCpuKvBytes = 1ULL << 30;
// A GPU computes few rows as slowly as many: its chunks are longer.
constexpr std::uint32_t kCpuPrefillChunk = 128;
constexpr std::uint32_t kCudaPrefillChunk = 1024;

/// The message of a refusal, or empty.
std::string check_device(const std::string& text) {
  const auto device = parse_device(text);
  return device ? "" : device.error().message;
}

std::string check_chunk(const std::string& text) {
  return text == "0" ? "" : CLI::Range(16U, 65536U)(text);
}

std::string check_stall(const std::string& text) {
  return text == "0" ? "" : CLI::Range(1.0, 86400.0)(text);
}

/// Empty where the variable is unset.
std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string first_of(const std::string& value, const std::string& fallback) {
  return value.empty() ? fallback : value;
}

}  // namespace

ModelPaths model_paths_from_environment() {
  const std::string user_cache = environment("HOME") + "/.cache";
  const std::string thaw_cache = first_of(environment("THAW_CACHE_DIR"), user_cache + "/thaw");
  const std::string hf_home = first_of(
      environment("HF_HOME"), first_of(environment("XDG_CACHE_HOME"), user_cache) + "/huggingface");
  return {thaw_cache + "/models/SmolLM2-135M-Instruct.Q4_1.gguf",
          first_of(environment("HF_HUB_CACHE"), hf_home + "/hub"), thaw_cache + "/images",
          thaw_cache + "/snapshots"};
}

Result<void> settle_device(ServeSettings& settings) {
  const auto device = parse_device(settings.device);
  if (!device) return device.error();
  const auto wrong = [&](const std::string& what) {
    return make_error(Errc::kInvalidArgument, what + " with --device " + settings.device);
  };
  const bool cuda = device->kind == DeviceName::Kind::kCuda;
  if (settings.prefill_chunk_tokens == 0)
    settings.prefill_chunk_tokens = cuda ? kCudaPrefillChunk : kCpuPrefillChunk;
  const std::size_t gpus = device->more.size() + 1;
  if (!cuda && settings.tensor_parallel > 1)
    return wrong("--tensor-parallel " + std::to_string(settings.tensor_parallel) +
                 " is for GPUs and cannot be used");
  if (gpus > 1 && gpus % settings.tensor_parallel != 0)
    return wrong("--tensor-parallel " + std::to_string(settings.tensor_parallel) +
                 " does not divide the " + std::to_string(gpus) + " GPUs named");
  if (!cuda) {
    if (settings.kv_bytes == 0) settings.kv_bytes = kCpuKvBytes;
    return {};
  }
  if (settings.kv_dtype != "bf16") {
    return wrong("--kv-dtype " + settings.kv_dtype + " cannot be used; bf16 is what can,");
  }
  if (!settings.isa.empty()) return wrong("--isa means nothing");
  const std::size_t groups = gpus / settings.tensor_parallel;  // that share no GPU
  if (settings.pool_size > 1 && settings.kv_bytes == 0)
    return wrong("give --kv-bytes: the workers of several slots cannot each take what is free");
  if (settings.workers > std::max<std::size_t>(groups, 1) && settings.kv_bytes == 0) {
    return wrong("give --kv-bytes: " + std::to_string(settings.workers) +
                 " workers cannot each take what is free");
  }
  return {};
}

namespace {

/// KV that is kept in the arena: `auto` is that part of it.
Result<std::uint64_t> kept_bytes(const ServeSettings& settings, const std::string& flag,
                                 std::string text, std::uint64_t part, const std::string& whose) {
  if (text == "auto") return settings.arena_bytes / part;
  const auto wrong = [&, given = text](const std::string& right) {
    return make_error(Errc::kInvalidArgument, flag + " is " + given + "; it must be " + right);
  };
  std::uint64_t bytes = 0;
  try {
    if (!CLI::AsSizeValue(false)(text).empty() || text.find('-') != std::string::npos ||
        !CLI::detail::lexical_cast(text, bytes))
      return wrong("a size such as 64MiB, 0 or auto");
  } catch (const CLI::Error&) {
    return wrong("a size such as 64MiB, 0 or auto");
  }
  if (bytes > settings.arena_bytes) {
    return wrong("at most --arena-bytes, here " + std::to_string(settings.arena_bytes) +
                 ", where the KV of " + whose + " lies");
  }
  return bytes;
}

}  // namespace

Result<std::uint64_t> session_bytes(const ServeSettings& settings) {
  return kept_bytes(settings, "--session-bytes", settings.session_bytes, 2, "sessions");
}

Result<std::uint64_t> prompt_cache_bytes(const ServeSettings& settings) {
  return kept_bytes(settings, "--prompt-cache-bytes", settings.prompt_cache_bytes, 4, "prompts");
}

Result<void> check_sessions(const ServeSettings& settings) {
  if (settings.session_ttl_s > settings.session_max_ttl_s) {
    return make_error(Errc::kInvalidArgument, "--session-ttl is " +
                                                  std::to_string(settings.session_ttl_s) +
                                                  "; it must be at most --session-max-ttl, here " +
                                                  std::to_string(settings.session_max_ttl_s));
  }
  if (const auto bytes = session_bytes(settings); !bytes) return bytes.error();
  if (const auto bytes = prompt_cache_bytes(settings); !bytes) return bytes.error();
  return {};
}

Result<std::string> spill_url(const ServeSettings& settings) {
  if (settings.spill_s3.empty()) return std::string();
  if (settings.spill_dir.empty()) {
    return make_error(Errc::kInvalidArgument,
                      "--spill-s3 is " + settings.spill_s3 +
                          ", but there is no --spill-dir, through which all goes that goes there");
  }
  std::string url = settings.spill_s3;
  while (url.ends_with('/'))
    url.pop_back();
  if (auto parsed = kvsnap::parse_s3_url(url); !parsed)
    return make_error(Errc::kInvalidArgument, "--spill-s3: " + parsed.error().message);
  return url;
}

bool serves_several(const ServeSettings& settings) {
  return !settings.registered.empty() || !settings.snapshot_dirs.empty() || settings.pool_size > 1;
}

void add_serve_options(CLI::App& command, ServeSettings& settings) {
  ServeSettings& s = settings;
  command
      .add_option("--model,model", s.model,
                  "GGUF file, directory of Hugging Face's files, .thaw file, or org/name in the "
                  "local Hugging Face cache; the default model without one")
      ->envname("THAW_MODEL");
  add(command, "--snapshot", s.snapshot,
      "Take weights, tokenizer and template from this .thaw file, or s3://BUCKET/KEY; the model is "
      "then its name only");
  add_s3_options(command, s.s3);
  // Has no flag: what is not compared can be damaged in silence.
  s.verify = environment("THAW_VERIFY") != "0";
  add(command, "--served-model-name", s.served_model_names,
      "Name that clients use; may be given several times. Default: the model's name")
      ->delimiter(',');

  add(command, "--chat-template", s.chat_template,
      "File with a Jinja chat template, in place of the model's own; for the first model");

  const std::string models = "Several models";
  add(command, "--register", s.registered,
      "Serve this model too, NAME=PATH; may be given several times. PATH as MODEL")
      ->delimiter(',')
      ->group(models);
  add(command, "--pool-size", s.pool_size, "Slots: models that are loaded at once")
      ->check(CLI::Range(1U, 64U))
      ->group(models);
  add(command, "--snapshot-dir", s.snapshot_dirs,
      "Models may be registered from this directory while the server runs (POST /admin/snapshots); "
      "may be given several times")
      ->delimiter(',')
      ->group(models);
  add(command, "--admin-tenant", s.admin_tenants,
      "With keys: this tenant may change what is served; may be given several times")
      ->delimiter(',')
      ->group(models);
  add(command, "--swap-quantum", s.swap_quantum_s,
      "Seconds that a slot serves its model while another one waits")
      ->check(CLI::Range(0.0, 3600.0))
      ->group(models);
  add(command, "--swap-grace", s.swap_grace_s,
      "Seconds that running requests then get to end, before they are suspended")
      ->check(CLI::Range(0.0, 3600.0))
      ->group(models);

  const std::string http = "HTTP";
  add(command, "--host", s.host, "Address to listen on")->group(http);
  add(command, "--port", s.port, "Port to listen on; 0 takes a free one")->group(http);
  add(command, "--api-key", s.api_keys,
      "Accept this key, KEY or TENANT:KEY; may be given several times. Each key is a tenant: "
      "nothing is "
      "shared between tenants. Without any key everybody may call")
      ->delimiter(',')
      ->group(http);
  add(command, "--api-key-file", s.api_key_file, "File with one KEY or TENANT:KEY a line")
      ->group(http);
  add(command, "--allow-origin", s.allowed_origins,
      "Web pages of this origin may ask, such as https://chat.example.com; * for all; may be given "
      "several times")
      ->delimiter(',')
      ->group(http);
  add(command, "--max-body-bytes", s.max_body_bytes, "Largest request body")
      ->transform(CLI::AsSizeValue(false))
      ->group(http);
  add(command, "--max-connections", s.max_connections, "Connections open at once")
      ->check(CLI::Range(1U, kMaxCount))
      ->group(http);
  add(command, "--idle-timeout", s.idle_timeout_s, "Seconds a connection may be idle")
      ->check(CLI::Range(1.0, 86400.0))
      ->group(http);
  add(command, "--write-timeout", s.write_timeout_s,
      "Seconds after which a client that reads nothing is dropped")
      ->check(CLI::Range(1.0, 86400.0))
      ->group(http);
  add(command, "--tool-auto", s.tool_auto,
      "What tool_choice auto means: lazy: the model decides; eager: it must call a tool unless the "
      "last message is a tool's result, for models that were not made for tools")
      ->check(CLI::IsMember({"lazy", "eager"}))
      ->group(http);
  add(command, "--drain-timeout", s.drain_timeout_s,
      "Seconds that running requests get at shutdown")
      ->check(CLI::Range(0.0, 86400.0))
      ->group(http);

  const std::string fork = "Fork";
  add(command, "--window-ms", s.window_ms,
      "Milliseconds in which arriving requests are placed together")
      ->check(CLI::Range(0.0, 1000.0))
      ->group(fork);
  add(command, "--fork-min-prefix-tokens", s.fork_min_prefix_tokens,
      "Shorter trunks are never copied to another worker, nor brought back from memory or files; "
      "auto: where that is faster than prefill, as measured")
      ->transform(CLI::Transformer(std::map<std::string, std::uint32_t>{{"auto", 0}}))
      ->check(CLI::Range(0U, kMaxCount))
      ->group(fork);
  add(command, "--kv-snapshot", s.kv_snapshots,
      "Keep the KV of this .thawkv file (thaw freeze --kv-output); may be given several times")
      ->delimiter(',')
      ->group(fork);
  add(command, "--spill-dir", s.spill_dir,
      "Keep trunks in files of this directory, which servers may share: they outlive restarts")
      ->group(fork);
  add(command, "--spill-bytes", s.spill_bytes, "Most that lies in --spill-dir, of all servers")
      ->transform(CLI::AsSizeValue(false))
      ->group(fork);
  add(command, "--spill-s3", s.spill_s3,
      "s3://BUCKET/PREFIX: what is in --spill-dir goes there too, and is found there by all "
      "servers")
      ->group(fork);
  add(command, "--spill-s3-bytes", s.spill_s3_bytes,
      "Most that lies below --spill-s3, of all servers; 0: the bucket's own rules bound it")
      ->transform(CLI::AsSizeValue(false))
      ->group(fork);

  const std::string sessions = "Sessions";
  add(command, "--session-ttl", s.session_ttl_s,
      "Seconds that a session lives after its last use, unless it was made with other ones")
      ->check(CLI::Range(std::uint64_t{1}, kMaxTtl))
      ->group(sessions);
  add(command, "--session-max-ttl", s.session_max_ttl_s, "Most seconds that a session may ask for")
      ->check(CLI::Range(std::uint64_t{1}, kMaxTtl))
      ->group(sessions);
  add(command, "--max-sessions", s.max_sessions, "Sessions kept at once, forks included")
      ->check(CLI::Range(1U, kMaxCount))
      ->group(sessions);
  add(command, "--session-bytes", s.session_bytes,
      "KV kept for sessions, in the arena (64MiB, ...); auto: half of it; 0 keeps none")
      ->group(sessions);
  add(command, "--prompt-cache-bytes", s.prompt_cache_bytes,
      "KV kept for prompts that ask for it, in the arena (64MiB, ...); auto: a quarter of it; 0 "
      "keeps none")
      ->group(sessions);
  add(command, "--session-history-bytes", s.session_history_bytes,
      "Tokens and messages of all sessions")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{1} << 20, std::uint64_t{1} << 40))
      ->group(sessions);
  add(command, "--session-dir", s.session_dir,
      "Sessions are written there at checkpoints and at the server's end, and taken up from there")
      ->group(sessions);

  add(command, "--max-responses", s.max_responses,
      "Responses of /v1/responses that are stored at once; 0 stores none")
      ->check(CLI::Range(0U, kMaxCount))
      ->group(sessions);
  add(command, "--response-bytes", s.response_bytes,
      "Memory of all stored responses (64MiB, ...); 0 stores none")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 40))
      ->group(sessions);
  add(command, "--response-ttl", s.response_ttl_s,
      "Seconds that a stored response lives after its last use")
      ->check(CLI::Range(std::uint64_t{1}, kMaxTtl))
      ->group(sessions);

  const std::string engine = "Engine";
  add(command, "--device", s.device,
      "cpu, cuda (the first GPU), cuda:N, or cuda:N,M,... for workers to take in turn")
      ->check(CLI::Validator(check_device, "DEVICE"))
      ->group(engine);
  add(command, "--workers", s.workers, "Worker processes")
      ->check(CLI::Range(1U, 64U))
      ->group(engine);
  add(command, "--tensor-parallel", s.tensor_parallel,
      "GPUs that each worker spreads the model over; changes no bit of an answer")
      ->check(CLI::Range(1U, 8U))
      ->group(engine);
  add(command, "--threads", s.threads, "Threads of each worker; 0 shares out the cores")
      ->check(CLI::Range(0U, 1024U))
      ->group(engine);
  add(command, "--isa", s.isa,
      "Instruction set of the kernels; all give the same bits. Default: the best")
      ->check(CLI::IsMember({"generic", "avx2", "avx512vnni"}))
      ->group(engine);
  add(command, "--dtype", s.dtype,
      "native, f16 or bf16 to round float weights, or f32 to expand every weight to float32")
      ->check(CLI::IsMember({"native", "f32", "f16", "bf16"}))
      ->group(engine);
  add(command, "--quantize", s.quantize,
      "q8_0 rounds weights that are stored as floats to 8 bits when they are packed")
      ->check(CLI::IsMember({"none", "q8_0"}))
      ->group(engine);
  add(command, "--generation-config", s.generation_config,
      "auto takes the checkpoint's sampling for what requests leave out, none does not")
      ->check(CLI::IsMember({"auto", "none"}))
      ->group(engine);
  add(command, "--image-cache-bytes", s.image_cache_bytes,
      "Packed weights kept on disk for the next start, of all models; 0 keeps none")
      ->transform(CLI::AsSizeValue(false))
      ->group(engine);
  command
      .add_flag("--verify-weights", s.verify_weights,
                "Read the model's files even if nothing about them seems to have changed")
      ->envname("THAW_VERIFY_WEIGHTS")
      ->group(engine);
  add(command, "--kv-dtype", s.kv_dtype, "Type of the KV cache")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))
      ->group(engine);
  add(command, "--kv-bytes", s.kv_bytes,
      "KV cache of each worker (512MiB, ...); 0: 1GiB on the CPU, what is free on a GPU")
      ->transform(CLI::AsSizeValue(false))
      ->group(engine);
  add(command, "--arena-bytes", s.arena_bytes, "Shared memory for KV snapshots between workers")
      ->transform(CLI::AsSizeValue(false))
      ->group(engine);
  add(command, "--max-model-len", s.max_model_len,
      "Tokens of prompt and output; 0 is the model's own")
      ->check(CLI::Range(0U, 1U << 24))
      ->group(engine);
  add(command, "--max-num-seqs", s.max_num_seqs, "Sequences that decode at once, per worker")
      ->check(CLI::Range(1U, 4096U))
      ->group(engine);
  add(command, "--max-queued-requests", s.max_queued_requests,
      "Requests in hand before 429 is answered")
      ->check(CLI::Range(1U, kMaxCount))
      ->group(engine);
  add(command, "--prefill-chunk-tokens", s.prefill_chunk_tokens,
      "Prompt tokens computed between two decode steps; 0: 128 on the CPU, 1024 on a GPU")
      ->check(CLI::Validator(check_chunk, "0 or 16 to 65536"))
      ->group(engine);
  add(command, "--boot-timeout", s.boot_timeout_s, "Seconds that a worker gets to start")
      ->check(CLI::Range(1.0, 3600.0))
      ->group(engine);
  add(command, "--stall-timeout", s.stall_timeout_s,
      "Seconds without a word after which a worker with work is replaced; 0: 600, 120 on a GPU")
      ->check(CLI::Validator(check_stall, "0 or 1 to 86400"))
      ->group(engine);
  add(command, "--log-level", s.log_level, "trace, debug, info, warn, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
}

Result<ServeSettings> parse_serve_settings(std::vector<std::string> arguments,
                                           ServeSettings settings) {
  CLI::App app;
  add_serve_options(app, settings);
  std::ranges::reverse(arguments);  // as CLI11 takes them
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return make_error(Errc::kInvalidArgument, error.what());
  }
  return settings;
}

}  // namespace thaw::cli

#include "cli/serve.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <set>
#include <thread>
#include <vector>

#include "cli/api_keys.h"
#include "cli/kv_snapshot.h"
#include "cli/memory_budget.h"
#include "cli/model_backend.h"
#include "cli/model_loader.h"
#include "cli/model_registry.h"
#include "cli/pool_backend.h"
#include "cli/remote_files.h"
#include "cli/version.h"
#include "coalescer/http/server.h"
#include "engine/base/device_name.h"
#include "engine/base/log.h"
#ifdef THAW_WITH_CUDA
#include "engine/cuda/device_info.h"
#endif

namespace thaw::cli {
namespace {

constexpr std::uint64_t kWorkingBytes = 64ULL << 20;  // activations, logits, process images

int available_cores() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return 1;
}

// REQUIRES: settle_device().
bool on_gpu(const ServeSettings& settings) {
  return parse_device(settings.device).value().kind == DeviceName::Kind::kCuda;
}

// A GPU that is not there is found before the model is read, and not by workers one after another.
Result<void> check_device(const ServeSettings& settings) {
  if (!on_gpu(settings)) return {};
#ifdef THAW_WITH_CUDA
  std::set<int> seen;
  for (std::uint32_t worker = 0; worker < settings.workers; ++worker) {
    const DeviceName devices =
        devices_of_worker(parse_device(settings.device).value(), worker, settings.tensor_parallel);
    std::vector<int> ordinals = {devices.ordinal};
    ordinals.insert(ordinals.end(), devices.more.begin(), devices.more.end());
    for (const int ordinal : ordinals) {
      if (!seen.insert(ordinal).second) continue;
      const auto info = cuda::device_info(ordinal);
      if (!info) return info.error();
      std::printf("device: %s, %s\n", info->name.c_str(), format_bytes(info->total_bytes).c_str());
    }
  }
  return {};
#else
  return make_error(Errc::kUnsupported,
                    "--device " + settings.device + ": this build has no CUDA (THAW_CUDA=ON)");
#endif
}

template <typename Duration>
Duration seconds_to(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

/// Everything but weights.
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
  options.worker_binary = std::filesystem::read_symlink("/proc/self/exe").string();
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
  options.log_level = settings.log_level;
  return options;
}

coalescer::ServerOptions server_options(const ServeSettings& settings) {
  coalescer::ServerOptions options;
  options.host = settings.host;
  options.port = settings.port;
  options.admin_tenants = settings.admin_tenants;
  options.window = seconds_to<std::chrono::microseconds>(settings.window_ms / 1000);
  options.fork_min_prefix_tokens = settings.fork_min_prefix_tokens;
  options.session_limits.default_ttl = std::chrono::seconds(settings.session_ttl_s);
  options.session_limits.max_ttl = std::chrono::seconds(settings.session_max_ttl_s);
  options.session_limits.max_sessions = settings.max_sessions;
  options.session_limits.max_history_bytes = settings.session_history_bytes;
  options.session_kept_bytes = session_bytes(settings).value();
  options.prompt_cache_bytes = prompt_cache_bytes(settings).value();
  options.session_dir = settings.session_dir;
  options.max_body_bytes = settings.max_body_bytes;
  options.max_connections = settings.max_connections;
  options.max_num_seqs = settings.max_num_seqs;
  options.max_queued_requests = settings.max_queued_requests;
  options.idle_timeout = seconds_to<std::chrono::seconds>(settings.idle_timeout_s);
  options.eager_tools = settings.tool_auto == "eager";
  options.write_timeout = seconds_to<std::chrono::seconds>(settings.write_timeout_s);
  options.version = kVersion;
  return options;
}

// The client's threads and connections end before the workers start.
Result<std::string> fetch_snapshot(const ServeSettings& settings, const ModelPaths& paths) {
  const auto remote = RemoteFiles::open(settings.s3, paths.snapshots);
  if (!remote) return remote.error();
  std::printf("[thaw] fetching %s\n", settings.snapshot.c_str());
  std::fflush(stdout);
  return (*remote)->fetch_weights(settings.snapshot);
}

// Blocks SIGTERM and SIGINT in this thread and those it starts, so that one thread can wait for
// them.
sigset_t block_stop_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signals;
}

// Serves until a stop signal has come and everything that ran has ended or was cut.
void serve_until_signal(coalescer::Server& server, const sigset_t& signals,
                        std::chrono::milliseconds drain_timeout) {
  std::jthread waiter([&](const std::stop_token& stop) {
    const timespec tick{0, 200'000'000};
    while (!stop.stop_requested()) {
      const int signal = ::sigtimedwait(&signals, nullptr, &tick);
      if (signal < 0) continue;
      logger("serve")->info("signal={} draining timeout_ms={}", signal, drain_timeout.count());
      server.stop(drain_timeout);
      return;
    }
  });
  server.run();
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

Result<void> check_admins(const ServeSettings& settings,
                          const std::vector<coalescer::ApiKey>& keys) {
  for (const std::string& tenant : settings.admin_tenants) {
    if (std::ranges::any_of(keys, [&](const auto& key) { return key.tenant == tenant; })) continue;
    std::string message = "--admin-tenant is " + tenant;
    message.append(", but no key is that tenant's; give it one with --api-key ");
    message.append(tenant).append(":KEY");
    return make_error(Errc::kInvalidArgument, std::move(message));
  }
  return {};
}

/// Without a model of its own a server begins with the first one that is registered.
std::vector<Registration> take_first_model(ServeSettings& settings,
                                           std::vector<Registration> registrations) {
  if (!settings.model.empty() || !settings.snapshot.empty() || registrations.empty())
    return registrations;
  settings.model = registrations.front().path;
  settings.served_model_names.insert(settings.served_model_names.begin(),
                                     registrations.front().name);
  registrations.erase(registrations.begin());
  return registrations;
}

/// Loads what --register names into the registry.
Result<std::vector<forkpool::ModelSpec>> load_others(const std::vector<Registration>& registrations,
                                                     const ModelPaths& paths,
                                                     ModelRegistry& registry) {
  std::vector<forkpool::ModelSpec> specs;
  for (const Registration& other : registrations) {
    const auto wrong = [&](const Error& error) {
      return make_error(error.code, "--register " + other.name + ": " + error.message);
    };
    const auto loader = ModelLoader::open(other.path, paths);
    if (!loader) return wrong(loader.error());
    auto spec = registry.load({other.name}, *loader);
    if (!spec) return wrong(spec.error());
    specs.push_back(std::move(*spec));
  }
  return specs;
}

}  // namespace

Result<void> run_serve(ServeSettings settings, const ModelPaths& paths) {
  set_log_level(settings.log_level);
  if (auto settled = settle_device(settings); !settled) return settled;
  if (auto checked = check_sessions(settings); !checked) return checked;
  const auto spill_s3 = spill_url(settings);
  if (!spill_s3) return spill_s3.error();
  const sigset_t signals = block_stop_signals();
  if (settings.dtype != "native" && settings.quantize != "none") {
    return make_error(Errc::kInvalidArgument,
                      "--quantize " + settings.quantize + " and --dtype " + settings.dtype +
                          " exclude each other: both say what becomes of the weights");
  }
  auto keys = load_api_keys(settings.api_keys, settings.api_key_file);
  if (!keys) return keys.error();
  if (auto admins = check_admins(settings, *keys); !admins) return admins;
  auto registrations = parse_registrations(settings.registered);
  if (!registrations) return registrations.error();
  const auto others = take_first_model(settings, std::move(*registrations));
  if (serves_several(settings) && !settings.kv_snapshots.empty()) {
    return make_error(Errc::kInvalidArgument,
                      "--kv-snapshot goes with one model; leave out --register, --snapshot-dir and "
                      "--pool-size");
  }
  auto allowed = AllowedDirectories::open(settings.snapshot_dirs);
  if (!allowed) return allowed.error();

  if (settings.snapshot.empty() && is_remote(settings.model))
    std::swap(settings.snapshot, settings.model);
  const bool is_snapshot = !settings.snapshot.empty();
  const std::string snapshot = settings.snapshot;
  if (is_remote(snapshot)) {
    auto fetched = fetch_snapshot(settings, paths);
    if (!fetched) return std::move(fetched).error();
    settings.snapshot = *std::move(fetched);
  }
  // Weights that nobody compared with their checksums are not kept for those who do.
  const std::uint64_t cache_bytes =
      is_snapshot && !settings.verify ? 0 : settings.image_cache_bytes;
  model::ImageCache images({paths.images, cache_bytes, settings.verify_weights});
  auto model = is_snapshot ? ModelLoader::open_snapshot(settings.snapshot, settings.model, paths,
                                                        settings.verify ? kvsnap::Verify::kChecksums
                                                                        : kvsnap::Verify::kNothing)
                           : ModelLoader::open(settings.model, paths);
  if (!model) return model.error();
  if (!settings.chat_template.empty()) {
    auto chat_template = read_template_file(settings.chat_template);
    if (!chat_template)
      return make_error(chat_template.error().code,
                        "--chat-template: " + chat_template.error().message);
    model->use_chat_template(*std::move(chat_template));
  }
  if (is_snapshot) {
    std::printf("[thaw] restoring %s from %s%s\n", model->name().c_str(), snapshot.c_str(),
                settings.verify ? "" : " unchecked (THAW_VERIFY=0)");
  } else if (settings.model.empty())
    std::printf("no model given: serving the default one, %s\n", model->path().c_str());

  if (auto there = check_device(settings); !there) return there;
  const int cores = available_cores();
  const std::uint32_t threads = settings.threads != 0
                                    ? settings.threads
                                    : std::max(1U, static_cast<std::uint32_t>(cores) /
                                                       (settings.workers * settings.pool_size));
  const auto available = available_memory_bytes();
  if (!available) return available.error();
  RegistryOptions how;
  how.paths = paths;
  how.packing = packing_options(settings);
  how.num_threads = cores;
  how.use_generation = settings.generation_config == "auto";
  how.max_model_len = settings.max_model_len;
  how.num_slots = settings.pool_size;
  how.keeps_images = cache_bytes != 0;
  how.rest = budget_of(settings);
  how.available_bytes = *available;
  how.allowed = std::move(*allowed);
  ModelRegistry registry(std::move(how), &images);
  if (settings.served_model_names.empty()) settings.served_model_names.push_back(model->name());
  auto first = registry.load(settings.served_model_names, *model);
  if (!first) return first.error();
  auto specs = load_others(others, paths, registry);
  if (!specs) return specs.error();
  std::printf("memory: %s (of %s available)\n", registry.budget().to_string().c_str(),
              format_bytes(*available).c_str());

  coalescer::ServerOptions options = server_options(settings);
  options.api_keys = std::move(*keys);
  forkpool::PoolOptions pool = pool_options(settings, threads);
  // A share of it is in each pool: it goes after them.
  std::unique_ptr<kvsnap::Store> spill_store;
  if (!spill_s3->empty()) {
    auto opened = kvsnap::open_s3_store(s3_options(settings.s3));
    if (!opened) return make_error(opened.error().code, "--spill-s3: " + opened.error().message);
    spill_store = *std::move(opened);
    pool.spill_store = spill_store.get();
    pool.spill_url = *spill_s3;
    pool.spill_store_bytes = settings.spill_s3_bytes;
    // A slot that changes hands waits for no network; the files are there when it comes back.
    pool.puts_at_end = !serves_several(settings);
  }
  std::unique_ptr<PoolBackend> one;
  std::unique_ptr<ModelBackend> several;
  coalescer::Backend* backend = nullptr;
  if (serves_several(settings)) {
    specs->insert(specs->begin(), std::move(*first));
    several = std::make_unique<ModelBackend>(model_pool_options(settings), std::move(*specs),
                                             forkpool::fork_pool_slots(pool));
    registry.attach(&several->pool());
    options.admin = &registry;
    backend = several.get();
  } else {
    auto started = PoolBackend::start(pool, std::move(first->weights));
    if (!started) return started.error();
    one = std::move(*started);
    if (auto kept =
            load_kv_snapshots(*one, settings.kv_snapshots,
                              seconds_to<std::chrono::milliseconds>(settings.boot_timeout_s));
        !kept) {
      return kept;
    }
    backend = one.get();
  }
  auto server = coalescer::Server::create(options, backend, registry.models());
  if (!server) return server.error();

  // On stdout, because scripts that asked for a free port read it there.
  std::string names = settings.served_model_names.front();
  for (const Registration& other : others)
    names += ", " + other.name;
  std::printf("serving %s at http://%s:%u/v1\n", names.c_str(), options.host.c_str(),
              static_cast<unsigned>((*server)->port()));
  std::fflush(stdout);
  const auto drain_timeout = seconds_to<std::chrono::milliseconds>(settings.drain_timeout_s);
  serve_until_signal(**server, signals, drain_timeout);
  backend->set_event_sink(nullptr);
  server->reset();
  // With a spill directory the last trunks are written first.
  constexpr std::chrono::milliseconds kShutdown{2000};
  const auto last = settings.spill_dir.empty() ? kShutdown : std::max(kShutdown, drain_timeout);
  if (several != nullptr) several->pool().shutdown(last);
  if (one != nullptr) one->pool().shutdown(last);
  logger("serve")->info("stopped");
  return {};
}

}  // namespace thaw::cli

#include "cli/serve_host.h"

#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "cli/api_keys.h"
#include "cli/kv_snapshot.h"
#include "cli/memory_budget.h"
#include "cli/model_backend.h"
#include "cli/model_loader.h"
#include "cli/model_registry.h"
#include "cli/pool_backend.h"
#include "cli/remote_files.h"
#include "cli/serve_options.h"
#include "engine/base/device_name.h"
#include "engine/base/log.h"
#ifdef THAW_WITH_CUDA
#include "engine/cuda/device_info.h"
#endif

namespace thaw::cli {
namespace {

using Say = std::function<void(const std::string&)>;

int available_cores() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return 1;
}

// A GPU that is not there is found before the model is read, and not by workers one after another.
Result<void> check_device(const ServeSettings& settings, const Say& say) {
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
      say("device: " + info->name + ", " + format_bytes(info->total_bytes));
    }
  }
  return {};
#else
  static_cast<void>(say);
  return make_error(Errc::kUnsupported,
                    "--device " + settings.device + ": this build has no CUDA (THAW_CUDA=ON)");
#endif
}

// The client's threads and connections end before the workers start.
Result<std::string> fetch_snapshot(const ServeSettings& settings, const ModelPaths& paths,
                                   const Say& say) {
  const auto remote = RemoteFiles::open(settings.s3, paths.snapshots);
  if (!remote) return remote.error();
  say("[thaw] fetching " + settings.snapshot);
  return (*remote)->fetch_weights(settings.snapshot);
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

/// Errors: settings that exclude each other, named.
Result<void> check_settings(ServeSettings& settings) {
  if (auto settled = settle_device(settings); !settled) return settled;
  if (auto checked = check_sessions(settings); !checked) return checked;
  if (settings.dtype != "native" && settings.quantize != "none") {
    return make_error(Errc::kInvalidArgument,
                      "--quantize " + settings.quantize + " and --dtype " + settings.dtype +
                          " exclude each other: both say what becomes of the weights");
  }
  if (serves_several(settings) && !settings.kv_snapshots.empty()) {
    return make_error(Errc::kInvalidArgument,
                      "--kv-snapshot goes with one model; leave out --register, --snapshot-dir and "
                      "--pool-size");
  }
  return {};
}

/// The model that the server begins with, its files opened.
Result<ModelLoader> open_model(ServeSettings& settings, const ModelPaths& paths, const Say& say) {
  if (settings.snapshot.empty() && is_remote(settings.model))
    std::swap(settings.snapshot, settings.model);
  const bool is_snapshot = !settings.snapshot.empty();
  const std::string snapshot = settings.snapshot;
  if (is_remote(snapshot)) {
    auto fetched = fetch_snapshot(settings, paths, say);
    if (!fetched) return std::move(fetched).error();
    settings.snapshot = *std::move(fetched);
  }
  auto model = is_snapshot ? ModelLoader::open_snapshot(settings.snapshot, settings.model, paths,
                                                        settings.verify ? kvsnap::Verify::kChecksums
                                                                        : kvsnap::Verify::kNothing)
                           : ModelLoader::open(settings.model, paths);
  if (!model) return model;
  if (!settings.chat_template.empty()) {
    auto chat_template = read_template_file(settings.chat_template);
    if (!chat_template)
      return make_error(chat_template.error().code,
                        "--chat-template: " + chat_template.error().message);
    model->use_chat_template(*std::move(chat_template));
  }
  if (is_snapshot) {
    say("[thaw] restoring " + model->name() + " from " + snapshot +
        (settings.verify ? "" : " unchecked (THAW_VERIFY=0)"));
  } else if (settings.model.empty()) {
    say("no model given: serving the default one, " + model->path());
  }
  return model;
}

}  // namespace

// Destroyed from the last member to the first: a share of the store is in each pool, the pools send
// events to the server, which asks the registry.
struct ServeHost::Impl {
  ServeSettings settings;
  std::vector<std::string> names;
  std::unique_ptr<model::ImageCache> images;
  std::unique_ptr<ModelRegistry> registry;
  std::unique_ptr<kvsnap::Store> spill_store;
  std::unique_ptr<PoolBackend> one;
  std::unique_ptr<ModelBackend> several;
  std::uint16_t port = 0;
  std::mutex mutex;
  std::unique_ptr<coalescer::Server> server;  // null once it has run; that is guarded by mutex

  coalescer::Backend* backend() const {
    return one != nullptr ? static_cast<coalescer::Backend*>(one.get()) : several.get();
  }
  Result<std::vector<forkpool::ModelSpec>> load_models(const ModelPaths& paths,
                                                       const std::vector<Registration>& others,
                                                       AllowedDirectories allowed, const Say& say);
  Result<void> start_pool(const std::string& worker_binary, const std::string& spill_url,
                          std::vector<forkpool::ModelSpec> specs);
  std::uint32_t threads_per_worker() const;
};

std::uint32_t ServeHost::Impl::threads_per_worker() const {
  if (settings.threads != 0) return settings.threads;
  const auto cores = static_cast<std::uint32_t>(available_cores());
  return std::max(1U, cores / (settings.workers * settings.pool_size));
}

Result<std::vector<forkpool::ModelSpec>> ServeHost::Impl::load_models(
    const ModelPaths& paths, const std::vector<Registration>& others, AllowedDirectories allowed,
    const Say& say) {
  // Weights that nobody compared with their checksums are not kept for those who do.
  const bool unchecked =
      (!settings.snapshot.empty() || is_remote(settings.model)) && !settings.verify;
  const std::uint64_t cache_bytes = unchecked ? 0 : settings.image_cache_bytes;
  images = std::make_unique<model::ImageCache>(
      model::ImageCacheOptions{paths.images, cache_bytes, settings.verify_weights});
  const auto model = open_model(settings, paths, say);
  if (!model) return model.error();
  if (auto there = check_device(settings, say); !there) return there.error();
  const auto available = available_memory_bytes();
  if (!available) return available.error();
  RegistryOptions how;
  how.paths = paths;
  how.packing = packing_options(settings);
  how.num_threads = available_cores();
  how.use_generation = settings.generation_config == "auto";
  how.max_model_len = settings.max_model_len;
  how.num_slots = settings.pool_size;
  how.keeps_images = cache_bytes != 0;
  how.rest = budget_of(settings);
  how.available_bytes = *available;
  how.allowed = std::move(allowed);
  registry = std::make_unique<ModelRegistry>(std::move(how), images.get());
  if (settings.served_model_names.empty()) settings.served_model_names.push_back(model->name());
  auto first = registry->load(settings.served_model_names, *model);
  if (!first) return first.error();
  auto specs = load_others(others, paths, *registry);
  if (!specs) return specs;
  specs->insert(specs->begin(), std::move(*first));
  say("memory: " + registry->budget().to_string() + " (of " + format_bytes(*available) +
      " available)");
  return specs;
}

Result<void> ServeHost::Impl::start_pool(const std::string& worker_binary,
                                         const std::string& spill_url,
                                         std::vector<forkpool::ModelSpec> specs) {
  forkpool::PoolOptions pool = pool_options(settings, threads_per_worker());
  // Not by its path: an upgrade may put another binary there while this one serves.
  pool.worker_binary = worker_binary.empty() ? "/proc/self/exe" : worker_binary;
  if (!spill_url.empty()) {
    auto opened = kvsnap::open_s3_store(s3_options(settings.s3));
    if (!opened) return make_error(opened.error().code, "--spill-s3: " + opened.error().message);
    spill_store = *std::move(opened);
    pool.spill_store = spill_store.get();
    pool.spill_url = spill_url;
    pool.spill_store_bytes = settings.spill_s3_bytes;
    // A slot that changes hands waits for no network; the files are there when it comes back.
    pool.puts_at_end = !serves_several(settings);
  }
  if (serves_several(settings)) {
    several = std::make_unique<ModelBackend>(model_pool_options(settings), std::move(specs),
                                             forkpool::fork_pool_slots(pool));
    registry->attach(&several->pool());
    return {};
  }
  auto started = PoolBackend::start(pool, std::move(specs.front().weights));
  if (!started) return started.error();
  one = std::move(*started);
  return load_kv_snapshots(*one, settings.kv_snapshots,
                           seconds_to<std::chrono::milliseconds>(settings.boot_timeout_s));
}

ServeHost::ServeHost(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

ServeHost::~ServeHost() {
  if (auto* backend = impl_->backend()) backend->set_event_sink(nullptr);
}

Result<std::unique_ptr<ServeHost>> ServeHost::start(ServeSettings settings, const ModelPaths& paths,
                                                    ServeHostOptions options) {
  const Say say = options.say ? std::move(options.say) : [](const std::string&) {};
  set_log_level(settings.log_level);
  if (auto checked = check_settings(settings); !checked) return checked.error();
  const auto spill = spill_url(settings);
  if (!spill) return spill.error();
  auto keys = load_api_keys(settings.api_keys, settings.api_key_file);
  if (!keys) return keys.error();
  if (auto admins = check_admins(settings, *keys); !admins) return admins.error();
  auto registrations = parse_registrations(settings.registered);
  if (!registrations) return registrations.error();
  const auto others = take_first_model(settings, std::move(*registrations));
  auto allowed = AllowedDirectories::open(settings.snapshot_dirs);
  if (!allowed) return allowed.error();

  auto impl = std::make_unique<Impl>();
  impl->settings = std::move(settings);
  auto specs = impl->load_models(paths, others, std::move(*allowed), say);
  if (!specs) return specs.error();
  impl->names = {impl->settings.served_model_names.front()};
  for (const Registration& other : others)
    impl->names.push_back(other.name);
  if (auto started = impl->start_pool(options.worker_binary, *spill, std::move(*specs)); !started)
    return started.error();
  coalescer::ServerOptions server = server_options(impl->settings);
  server.listens = options.listens;
  server.api_keys = std::move(*keys);
  if (impl->several != nullptr) server.admin = impl->registry.get();
  auto created =
      coalescer::Server::create(std::move(server), impl->backend(), impl->registry->models());
  if (!created) return created.error();
  impl->server = std::move(*created);
  impl->port = impl->server->port();
  return std::unique_ptr<ServeHost>(new ServeHost(std::move(impl)));
}

const std::vector<std::string>& ServeHost::model_names() const {
  return impl_->names;
}

std::uint16_t ServeHost::port() const {
  return impl_->port;
}

Result<UniqueFd> ServeHost::connect() {
  const std::scoped_lock lock(impl_->mutex);
  if (impl_->server == nullptr) return make_error(Errc::kUnavailable, "the server has stopped");
  return impl_->server->connect();
}

Result<void> ServeHost::wait_ready(std::chrono::milliseconds deadline) const {
  constexpr std::chrono::milliseconds kLook{2};
  const auto end = std::chrono::steady_clock::now() + deadline;
  for (;;) {
    const PoolStatus status = impl_->backend()->status();
    if (status.ready) return {};
    if (!status.failure.empty()) return make_error(Errc::kUnavailable, status.failure);
    if (std::chrono::steady_clock::now() >= end) {
      return make_error(Errc::kDeadlineExceeded,
                        "no worker served within " + std::to_string(deadline.count()) + " ms");
    }
    std::this_thread::sleep_for(kLook);
  }
}

void ServeHost::run() {
  impl_->server->run();
  impl_->backend()->set_event_sink(nullptr);
  {
    const std::scoped_lock lock(impl_->mutex);
    impl_->server.reset();
  }
  // With a spill directory the last trunks are written first.
  constexpr std::chrono::milliseconds kShutdown{2000};
  const auto drain = seconds_to<std::chrono::milliseconds>(impl_->settings.drain_timeout_s);
  const auto last = impl_->settings.spill_dir.empty() ? kShutdown : std::max(kShutdown, drain);
  if (impl_->several != nullptr) impl_->several->pool().shutdown(last);
  if (impl_->one != nullptr) impl_->one->pool().shutdown(last);
  logger("serve")->info("stopped");
}

void ServeHost::stop(std::chrono::milliseconds drain_timeout) {
  const std::scoped_lock lock(impl_->mutex);
  if (impl_->server != nullptr) impl_->server->stop(drain_timeout);
}

}  // namespace thaw::cli

#include "kvsnap/store/s3_runtime.h"

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <utility>

#include <aws/auth/credentials.h>
#include <aws/auth/signing_config.h>
#include <aws/common/byte_buf.h>
#include <aws/common/string.h>
#include <aws/http/connection.h>
#include <aws/io/channel_bootstrap.h>
#include <aws/io/event_loop.h>
#include <aws/io/host_resolver.h>
#include <aws/io/tls_channel_handler.h>
#include <aws/io/uri.h>
#include <aws/s3/s3.h>
#include <aws/s3/s3_client.h>
#include <aws/sdkutils/aws_profile.h>

#include "kvsnap/store/s3_live.h"
#include "kvsnap/store/s3_tls_watch.h"

namespace thaw::kvsnap {
namespace {

constexpr std::chrono::milliseconds kShutdownDeadline{10'000};
constexpr std::chrono::milliseconds kTlsShutdownDeadline{200};  // these are held for longer
constexpr std::chrono::seconds kCredentialsDeadline{30};
constexpr std::uint16_t kEventLoops = 2;  // one fills a 10 Gbit/s link
constexpr std::size_t kMaxHosts = 8;
constexpr std::uint64_t kMinMemoryBytes = std::uint64_t{512} << 20;
constexpr std::size_t kMaxRetries = 5;
constexpr std::uint32_t kFirstPauseMs = 200;
constexpr std::uint32_t kLongestPauseS = 5;

void init_library() {
  static std::once_flag once;
  // Never cleaned up: it holds tables, no threads.
  std::call_once(once, [] {
    watch_tls();
    aws_s3_library_init(aws_default_allocator());
  });
}

aws_byte_cursor cursor_of(const std::string& text) {
  return aws_byte_cursor_from_array(text.data(), text.size());
}

std::string last_error() {
  return aws_error_str(aws_last_error());
}

/// Counts what is not shut down yet.
struct Shutdowns {
  std::mutex mutex;
  std::condition_variable changed;
  int pending = 0;  // guarded by mutex

  void begin() {
    const std::lock_guard lock(mutex);
    ++pending;
  }
  static void end(void* key) {
    const auto self = find_live<Shutdowns>(key);
    if (!self) return;
    const std::lock_guard lock(self->mutex);
    --self->pending;
    self->changed.notify_all();
  }
};

struct CredentialsAnswer {
  std::mutex mutex;
  std::condition_variable changed;
  bool is_there = false;  // guarded by mutex
  int code = 0;  // guarded by mutex

  static void take(aws_credentials* credentials, int error_code, void* key) {
    const auto self = find_live<CredentialsAnswer>(key);
    if (!self) return;
    const std::lock_guard lock(self->mutex);
    self->is_there = true;
    self->code = credentials == nullptr && error_code == 0 ? AWS_ERROR_UNKNOWN : error_code;
    self->changed.notify_all();
  }
};

}  // namespace

struct S3Runtime::Parts {
  aws_allocator* allocator = aws_default_allocator();
  std::shared_ptr<Shutdowns> shutdowns = make_live<Shutdowns>();
  aws_event_loop_group* loops = nullptr;
  aws_host_resolver* resolver = nullptr;
  aws_client_bootstrap* bootstrap = nullptr;
  aws_tls_ctx* tls = nullptr;
  aws_credentials_provider* credentials = nullptr;
  aws_s3_client* client = nullptr;
  aws_uri endpoint{};
  bool has_endpoint = false;
  bool is_tls = true;
};

S3Runtime::S3Runtime(S3Options options)
    : options_(std::move(options)), parts_(std::make_unique<Parts>()) {}

Result<std::unique_ptr<S3Runtime>> S3Runtime::create(const S3Options& options) {
  init_library();
  std::unique_ptr<S3Runtime> runtime(new S3Runtime(options));
  if (auto started = runtime->start(); !started) return std::move(started).error();
  return runtime;
}

S3Runtime::~S3Runtime() {
  Parts& parts = *parts_;
  aws_s3_client_release(parts.client);
  aws_credentials_provider_release(parts.credentials);
  aws_client_bootstrap_release(parts.bootstrap);
  aws_host_resolver_release(parts.resolver);
  aws_event_loop_group_release(parts.loops);
  aws_tls_ctx_release(parts.tls);
  if (parts.has_endpoint) aws_uri_clean_up(&parts.endpoint);
  Shutdowns& shutdowns = *parts.shutdowns;
  {
    std::unique_lock lock(shutdowns.mutex);
    const auto deadline = tls_failures().count > 0 ? kTlsShutdownDeadline : kShutdownDeadline;
    shutdowns.changed.wait_for(lock, deadline, [&] { return shutdowns.pending == 0; });
  }
  end_live(parts.shutdowns.get());
}

Result<void> S3Runtime::start() {
  Parts& parts = *parts_;
  if (!options_.endpoint.empty()) {
    const aws_byte_cursor text = cursor_of(options_.endpoint);
    const bool is_http = options_.endpoint.starts_with("http://");
    parts.is_tls = !is_http;
    const bool has_scheme = is_http || options_.endpoint.starts_with("https://");
    parts.has_endpoint =
        has_scheme && aws_uri_init_parse(&parts.endpoint, parts.allocator, &text) == 0;
    const std::size_t path_bytes = parts.has_endpoint ? aws_uri_path(&parts.endpoint)->len : 0;
    if (!parts.has_endpoint || aws_uri_host_name(&parts.endpoint)->len == 0 || path_bytes > 1) {
      return make_error(Errc::kInvalidArgument, "'" + options_.endpoint +
                                                    "' is no S3 endpoint; http://HOST:PORT or "
                                                    "https://HOST is one");
    }
  }
  aws_event_loop_group_options loops{};
  loops.loop_count = kEventLoops;
  parts.shutdowns->begin();
  aws_shutdown_callback_options ended{&Shutdowns::end, parts.shutdowns.get()};
  loops.shutdown_options = &ended;
  parts.loops = aws_event_loop_group_new(parts.allocator, &loops);
  aws_host_resolver_default_options resolver{};
  resolver.el_group = parts.loops;
  resolver.max_entries = kMaxHosts;
  if (parts.loops == nullptr) Shutdowns::end(parts.shutdowns.get());
  if (parts.loops != nullptr)
    parts.resolver = aws_host_resolver_new_default(parts.allocator, &resolver);
  if (parts.resolver == nullptr)
    return make_error(Errc::kResourceExhausted, "S3 client: cannot start: " + last_error());
  aws_client_bootstrap_options bootstrap{};
  bootstrap.event_loop_group = parts.loops;
  bootstrap.host_resolver = parts.resolver;
  parts.bootstrap = aws_client_bootstrap_new(parts.allocator, &bootstrap);
  if (auto started = start_tls(); !started) return started;
  if (auto found = find_credentials(); !found) return found;
  return start_client();
}

/// Also for credentials that are fetched, where the endpoint itself goes without.
Result<void> S3Runtime::start_tls() {
  aws_tls_ctx_options tls{};
  aws_tls_ctx_options_init_default_client(&tls, parts_->allocator);
  Result<void> done;
  if (!options_.ca_bundle.empty() && aws_tls_ctx_options_override_default_trust_store_from_path(
                                         &tls, nullptr, options_.ca_bundle.c_str()) != 0) {
    done = make_error(Errc::kInvalidArgument, "AWS_CA_BUNDLE: cannot read certificates from " +
                                                  options_.ca_bundle + ": " + last_error());
  }
  if (done) parts_->tls = aws_tls_client_ctx_new(parts_->allocator, &tls);
  if (done && parts_->tls == nullptr)
    done = make_error(Errc::kUnavailable, "S3 client: no TLS: " + last_error());
  aws_tls_ctx_options_clean_up(&tls);
  return done;
}

Result<void> S3Runtime::find_credentials() {
  Parts& parts = *parts_;
  aws_credentials_provider_chain_default_options chain{};
  chain.bootstrap = parts.bootstrap;
  chain.tls_ctx = parts.tls;
  parts.shutdowns->begin();
  chain.shutdown_options = {&Shutdowns::end, parts.shutdowns.get()};
  parts.credentials = aws_credentials_provider_new_chain_default(parts.allocator, &chain);
  if (parts.credentials == nullptr) Shutdowns::end(parts.shutdowns.get());
  // The library's reason is that of the last of many places.
  const auto none = [](const std::string& when = "") {
    return make_error(Errc::kUnauthenticated,
                      "S3: no credentials" + when +
                          "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE");
  };
  if (parts.credentials == nullptr) return none();
  // Asked for here, so that it is this error, and not one of the first request.
  const auto answer = make_live<CredentialsAnswer>();
  Result<void> found;
  if (aws_credentials_provider_get_credentials(parts.credentials, &CredentialsAnswer::take,
                                               answer.get()) != 0) {
    found = none();
  } else {
    std::unique_lock lock(answer->mutex);
    answer->changed.wait_for(lock, kCredentialsDeadline, [&] { return answer->is_there; });
    if (!answer->is_there) found = none(" came in time");
    if (answer->code != 0) found = none();
  }
  end_live(answer.get());
  return found;
}

Result<void> S3Runtime::start_client() {
  Parts& parts = *parts_;
  aws_signing_config_aws signing{};
  aws_s3_init_default_signing_config(&signing, cursor_of(options_.region), parts.credentials);
  aws_tls_connection_options tls{};
  aws_tls_connection_options_init_from_ctx(&tls, parts.tls);
  const auto timeout_s =
      static_cast<std::uint32_t>(std::chrono::ceil<std::chrono::seconds>(options_.timeout).count());
  aws_http_connection_monitoring_options monitoring{};
  monitoring.minimum_throughput_bytes_per_second = 1;
  // Each attempt gets its share, so that one that hangs leaves time for others.
  monitoring.allowable_throughput_failure_interval_seconds = std::max(2U, timeout_s / 4);

  aws_s3_client_config config{};
  config.max_active_connections_override = options_.concurrency;
  config.region = cursor_of(options_.region);
  config.client_bootstrap = parts.bootstrap;
  config.tls_mode = parts.is_tls ? AWS_MR_TLS_ENABLED : AWS_MR_TLS_DISABLED;
  config.tls_connection_options = parts.is_tls ? &tls : nullptr;
  config.signing_config = &signing;
  config.part_size = options_.part_bytes;
  config.multipart_upload_threshold =
      std::max(options_.part_bytes, options_.multipart_threshold_bytes);
  // Of parts on their way: one a connection, and as many that wait for those before them.
  config.memory_limit_in_bytes =
      std::max(kMinMemoryBytes, 2 * options_.concurrency * options_.part_bytes);
  config.retry_config.max_retries = kMaxRetries;
  config.retry_config.backoff_scale_factor_ms = kFirstPauseMs;
  config.retry_config.max_backoff_secs = kLongestPauseS;
  config.connect_timeout_ms =
      static_cast<std::uint32_t>(std::max<std::int64_t>(1000, options_.timeout.count() / 6));
  config.monitoring_options = &monitoring;
  parts.shutdowns->begin();
  config.shutdown_callback = &Shutdowns::end;
  config.shutdown_callback_user_data = parts.shutdowns.get();
  parts.client = aws_s3_client_new(parts.allocator, &config);
  aws_tls_connection_options_clean_up(&tls);
  if (parts.client != nullptr) return {};
  Shutdowns::end(parts.shutdowns.get());
  return make_error(Errc::kInvalidArgument, "S3 client: cannot start: " + last_error());
}

aws_allocator* S3Runtime::allocator() const {
  return parts_->allocator;
}

aws_s3_client* S3Runtime::client() const {
  return parts_->client;
}

const aws_uri* S3Runtime::endpoint() const {
  return parts_->has_endpoint ? &parts_->endpoint : nullptr;
}

/// Names with dots have no certificate.
bool S3Runtime::is_in_host_name(const std::string& bucket) const {
  return !parts_->has_endpoint && bucket.find('.') == std::string::npos;
}

std::string S3Runtime::host_of(const S3Url& url) const {
  if (parts_->has_endpoint) {
    const aws_byte_cursor* authority = aws_uri_authority(&parts_->endpoint);
    return {reinterpret_cast<const char*>(authority->ptr), authority->len};
  }
  const std::string domain =
      options_.region.starts_with("cn-") ? ".amazonaws.com.cn" : ".amazonaws.com";
  const std::string host = "s3." + options_.region + domain;
  return is_in_host_name(url.bucket) ? url.bucket + "." + host : host;
}

std::string S3Runtime::path_of(const S3Url& url) const {
  aws_byte_buf encoded{};
  aws_byte_buf_init(&encoded, parts_->allocator, 3 * url.key.size() + 1);
  const aws_byte_cursor key = cursor_of(url.key);
  aws_byte_buf_append_encoding_uri_path(&encoded, &key);
  std::string path = is_in_host_name(url.bucket) ? "/" : "/" + url.bucket + "/";
  path.append(reinterpret_cast<const char*>(encoded.buffer), encoded.len);
  aws_byte_buf_clean_up(&encoded);
  return path;
}

std::string S3Runtime::shown_endpoint() const {
  return options_.endpoint.empty() ? "S3 in " + options_.region : options_.endpoint;
}

std::string aws_profile_setting(const std::string& name) {
  init_library();
  aws_allocator* allocator = aws_default_allocator();
  std::string found;
  aws_string* path = aws_get_config_file_path(allocator, nullptr);
  aws_string* profile_name = aws_get_profile_name(allocator, nullptr);
  aws_string* property_name = aws_string_new_from_array(
      allocator, reinterpret_cast<const std::uint8_t*>(name.data()), name.size());
  aws_profile_collection* profiles =
      path != nullptr && std::filesystem::exists(aws_string_c_str(path))
          ? aws_profile_collection_new_from_file(allocator, path, AWS_PST_CONFIG)
          : nullptr;
  if (profiles != nullptr && profile_name != nullptr) {
    const aws_profile* profile = aws_profile_collection_get_profile(profiles, profile_name);
    const aws_profile_property* property =
        profile == nullptr ? nullptr : aws_profile_get_property(profile, property_name);
    if (property != nullptr) found = aws_string_c_str(aws_profile_property_get_value(property));
  }
  aws_profile_collection_release(profiles);
  aws_string_destroy(property_name);
  aws_string_destroy(profile_name);
  aws_string_destroy(path);
  return found;
}

}  // namespace thaw::kvsnap

#include "cli/s3_settings.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

namespace thaw::cli {
namespace {

// What S3 takes as a part, and what is sane.
constexpr std::uint32_t kMinPartMb = 5;
constexpr std::uint32_t kMaxPartMb = 1024;
constexpr std::uint32_t kMaxConcurrency = 256;

/// The first variable that is set and not empty.
std::string environment(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const char* value = std::getenv(name); value != nullptr && *value != '\0') return value;
  return {};
}

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

}  // namespace

void add_s3_options(CLI::App& command, S3Settings& settings) {
  const std::string group = "S3";
  command
      .add_option("--s3-endpoint", settings.endpoint,
                  "http://HOST:PORT or https://HOST that speaks S3; default: AWS_ENDPOINT_URL_S3, "
                  "AWS_ENDPOINT_URL, the profile's, else AWS")
      ->group(group);
  command
      .add_option("--s3-region", settings.region,
                  "Default: AWS_REGION, AWS_DEFAULT_REGION, the profile's, else us-east-1")
      ->group(group);
  command.add_option("--s3-concurrency", settings.concurrency, "Connections at once")
      ->envname("THAW_S3_CONCURRENCY")
      ->check(CLI::Range(1U, kMaxConcurrency))
      ->capture_default_str()
      ->group(group);
  command.add_option("--s3-part-size-mb", settings.part_size_mb, "MiB of a part, at most")
      ->envname("THAW_S3_PART_SIZE_MB")
      ->check(CLI::Range(kMinPartMb, kMaxPartMb))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--s3-multipart-threshold-mb", settings.multipart_threshold_mb,
                  "Files of more MiB are uploaded in parts")
      ->envname("THAW_S3_MULTIPART_THRESHOLD_MB")
      ->check(CLI::Range(kMinPartMb, kMaxPartMb))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--s3-timeout", settings.timeout_s,
                  "Seconds for an operation, besides what its bytes take at 256 KiB/s")
      ->envname("THAW_S3_TIMEOUT")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--s3-cache-bytes", settings.cache_bytes,
                  "Most that local copies of snapshots take below $THAW_CACHE_DIR; those that were "
                  "not used for longest go. 0: none goes")
      ->envname("THAW_S3_CACHE_BYTES")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str()
      ->group(group);
}

kvsnap::S3Options s3_options(const S3Settings& settings) {
  constexpr std::uint64_t kMiB = 1U << 20;
  kvsnap::S3Options options;
  const auto first = [](const std::string& flag, std::initializer_list<const char*> variables,
                        const char* profile_key) {
    if (!flag.empty()) return flag;
    const std::string value = environment(variables);
    return value.empty() ? kvsnap::aws_profile_setting(profile_key) : value;
  };
  options.endpoint =
      first(settings.endpoint, {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}, "endpoint_url");
  const std::string region = first(settings.region, {"AWS_REGION", "AWS_DEFAULT_REGION"}, "region");
  if (!region.empty()) options.region = region;
  options.ca_bundle = first("", {"AWS_CA_BUNDLE"}, "ca_bundle");
  options.upload_checksums = lower(first("", {"AWS_REQUEST_CHECKSUM_CALCULATION"},
                                         "request_checksum_calculation")) != "when_required";
  options.concurrency = settings.concurrency;
  options.part_bytes = settings.part_size_mb * kMiB;
  options.multipart_threshold_bytes = settings.multipart_threshold_mb * kMiB;
  options.timeout = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::duration<double>(settings.timeout_s));
  return options;
}

}  // namespace thaw::cli

#pragma once

#include <cstdint>
#include <string>

#include <CLI/CLI.hpp>

#include "kvsnap/store/s3_options.h"

namespace thaw::cli {

/// How s3:// URLs are reached, as flags and variables say (docs/configuration.md).
struct S3Settings {
  std::string endpoint;
  std::string region;
  std::uint32_t concurrency = 32;
  std::uint32_t part_size_mb = 16;
  std::uint32_t multipart_threshold_mb = 16;
  double timeout_s = 60;
  std::uint64_t cache_bytes = 0;  ///< of local copies; 0: no bound
};

/// Declares --s3-... on `command`; they write to `settings`, which must outlive the parse.
void add_s3_options(CLI::App& command, S3Settings& settings);

/// With what flags leave out taken from where AWS's own programs look: AWS_ENDPOINT_URL_S3,
/// AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION, AWS_CA_BUNDLE,
/// AWS_REQUEST_CHECKSUM_CALCULATION, the profile.
kvsnap::S3Options s3_options(const S3Settings& settings);

}  // namespace thaw::cli

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/base/result.h"
#include "kvsnap/store/store.h"

namespace thaw::kvsnap {

/// How S3, or what speaks its protocol, is reached.
struct S3Options {
  /// http://HOST[:PORT] or https://...; buckets are the first part of the path there. Empty: AWS's
  /// of the region, with the bucket in the host's name.
  std::string endpoint;
  std::string region = "us-east-1";
  std::string ca_bundle;  ///< file of certificates to trust; empty: the system's
  std::uint32_t concurrency = 32;  ///< connections at once
  std::uint64_t part_bytes = std::uint64_t{16} << 20;  ///< of a range or part, at most
  /// Larger objects are uploaded in parts.
  std::uint64_t multipart_threshold_bytes = std::uint64_t{16} << 20;
  /// A CRC32C goes along with every upload, which the store compares.
  bool upload_checksums = true;
  /// For a connection to do nothing, and for every operation besides what its bytes take at
  /// 256 KiB/s.
  std::chrono::milliseconds timeout{60'000};
};

/// A store of s3:// URLs. Credentials are found as AWS's own programs do: the environment, the
/// profile, a web identity, the container's or instance's role. Failed requests are sent again,
/// five times at most, after growing pauses. Errors: kUnsupported where the build has no S3,
/// kUnauthenticated without credentials, kInvalidArgument for a bad endpoint or bundle.
Result<std::unique_ptr<Store>> open_s3_store(const S3Options& options);

/// Whether open_s3_store() can work.
bool build_has_s3();

/// A setting of the profile that AWS's programs would use, such as "region"; empty where there is
/// none, and in a build without S3.
std::string aws_profile_setting(const std::string& name);

}  // namespace thaw::kvsnap

#pragma once

#include <memory>
#include <string>

#include "engine/base/result.h"
#include "kvsnap/store/s3_options.h"
#include "kvsnap/store/s3_url.h"

// NOLINTBEGIN(readability-identifier-naming): the library's
struct aws_allocator;
struct aws_s3_client;
struct aws_uri;
// NOLINTEND(readability-identifier-naming)

namespace thaw::kvsnap {

/// The client library at work: its threads, TLS, credentials and connections. Thread-safe.
class S3Runtime {
 public:
  /// Errors: open_s3_store()'s.
  static Result<std::unique_ptr<S3Runtime>> create(const S3Options& options);
  S3Runtime(const S3Runtime&) = delete;
  S3Runtime& operator=(const S3Runtime&) = delete;
  /// Returns when the library's threads have ended, or after ten seconds; at once where a TLS
  /// handshake failed, since they linger then.
  ~S3Runtime();

  const S3Options& options() const { return options_; }
  aws_allocator* allocator() const;
  aws_s3_client* client() const;
  /// Null where it follows from the host.
  const aws_uri* endpoint() const;
  /// Of the bucket's requests, as the Host header has it.
  std::string host_of(const S3Url& url) const;
  /// Encoded, with the bucket where that is not in the host's name.
  std::string path_of(const S3Url& url) const;
  /// What people know the endpoint by.
  std::string shown_endpoint() const;

 private:
  struct Parts;
  explicit S3Runtime(S3Options options);
  Result<void> start();
  Result<void> start_tls();
  Result<void> find_credentials();
  Result<void> start_client();
  bool is_in_host_name(const std::string& bucket) const;

  S3Options options_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace thaw::kvsnap

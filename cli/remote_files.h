#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cli/s3_settings.h"
#include "engine/base/result.h"
#include "kvsnap/store/object_cache.h"
#include "kvsnap/store/store_io.h"

namespace thaw::cli {

/// Whether `name` is a URL of a store, and no file.
bool is_remote(const std::string& name);

/// What lies in S3, for commands that know files.
class RemoteFiles {
 public:
  /// `directory` gets local copies and what is on its way. Errors: kvsnap::open_s3_store()'s.
  static Result<std::unique_ptr<RemoteFiles>> open(const S3Settings& settings,
                                                   const std::string& directory);

  kvsnap::FileIo& io() { return io_; }

  /// Fails where put() into `url` is sure to, before there is something to put.
  Result<void> check_output(const std::string& url);
  /// A local copy of a .thaw file and of its shards; the path of rank 0's. Errors: those of
  /// ObjectCache and ContainerReader; kNotFound where a shard is missing.
  Result<std::string> fetch_weights(const std::string& url);

 private:
  RemoteFiles(std::unique_ptr<kvsnap::Store> store, const std::string& directory,
              std::uint64_t max_bytes);

  std::unique_ptr<kvsnap::Store> store_;
  kvsnap::ObjectCache cache_;
  kvsnap::StoreIo io_;
};

}  // namespace thaw::cli

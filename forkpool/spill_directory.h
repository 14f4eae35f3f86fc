#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
#include "engine/base/types.h"
#include "kvsnap/file_io.h"
#include "kvsnap/kv_document.h"

namespace thaw::forkpool {

/// A directory of KV files, named by the chained hash of their last block: equal names hold equal
/// bytes, so that servers may share it. Each server counts what all of them wrote. Files are
/// removed, the least worthy first, where they would exceed the budget: seconds of prefill that a
/// file spares, for each of its bytes and each second that nobody used it. The time of a file's
/// last use is its modification time, which restarts and other servers see. Thread-safe: all of it
/// waits for the disk and belongs on the threads of a FileCrew.
class SpillDirectory {
 public:
  SpillDirectory(kvsnap::FileIo& io, std::string directory, std::uint64_t max_bytes)
      : io_(io), directory_(std::move(directory)), max_bytes_(max_bytes) {}

  struct File {
    std::string path;
    kvsnap::KvDocument document;
    std::vector<Hash128> names;  ///< of its blocks
  };
  struct Scan {
    std::vector<File> files;
    std::uint64_t num_refused = 0;  ///< damaged ones, which were removed
  };
  /// Creates the directory, for its owner only, removes what dead writers left and what is damaged
  /// on its face, and lists the rest. Errors: kIo.
  Result<Scan> scan(ThreadPool& threads);

  /// Where a trunk goes.
  std::string path_of(const Hash128& last_block) const;
  bool holds(const std::string& path) const;

  /// Removes files until `bytes` more fit, never those in `pinned`, and those in `last` after all
  /// others. The files that went. Errors: kResourceExhausted where they do not fit even so (nothing
  /// is removed then), kIo.
  Result<std::vector<std::string>> make_room(std::uint64_t bytes,
                                             const std::set<std::string>& pinned,
                                             const std::set<std::string>& last = {});
  /// Notes a use.
  void touch(const std::string& path) const;
  /// With what lies beside it.
  void remove(const std::string& path);

  struct Usage {
    std::uint64_t files = 0;
    std::uint64_t bytes = 0;
  };
  /// What lies there now, of all servers.
  Usage usage() const;

 private:
  struct Entry {
    std::string path;
    std::uint64_t bytes = 0;  ///< with the sidecar
    double age_seconds = 0;
  };
  std::vector<Entry> list() const;
  double prefill_seconds(const std::string& path);

  kvsnap::FileIo& io_;
  std::string directory_;
  std::uint64_t max_bytes_;
  mutable std::mutex mutex_;
  std::map<std::string, double> prefill_seconds_;  // by path; guarded by mutex_
};

}  // namespace thaw::forkpool

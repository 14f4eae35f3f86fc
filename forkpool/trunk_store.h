#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
#include "engine/base/types.h"
#include "kvsnap/file_io.h"
#include "kvsnap/kv_document.h"
#include "kvsnap/store/store.h"

namespace thaw::forkpool {

/// Files of trunks in a store, below a URL: a folder for each engine, and in it what a spill
/// directory holds, under the same names. Servers may share it: equal keys hold equal KV.
/// Thread-safe; all of it waits for the network and belongs on the threads of a FileCrew.
class TrunkStore {
 public:
  /// `url` ends without a slash. `io` writes what is fetched, and must outlive this.
  TrunkStore(std::unique_ptr<kvsnap::Store> store, std::string url, kvsnap::FileIo& io);

  struct Object {
    std::string key;  ///< ENGINE/BLOCK.thawkv
    std::uint64_t bytes = 0;
    std::int64_t modified = 0;  ///< seconds since the epoch
  };
  /// The trunks of all engines; what else lies there is left out. Errors: Store::list()'s.
  Result<std::vector<Object>> list();

  /// Where the file `path` of a spill directory goes.
  static std::string key_of(const Hash128& engine, const std::string& path);
  /// Where a trunk goes.
  static std::string key_of(const Hash128& engine, const Hash128& last_block);
  static bool is_of(const Hash128& engine, const std::string& key);

  struct Description {
    kvsnap::KvDocument document;
    std::vector<Hash128> names;  ///< of its blocks
  };
  /// What an object holds; its KV is not read. Errors: KvFile::open()'s; kDataLoss where it is
  /// not what its key says.
  Result<Description> describe(const std::string& key, ThreadPool& threads);

  /// Copies a file, unless the store has it. The bytes that it has; 0 where those are more than
  /// `max_bytes` (0: no bound), and nothing was done. Errors: Store::put()'s; kNotFound where the
  /// file is gone.
  Result<std::uint64_t> put(const std::string& key, const std::string& path,
                            std::uint64_t max_bytes);
  /// Copies an object to the file `path`, which appears when it is whole and on the disk. The
  /// bytes. Whether they are right is told by their checksums, which nobody compares here. Errors:
  /// Store::open()'s and StoredObject::stream()'s, FileIo's.
  Result<std::uint64_t> fetch(const std::string& key, const std::string& path);
  Result<void> remove(const std::string& key) { return store_->remove(url_of(key)); }

  /// Ends what is under way, and refuses what comes.
  void stop() { store_->stop(); }

 private:
  std::string url_of(const std::string& key) const { return url_ + "/" + key; }

  std::unique_ptr<kvsnap::Store> store_;
  std::string url_;
  kvsnap::FileIo& io_;
};

}  // namespace thaw::forkpool

#pragma once

#include <map>
#include <mutex>
#include <string>

#include "kvsnap/file_io.h"
#include "kvsnap/store/store.h"

namespace thaw::kvsnap {

/// A store as a file system, so that containers are written to it and read from it as files are.
/// What is opened is read range by range. What is created is written to a scratch file first and
/// put into the store when it is renamed to the name that it shall have. Thread-safe.
class StoreIo final : public FileIo {
 public:
  /// `store` must outlive this and all files. Scratch files of dead processes are removed from
  /// `scratch_directory`, which is made when it is needed.
  StoreIo(Store& store, std::string scratch_directory);

  Result<std::unique_ptr<IoFile>> create(const std::string& url,
                                         std::uint64_t reserve_bytes) override;
  Result<std::unique_ptr<IoFile>> open(const std::string& url) override;
  /// REQUIRES: create(from), and that all was written and synced. Errors: Store::put()'s.
  Result<void> rename(const std::string& from, const std::string& to) override;
  /// Of what was created and not renamed. Objects are never removed: kUnsupported.
  Result<void> remove(const std::string& url) override;
  /// Nothing is left to do: an object that was put is there.
  Result<void> sync_directory_of(const std::string&) override { return {}; }

 private:
  Result<std::string> take(const std::string& url);

  Store* store_;
  std::string scratch_directory_;
  std::mutex mutex_;
  std::map<std::string, std::string> scratch_;  // URL -> file; guarded by mutex_
  std::uint64_t next_ = 0;  // guarded by mutex_
};

}  // namespace thaw::kvsnap

#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "kvsnap/file_io.h"
#include "kvsnap/store/store.h"

namespace thaw::kvsnap {

/// Files as a store: a URL is a path. An open object is the file that had the name then, whatever
/// takes the name later; one that is cut or written in place meanwhile is an error.
class FileStore final : public Store {
 public:
  /// `io` must outlive the store and what it opens.
  explicit FileStore(FileIo& io) : io_(&io) {}

  std::string name() const override { return "file"; }
  Result<std::unique_ptr<StoredObject>> open(const std::string& url) override;
  /// copy_whole_file(). REQUIRES: the files of `io` take any alignment.
  Result<ObjectInfo> put(const std::string& url, const std::string& path) override;
  /// Of the operating system's files, without what is incomplete.
  Result<std::vector<ListedObject>> list(const std::string& folder,
                                         std::size_t max_objects) override;
  Result<void> remove(const std::string& url) override;
  std::unique_ptr<Store> share() override { return std::make_unique<FileStore>(*io_); }
  void stop() override { is_stopped_ = true; }

 private:
  Result<void> check() const;

  FileIo* io_;
  std::atomic<bool> is_stopped_ = false;
};

}  // namespace thaw::kvsnap

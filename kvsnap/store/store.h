#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"

namespace thaw::kvsnap {

/// One object as it was when it was opened or put.
struct ObjectInfo {
  std::string url;
  std::uint64_t size_bytes = 0;
  /// Another one for other bytes under the same URL: S3's ETag; of a file, inode, size and time.
  std::string version;
};

/// An object of a folder.
struct ListedObject {
  std::string name;  ///< behind the folder's URL
  std::uint64_t size_bytes = 0;
  std::int64_t modified = 0;  ///< seconds since the epoch
};

/// Takes what a read brings, in order and without gaps. An error of its own ends the read.
using ByteSink = std::function<Result<void>(std::span<const std::byte>)>;

/// An open object: always the bytes that it had when it was opened, or an error. Const calls may
/// run at once. Errors name the URL.
class StoredObject {
 public:
  virtual ~StoredObject() = default;
  const ObjectInfo& info() const { return info_; }

  /// Brings `size_bytes` from `offset` on, fetched as many ranges at once as the store finds right.
  /// What `sink` took is right even where an error ends it early. REQUIRES: the range lies in the
  /// object. Errors: kDataLoss where the object was replaced, or fewer bytes came; kUnavailable,
  /// kDeadlineExceeded, kIo, and the sink's.
  virtual Result<void> stream(std::uint64_t offset, std::uint64_t size_bytes,
                              const ByteSink& sink) const = 0;

  /// stream() into `out`.
  Result<void> read(std::uint64_t offset, std::span<std::byte> out) const;

 protected:
  explicit StoredObject(ObjectInfo info) : info_(std::move(info)) {}

 private:
  ObjectInfo info_;
};

/// Where whole objects lie under URLs. Thread-safe. Errors name the URL.
class Store {
 public:
  virtual ~Store() = default;
  /// Which store it is: two of one name hold the same objects.
  virtual std::string name() const = 0;
  /// Errors: kNotFound, kUnauthenticated, kInvalidArgument, kUnavailable, kDeadlineExceeded, kIo.
  virtual Result<std::unique_ptr<StoredObject>> open(const std::string& url) = 0;
  /// Makes the local file `path` the object: whoever opens the URL, and whatever crashes, sees the
  /// old object or the new one, whole. Errors: open()'s, kResourceExhausted; kDataLoss where the
  /// store has something else afterwards.
  virtual Result<ObjectInfo> put(const std::string& url, const std::string& path) = 0;
  /// What lies below `folder`, a URL that ends with a slash, at any depth; the first `max_objects`
  /// in the order of their names. A folder that is not there is empty. Errors: open()'s.
  virtual Result<std::vector<ListedObject>> list(const std::string& folder,
                                                 std::size_t max_objects) = 0;
  /// What is not there is removed already. Errors: open()'s.
  virtual Result<void> remove(const std::string& url) = 0;

  /// The same objects by another door, which stop() closes alone.
  virtual std::unique_ptr<Store> share() = 0;
  /// Ends what is under way, of opened objects too, with kCancelled, soon, and refuses what comes.
  virtual void stop() = 0;
};

}  // namespace thaw::kvsnap

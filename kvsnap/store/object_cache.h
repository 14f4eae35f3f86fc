#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "kvsnap/store/store.h"

namespace thaw::kvsnap {

/// Local copies of a store's objects, so that they are fetched once and can be mapped. A copy
/// appears under its name when it is whole and on the disk, and is used while the store still has
/// that version. Objects of one folder of the store lie in one folder here under their own names,
/// so shards find each other. Several processes may share the directory. Not thread-safe.
class ObjectCache {
 public:
  /// Makes `directory` when it is needed. Copies that were not used for longest are removed where
  /// all of them would take more than `max_bytes` (cache_budget.h), never one that fetch() has
  /// given out; 0: none is removed.
  explicit ObjectCache(std::string directory, std::uint64_t max_bytes = 0)
      : directory_(std::move(directory)), max_bytes_(max_bytes) {}

  /// The path of a local copy of what `url` is now. What a fetch that broke off had brought is kept
  /// beside it, and the next one goes on from there if the object is the same and the machine was
  /// not started anew. Errors: the store's; kInvalidArgument for a URL whose last part is no file
  /// name; kResourceExhausted where the disk is full (nothing is kept then), kIo.
  Result<std::string> fetch(Store& store, const std::string& url);

  /// Where fetch() puts the copy.
  Result<std::string> path_of(const Store& store, const std::string& url) const;

 private:
  void make_room(std::uint64_t bytes);
  Result<void> bring(const StoredObject& object, const std::string& path);

  std::string directory_;
  std::uint64_t max_bytes_;
  std::set<std::string> given_out_;
};

}  // namespace thaw::kvsnap

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/types.h"

namespace thaw::model {

/// What the system says about a file: while all of it stays the same, so do the file's bytes.
struct FileStamp {
  std::string path;
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size_bytes = 0;
  std::int64_t modified_ns = 0;
  std::int64_t changed_ns = 0;  ///< of the inode: cannot be set back, unlike the other

  bool operator==(const FileStamp&) const = default;
};

/// Stamps of regular files; nothing where one of them is missing or something else.
std::optional<std::vector<FileStamp>> stamp_files(const std::vector<std::string>& paths);

/// A checkpoint's digest, and the images made from it, remembered with the stamps of its files, so
/// that a start need not read all of them.
struct SourceRecord {
  std::vector<FileStamp> files;
  Hash128 digest;
  std::string layout_version;  ///< of the images
  std::vector<std::string> images;  ///< keys
  std::int64_t opened_at_ns = 0;  ///< no later than when the files that were hashed were opened

  std::string to_json() const;
  /// Nothing where `text` is not what to_json() writes.
  static std::optional<SourceRecord> from_json(std::string_view text);

  /// Whether the digest is that of files with these stamps. A file that was changed or put there
  /// about when it was opened may have changed again within the clock's grain, or be another one
  /// than was opened: such a record describes nothing.
  bool describes(const std::vector<FileStamp>& now) const;
};

}  // namespace thaw::model

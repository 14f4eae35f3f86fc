#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"

namespace thaw::coalescer {

/// The directory where sessions are written down: ID.json with ID.thawkv and its description beside
/// it, and `exports/` for files that go to or come from other servers. Nothing outside of it is
/// read or written, and no link inside it is followed. Thread-safe; calls block on the disk.
class SessionFiles {
 public:
  /// Makes the directory where it is missing, for its owner only, and locks it. Errors: kIo;
  /// kInvalidArgument where it is no directory; kUnavailable where another server uses it.
  static Result<SessionFiles> open(const std::string& directory);

  /// Of a session.
  std::string document_path(const std::string& id) const { return directory_ + "/" + id + ".json"; }
  std::string kv_path(const std::string& id) const { return directory_ + "/" + id + ".thawkv"; }
  /// Of an exported file. REQUIRES: a name that parse_session_file() lets pass, no path.
  std::string export_document_path(const std::string& name) const;
  std::string export_kv_path(const std::string& name) const;

  /// Errors: kIo; kUnsupported where `path` is no plain file.
  Result<void> write(const std::string& path, std::string_view text) const;
  /// KV of one session, with what describes it, becomes another's as well: both share their place
  /// on the disk. False where the file system cannot, or `from` is not there. Files of KV are
  /// replaced, never written to.
  static bool share_kv(const std::string& from, const std::string& to);
  /// Errors: kNotFound, kIo; kUnsupported where it is no plain file or longer than `max_bytes`.
  Result<std::string> read(const std::string& path, std::uint64_t max_bytes) const;
  /// True for a plain file.
  static bool is_file(const std::string& path);
  static bool exists(const std::string& path);

  /// Ids of the sessions that are written down.
  Result<std::vector<std::string>> list() const;
  /// What was written of a session; what is not there is no error.
  void remove(const std::string& id) const;

 private:
  SessionFiles(std::string directory, UniqueFd lock)
      : directory_(std::move(directory)), lock_(std::move(lock)) {}

  std::string directory_;
  UniqueFd lock_;
};

}  // namespace thaw::coalescer

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
#include "kvsnap/file_io.h"
#include "kvsnap/handle.h"
#include "kvsnap/kv_description.h"

namespace thaw::kvsnap {

inline constexpr const char* kHandleFile = "handle.json";
inline constexpr const char* kKvFile = "kv.thawkv";
inline constexpr const char* kWeightsFile = "weights.thaw";

/// A session at a fork point, as a directory: what it is (handle.json), its KV blocks (kv.thawkv)
/// and their description, weights where they travel along, a file of each for every rank
/// (FORMAT.md). Whatever handle.json says, only files of these names in this directory are opened.
/// What they say of each other is compared when the directory is opened, payloads with their
/// checksums by verify(). Errors name the file. Immutable; const calls may run at once.
class HandleDirectory {
 public:
  /// `path`: the directory, or its handle.json. `io` should open no links (IoMode::kNoLinks) and
  /// must outlive this. Errors: kNotFound where there is no handle; those of the files' parts;
  /// kDataLoss where they do not belong together.
  static Result<HandleDirectory> open(FileIo& io, const std::string& path);

  const std::string& path() const { return path_; }  ///< of the directory
  const Handle& handle() const { return handle_; }
  /// Of rank 0; nothing where there are no blocks here.
  const std::optional<KvDescription>& kv() const { return kv_; }
  /// Of all ranks' .thawkv files; 0 where only the description is here.
  std::uint64_t kv_bytes() const { return kv_bytes_; }
  std::uint64_t weights_bytes() const { return weights_bytes_; }
  /// Names of the files that are here, handle.json last.
  const std::vector<std::string>& files() const { return files_; }

  /// Compares all payloads with their checksums; whether all have some: the old forms have none.
  /// Errors: kDataLoss where one differs or a rank's file is missing; kIo.
  Result<bool> verify(ThreadPool& threads) const;

  /// Writes this session's files to the directory `target` under another handle.json, as
  /// write_handle() does. `with_payload`: false leaves blocks and weights out.
  Result<void> save(const std::string& target, const Handle& handle, bool with_payload) const;

 private:
  HandleDirectory() = default;
  Result<void> open_kv(const std::string& name, bool is_first);
  Result<void> open_weights();
  Result<void> check() const;
  std::string file(const std::string& name) const { return path_ + "/" + name; }

  FileIo* io_ = nullptr;
  std::string path_;
  Handle handle_;
  std::optional<KvDescription> kv_;
  std::uint64_t kv_bytes_ = 0;
  std::uint64_t weights_bytes_ = 0;
  std::vector<std::string> files_;
};

/// A file to copy into a handle's directory, and its name there.
struct HandlePart {
  std::string from;
  std::string name;
};

/// Copies `parts` to the directory `target`, which must exist, and writes handle.json last, so that
/// there is a handle once it is whole, whatever crashes. An error removes what was written.
Result<void> write_handle(FileIo& io, const std::string& target, const Handle& handle,
                          const std::vector<HandlePart>& parts);

/// Whether handle.json lies in `directory`. Says nothing of whether it can be opened.
bool has_handle(FileIo& io, const std::string& directory);

/// Makes an empty directory for a handle, or takes one that is there and holds nothing but what a
/// crashed save() left. Errors: kInvalidArgument where something else is there; kIo.
Result<void> make_handle_directory(const std::string& path);

}  // namespace thaw::kvsnap

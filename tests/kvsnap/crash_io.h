#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kvsnap/file_io.h"

namespace thaw::kvsnap {

using Bytes = std::vector<std::byte>;
/// Files by name.
using Files = std::map<std::string, Bytes>;

/// What of the things that nobody waited for (sync) a power cut leaves.
struct Survival {
  enum class Kind { kNothing, kEverything, kRandom } kind = Kind::kNothing;
  unsigned seed = 0;  ///< kRandom: of the coin that is thrown for every sector and name
};

/// A file system in memory that notes every call, can fail at any of them, and can tell what would
/// be left had the power been cut there. Data is safe once its file was synced, a name once its
/// directory was; anything else may be there or not, sector by sector. Thread-safe.
class CrashIo final : public FileIo {
 public:
  explicit CrashIo(Files files = {});

  Result<std::unique_ptr<IoFile>> create(const std::string& path,
                                         std::uint64_t reserve_bytes) override;
  Result<std::unique_ptr<IoFile>> open(const std::string& path) override;
  Result<void> rename(const std::string& from, const std::string& to) override;
  Result<void> remove(const std::string& path) override;
  Result<void> sync_directory_of(const std::string& path) override;

  /// The call of that number (0: the first) and all later ones but remove() fail: the disk is full.
  void fail_from(std::size_t call) { fail_from_ = call; }
  /// Syncs do nothing, as on a disk that lies: what the tests must notice.
  void ignore_syncs() { ignores_syncs_ = true; }

  std::size_t num_calls() const { return calls_.size(); }
  /// Bytes that call number `call` wrote; 0 for other calls.
  std::size_t written_by(std::size_t call) const { return calls_[call].data.size(); }
  /// What is there now.
  Files files() const;
  /// What is there after the power was cut during call number `call`: those before it were made. Of
  /// a write, `torn_bytes` bytes had reached the disk, and with `survival` kNothing nothing else
  /// that was not synced.
  Files after_crash(std::size_t call, std::size_t torn_bytes, Survival survival) const;

 private:
  friend class CrashFile;
  struct Call {
    enum class Kind { kCreate, kWrite, kSetSize, kSync, kRename, kRemove, kSyncDirectory } kind;
    std::size_t inode = 0;
    std::string path;
    std::string to;
    std::uint64_t at = 0;  ///< offset, or size
    Bytes data;
  };
  Result<void> note(Call call);

  mutable std::mutex mutex_;
  std::map<std::string, std::size_t> names_;  // guarded by mutex_
  std::vector<Bytes> inodes_;  // guarded by mutex_
  std::map<std::string, std::size_t> names_at_start_;
  std::vector<Bytes> inodes_at_start_;
  std::vector<Call> calls_;  // guarded by mutex_
  std::optional<std::size_t> fail_from_;
  bool ignores_syncs_ = false;
};

}  // namespace thaw::kvsnap

#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/result.h"
#include "kvsnap/container_format.h"
#include "kvsnap/file_io.h"

namespace thaw::kvsnap {

struct ContainerWriterOptions {
  std::size_t num_regions = 0;  ///< exactly so many will be added
  std::uint64_t payload_bytes = 0;  ///< of all of them, about: reserved on the disk
  std::string engine_commit;  ///< 40 characters, or empty
  int num_threads = 2;  ///< as many chunks are on their way at once
  std::size_t chunk_bytes = std::size_t{4} << 20;  ///< a multiple of kPayloadAlignment
};

/// Suffix of the name under which a container is written: NAME.thaw-incomplete.
inline constexpr const char* kIncompleteSuffix = ".thaw-incomplete";

/// Writes a container (FORMAT.md, version 2) so that whoever opens its name, and whatever crashes,
/// sees the old file or the new one, whole. Regions are written in the order in which they are
/// added, chunk by chunk, by threads of the writer's own: one chunk is copied and checksummed while
/// another is on its way to the disk. Memory: num_threads chunks where the file takes aligned
/// writes only, none otherwise. Not thread-safe.
class ContainerWriter {
 public:
  using Pieces = std::vector<std::span<const std::byte>>;

  /// Starts NAME.thaw-incomplete. `io` must outlive the writer. Errors: FileIo::create()'s;
  /// kInvalidArgument for a commit of another length or too many regions.
  static Result<std::unique_ptr<ContainerWriter>> create(FileIo& io, const std::string& path,
                                                         ContainerWriterOptions options);
  ContainerWriter(const ContainerWriter&) = delete;
  ContainerWriter& operator=(const ContainerWriter&) = delete;
  /// Removes what was not committed.
  ~ContainerWriter();

  /// Adds a region whose payload is `pieces` one after another; they must stay as they are until
  /// commit() or the end of the writer. Returns when its last chunk waits to be written. Errors:
  /// the first one of the threads; kInvalidArgument for more regions than were announced.
  Result<void> add(RegionKind kind, std::uint32_t logical_id, Pieces pieces);

  /// Waits for the chunks, writes header and table, syncs, renames, syncs the directory. Errors:
  /// the first of any step, kInvalidArgument for fewer regions than announced; the old file is
  /// untouched then, unless it was the directory that could not be synced.
  Result<void> commit();

 private:
  struct Pending {
    Region region;
    Pieces pieces;
    std::vector<std::uint32_t> chunk_checksums;
  };
  struct Chunk {
    std::size_t region = 0;
    std::size_t index = 0;
  };

  ContainerWriter(FileIo& io, std::string path, ContainerWriterOptions options,
                  std::unique_ptr<IoFile> file);
  void run();
  Result<void> write_chunk(Pending& pending, std::size_t index, std::span<std::byte> buffer);
  Result<void> write_header();
  void stop_threads();
  std::string incomplete_path() const { return path_ + kIncompleteSuffix; }

  FileIo* io_;
  std::string path_;
  ContainerWriterOptions options_;
  std::unique_ptr<IoFile> file_;
  std::uint64_t next_offset_;
  bool is_renamed_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Pending> regions_;  // guarded by mutex_; elements stay in place
  std::deque<Chunk> waiting_;  // guarded by mutex_
  std::size_t writing_ = 0;  // chunks; guarded by mutex_
  bool stopping_ = false;  // guarded by mutex_
  std::optional<Error> error_;  // the first; guarded by mutex_
  std::vector<std::jthread> threads_;
};

}  // namespace thaw::kvsnap

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
#include "kvsnap/container_format.h"
#include "kvsnap/file_io.h"

namespace thaw::kvsnap {

enum class Verify { kChecksums, kNothing };

/// An open container (FORMAT.md, versions 1 and 2). Sizes, places and counts are checked when it is
/// opened; payloads are compared with their checksums when they are read, all of a region by
/// several threads at once. Version 1 has no checksums: its payloads are taken as they are. Errors
/// name the file. Move-only; const calls may run at once, each with a ThreadPool of its own.
class ContainerReader {
 public:
  /// Errors: FileIo::open()'s; kInvalidArgument where it is no container, kUnsupported, kDataLoss.
  static Result<ContainerReader> open(FileIo& io, const std::string& path);

  const std::string& path() const { return path_; }
  std::uint64_t file_bytes() const { return file_bytes_; }
  std::uint32_t version() const { return header_.version; }
  bool has_checksums() const { return header_.version >= 2; }
  const std::string& engine_commit() const { return header_.engine_commit; }
  const std::vector<Region>& regions() const { return header_.regions; }
  /// Null where there is none.
  const Region* find(RegionKind kind, std::uint32_t logical_id) const;

  /// Reads a whole region. REQUIRES: out.size() == region.size_bytes. Errors: kDataLoss, kIo; what
  /// is in `out` must not be used then.
  Result<void> read(const Region& region, std::span<std::byte> out, ThreadPool& threads,
                    Verify verify = Verify::kChecksums) const;
  /// Reads whole regions, all of them at once, each to the span at its place, and compares them
  /// with their checksums. REQUIRES: as many spans as regions, of their sizes. Errors as of read().
  Result<void> read_all(std::span<const Region> regions, std::span<const std::span<std::byte>> out,
                        ThreadPool& threads) const;
  /// A region of text. Errors: kDataLoss where it is larger than `max_bytes` too.
  Result<std::string> read_text(const Region& region, std::size_t max_bytes,
                                ThreadPool& threads) const;
  /// Compares every region with its checksum; keeps nothing. Errors: kDataLoss, naming the first
  /// region that is damaged; kIo.
  Result<void> verify(ThreadPool& threads) const;

  /// The whole file. Views into it are not compared with checksums: verify() does that.
  Result<Mapping> map() const { return file_->map(); }

 private:
  ContainerReader() = default;
  Result<void> read_range(std::uint64_t offset, std::span<std::byte> out,
                          std::span<std::byte> buffer) const;
  Result<std::vector<std::uint32_t>> checksums(std::span<const Region> regions,
                                               std::span<const std::span<std::byte>> out,
                                               ThreadPool& threads) const;
  Result<void> compare(std::span<const Region> regions,
                       const std::vector<std::uint32_t>& found) const;

  std::string path_;
  std::unique_ptr<IoFile> file_;
  std::uint64_t file_bytes_ = 0;
  ContainerHeader header_;
};

}  // namespace thaw::kvsnap

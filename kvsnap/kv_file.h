#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
#include "kvsnap/container_reader.h"
#include "kvsnap/file_io.h"
#include "kvsnap/kv_document.h"

namespace thaw::kvsnap {

inline constexpr std::string_view kKvFileSuffix = ".thawkv";

/// Writes KV as a .thawkv file and its sidecar: one region for each block, in order, and the
/// document. Whole and on the disk when it returns; whatever crashes, `path` is the old file or the
/// new one. REQUIRES: blocks are document.num_blocks() of document.block_bytes each. Errors: those
/// of ContainerWriter; the incomplete file is removed.
Result<void> write_kv_file(FileIo& io, const std::string& path, const KvDocument& document,
                           std::span<const std::span<const std::byte>> blocks);

/// An open .thawkv file whose regions agree with its document. Errors name the file.
class KvFile {
 public:
  /// Errors: ContainerReader's; kUnsupported where the metadata is missing, as in files of the
  /// public project; kDataLoss where regions and document differ.
  static Result<KvFile> open(FileIo& io, const std::string& path, ThreadPool& threads);

  const KvDocument& document() const { return document_; }
  std::uint64_t file_bytes() const { return reader_.file_bytes(); }
  /// Reads the first blocks.size() blocks and compares each with its checksum. REQUIRES: no more
  /// than there are, of block_bytes each. Errors: kDataLoss, kIo; nothing of it may be used then.
  Result<void> read(std::span<const std::span<std::byte>> blocks, ThreadPool& threads) const;
  /// Of a block that was read.
  std::uint32_t checksum(std::size_t block) const { return blocks_[block].crc32c; }

 private:
  KvFile(ContainerReader reader, KvDocument document, std::vector<Region> blocks)
      : reader_(std::move(reader)), document_(std::move(document)), blocks_(std::move(blocks)) {}

  ContainerReader reader_;
  KvDocument document_;
  std::vector<Region> blocks_;  ///< in the order of the tokens
};

}  // namespace thaw::kvsnap

#include "kvsnap/snapshot_reader.h"

#include <string>

namespace thaw::kvsnap {

Result<SnapshotReader::Pending> SnapshotReader::start(const Manifest& manifest,
                                                      const Hash128& cache_root,
                                                      std::span<std::byte* const> blocks) {
  if (auto checked = check_manifest(manifest, format_, cache_root, arena_->size_bytes());
      !checked) {
    return checked.error();
  }
  if (blocks.size() != manifest.num_blocks()) {
    return make_error(Errc::kInvalidArgument,
                      "a snapshot of " + std::to_string(manifest.num_blocks()) +
                          " blocks was given " + std::to_string(blocks.size()) + " to fill");
  }
  std::vector<ExtentCopy> copies;
  std::size_t next = 0;
  for (const Extent& extent : manifest.extents) {
    const std::span<std::byte> bytes = arena_->bytes(extent);
    ExtentCopy& copy = copies.emplace_back();
    for (std::size_t at = 0; at < bytes.size(); at += manifest.block_bytes)
      copy.pieces.push_back({bytes.data() + at, blocks[next++], manifest.block_bytes});
  }
  auto handle = pipeline_->launch(CopyDirection::kFromArena, std::move(copies));
  if (!handle) return handle.error();
  return Pending{manifest.extents, *handle};
}

Result<void> SnapshotReader::finish(const Pending& pending) {
  const auto checksums = pipeline_->collect(pending.copy);
  if (!checksums) return checksums.error();
  for (std::size_t i = 0; i < checksums->size(); ++i) {
    const Extent& extent = pending.extents[i];
    if ((*checksums)[i] == extent.crc32c) continue;
    return make_error(Errc::kDataLoss, "snapshot refused: extent " + std::to_string(i) + " (" +
                                           std::to_string(extent.size_bytes) + " bytes at " +
                                           std::to_string(extent.offset) + ") has CRC32C " +
                                           std::to_string((*checksums)[i]) + ", not " +
                                           std::to_string(extent.crc32c));
  }
  return {};
}

}  // namespace thaw::kvsnap

#include "kvsnap/snapshot_reader.h"

#include <algorithm>
#include <string>

namespace thaw::kvsnap {

Result<SnapshotReader::Pending> SnapshotReader::start(const Manifest& manifest,
                                                      const Hash128& cache_root,
                                                      std::span<std::byte* const> blocks) {
  return start(manifest, cache_root, blocks, 0, manifest.extents.size());
}

Result<SnapshotReader::Pending> SnapshotReader::start(const Manifest& manifest,
                                                      const Hash128& cache_root,
                                                      std::span<std::byte* const> blocks,
                                                      std::size_t first, std::size_t end) {
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
  const std::span<const Extent> extents = manifest.extents;
  for (const Extent& extent : extents.first(std::min(first, extents.size())))
    next += extent.size_bytes / manifest.block_bytes;
  end = std::min(end, extents.size());
  if (first > end || (first == end && !extents.empty())) {
    return make_error(Errc::kInvalidArgument, "extents " + std::to_string(first) + " to " +
                                                  std::to_string(end) + " of a snapshot of " +
                                                  std::to_string(extents.size()));
  }
  const std::span<const Extent> wanted = extents.subspan(first, end - first);
  for (const Extent& extent : wanted) {
    const std::span<std::byte> bytes = arena_->bytes(extent);
    ExtentCopy& copy = copies.emplace_back();
    for (std::size_t at = 0; at < bytes.size(); at += manifest.block_bytes)
      copy.pieces.push_back({bytes.data() + at, blocks[next++], manifest.block_bytes});
  }
  auto handle = pipeline_->launch(CopyDirection::kFromArena, std::move(copies));
  if (!handle) return handle.error();
  return Pending{{wanted.begin(), wanted.end()}, *handle};
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

#include "kvsnap/snapshot_writer.h"

#include <string>

namespace thaw::kvsnap {

Result<SnapshotWriter::Pending> SnapshotWriter::start(Manifest manifest, const Hash128& cache_root,
                                                      std::span<const std::byte* const> blocks) {
  if (auto checked = check_manifest(manifest, format_, cache_root, arena_->size_bytes());
      !checked) {
    return checked.error();
  }
  if (blocks.size() != manifest.num_blocks()) {
    return make_error(Errc::kInvalidArgument,
                      "a snapshot of " + std::to_string(manifest.num_blocks()) +
                          " blocks was given " + std::to_string(blocks.size()) + " to write");
  }
  std::vector<ExtentCopy> copies;
  std::size_t next = 0;
  for (const Extent& extent : manifest.extents) {
    const std::span<std::byte> bytes = arena_->bytes(extent);
    ExtentCopy& copy = copies.emplace_back();
    for (std::size_t at = 0; at < bytes.size(); at += manifest.block_bytes)
      copy.pieces.push_back({blocks[next++], bytes.data() + at, manifest.block_bytes});
  }
  auto handle = pipeline_->launch(CopyDirection::kToArena, std::move(copies));
  if (!handle) return handle.error();
  return Pending{std::move(manifest), *handle};
}

Result<Manifest> SnapshotWriter::finish(Pending pending) {
  const auto checksums = pipeline_->collect(pending.copy);
  if (!checksums) return checksums.error();
  for (std::size_t i = 0; i < checksums->size(); ++i)
    pending.manifest.extents[i].crc32c = (*checksums)[i];
  return std::move(pending.manifest);
}

}  // namespace thaw::kvsnap

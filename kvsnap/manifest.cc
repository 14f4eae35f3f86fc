#include "kvsnap/manifest.h"

#include <algorithm>

namespace thaw::kvsnap {
namespace {

Error mismatch(const std::string& what, const std::string& has, const std::string& wanted) {
  return make_error(Errc::kDataLoss,
                    "snapshot refused: its " + what + " is " + has + ", not " + wanted);
}

Error mismatch(const std::string& what, std::uint64_t has, std::uint64_t wanted) {
  return mismatch(what, std::to_string(has), std::to_string(wanted));
}

}  // namespace

std::uint64_t Manifest::payload_bytes() const {
  std::uint64_t total = 0;
  for (const Extent& extent : extents)
    total += extent.size_bytes;
  return total;
}

Result<void> check_sizes(const Manifest& manifest) {
  if (manifest.block_size == 0 || manifest.block_bytes == 0) {
    return make_error(Errc::kDataLoss, "snapshot refused: blocks of " +
                                           std::to_string(manifest.block_size) + " tokens and " +
                                           std::to_string(manifest.block_bytes) + " bytes");
  }
  if (manifest.token_ids.empty() || manifest.token_ids.size() % manifest.block_size != 0) {
    return make_error(Errc::kDataLoss,
                      "snapshot refused: " + std::to_string(manifest.token_ids.size()) +
                          " tokens are not a positive multiple of the block of " +
                          std::to_string(manifest.block_size));
  }
  // Blocks are counted extent by extent: a sum of sizes could wrap around.
  std::uint64_t blocks_left = manifest.num_blocks();
  for (const Extent& extent : manifest.extents) {
    const std::uint64_t blocks = extent.size_bytes / manifest.block_bytes;
    if (blocks == 0 || extent.size_bytes % manifest.block_bytes != 0) {
      return make_error(Errc::kDataLoss, "snapshot refused: an extent of " +
                                             std::to_string(extent.size_bytes) +
                                             " bytes is not a positive multiple of the block of " +
                                             std::to_string(manifest.block_bytes));
    }
    if (blocks > blocks_left) {
      return make_error(Errc::kDataLoss, "snapshot refused: its extents hold more than the " +
                                             std::to_string(manifest.num_blocks()) +
                                             " blocks of its tokens");
    }
    blocks_left -= blocks;
  }
  if (blocks_left > 0) {
    return mismatch("number of blocks", manifest.num_blocks() - blocks_left, manifest.num_blocks());
  }
  return {};
}

Result<void> check_manifest(const Manifest& manifest, const KvFormat& format,
                            const Hash128& cache_root, std::uint64_t arena_bytes) {
  if (auto sizes = check_sizes(manifest); !sizes) return sizes;
  if (manifest.cache_root != cache_root) {
    return mismatch("cache root", manifest.cache_root.to_hex(), cache_root.to_hex());
  }
  if (manifest.kv_layout != format.kv_layout) {
    return mismatch("KV layout", "'" + manifest.kv_layout + "'", "'" + format.kv_layout + "'");
  }
  if (manifest.block_size != format.block_size) {
    return mismatch("block size", manifest.block_size, format.block_size);
  }
  if (manifest.block_bytes != format.block_bytes) {
    return mismatch("number of bytes in a block", manifest.block_bytes, format.block_bytes);
  }
  if (manifest.tp_rank != format.tp_rank || manifest.tp_size != format.tp_size) {
    return mismatch("rank",
                    std::to_string(manifest.tp_rank) + " of " + std::to_string(manifest.tp_size),
                    std::to_string(format.tp_rank) + " of " + std::to_string(format.tp_size));
  }
  std::vector<Extent> by_offset = manifest.extents;
  std::ranges::sort(by_offset, {}, &Extent::offset);
  std::uint64_t end = 0;
  for (const Extent& extent : by_offset) {
    const std::string place = "an extent of " + std::to_string(extent.size_bytes) + " bytes at " +
                              std::to_string(extent.offset);
    if (extent.size_bytes > arena_bytes || extent.offset > arena_bytes - extent.size_bytes) {
      return make_error(Errc::kDataLoss, "snapshot refused: " + place +
                                             " is outside the arena of " +
                                             std::to_string(arena_bytes) + " bytes");
    }
    if (extent.offset < end) {
      return make_error(Errc::kDataLoss, "snapshot refused: " + place + " overlaps another");
    }
    end = extent.offset + extent.size_bytes;
  }
  return {};
}

}  // namespace thaw::kvsnap

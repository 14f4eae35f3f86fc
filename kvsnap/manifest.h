#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"

namespace thaw::kvsnap {

/// A byte range of the arena.
struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t size_bytes = 0;
  std::uint32_t crc32c = 0;  ///< of the payload; known once written
};

/// Describes one KV snapshot: everything a reader checks before it believes the bytes. The extents
/// hold the blocks of `token_ids` in order, whole blocks of `block_bytes`, several blocks to an
/// extent.
struct Manifest {
  Hash128 cache_root;
  std::string kv_layout;  ///< compared as a whole: dtype, shape, order
  std::uint32_t block_size = 0;  ///< tokens
  std::uint64_t block_bytes = 0;
  std::vector<TokenId> token_ids;  ///< a multiple of block_size
  std::uint32_t tp_rank = 0;
  std::uint32_t tp_size = 1;
  std::vector<Extent> extents;

  std::uint64_t payload_bytes() const;
  /// REQUIRES: block_size is not 0.
  std::uint64_t num_blocks() const { return token_ids.size() / block_size; }
};

/// The KV that one process holds; a snapshot must agree with all of it.
struct KvFormat {
  std::string kv_layout;
  std::uint32_t block_size = 0;  ///< tokens
  std::uint64_t block_bytes = 0;
  std::uint32_t tp_rank = 0;
  std::uint32_t tp_size = 1;
};

/// Whether the manifest agrees with itself: whole blocks of tokens, whole blocks in every extent,
/// as many of the one as of the other. The error (kDataLoss) names the check that failed.
Result<void> check_sizes(const Manifest& manifest);

/// check_sizes(), and whether the manifest fits this reader: cache root, layout, block size and
/// bytes, rank, and extents that lie inside an arena of `arena_bytes` without overlapping.
/// Everything but the checksums. The error (kDataLoss) names the check that failed and both values.
Result<void> check_manifest(const Manifest& manifest, const KvFormat& format,
                            const Hash128& cache_root, std::uint64_t arena_bytes);

}  // namespace thaw::kvsnap

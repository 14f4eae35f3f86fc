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
};

}  // namespace thaw::kvsnap

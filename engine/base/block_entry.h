#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "engine/base/types.h"

namespace thaw {

/// The tokens of one KV block.
using BlockTokens = std::array<TokenId, kBlockSize>;

/// REQUIRES: kBlockSize tokens.
inline BlockTokens to_block_tokens(std::span<const TokenId> tokens) {
  BlockTokens block{};
  std::copy_n(tokens.begin(), block.size(), block.begin());
  return block;
}

/// A full KV block of a worker, named by its chained hash (engine/base/hash.h).
struct BlockEntry {
  Hash128 root;
  Hash128 parent;  ///< hash of the block before; the root for the first one
  Hash128 hash;
  BlockId block = -1;
  BlockTokens tokens{};
};

}  // namespace thaw

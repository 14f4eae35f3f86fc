#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "engine/base/types.h"

namespace thaw {

/// First 128 bits of SHA-256 over `data`.
Hash128 hash_bytes(std::span<const std::byte> data);
Hash128 hash_text(std::string_view text);

/// hash_bytes of what is given piece by piece. Move-only.
class Hasher {
 public:
  Hasher();
  Hasher(Hasher&&) noexcept = default;
  Hasher& operator=(Hasher&&) noexcept = default;
  ~Hasher();

  void update(std::span<const std::byte> data);
  /// Of everything so far; the hasher is of no use afterwards.
  Hash128 finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Name of everything that decides KV bits besides the tokens. `engine_fingerprint` covers weights
/// digest, adapter, KV dtype and layout, RoPE parameters and kernel set (a worker reports it in its
/// hello); tenant, salt and adapter come from the request. Nothing is shared between two roots.
Hash128 make_cache_root(const Hash128& engine_fingerprint, std::string_view tenant,
                        std::string_view salt, std::string_view adapter);

/// Chained name of one full block: H(parent, tokens). `parent` is the cache root for the first
/// block of a sequence. REQUIRES: tokens.size() == kBlockSize. Compare the tokens too on a hit.
Hash128 chain_block_hash(const Hash128& parent, std::span<const TokenId> tokens);

}  // namespace thaw

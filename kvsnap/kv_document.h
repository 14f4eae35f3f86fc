#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/trunk_keeping.h"
#include "engine/base/types.h"
#include "kvsnap/manifest.h"

namespace thaw::kvsnap {

/// The metadata of a file of KV (FORMAT.md): whose it is, what made it, which tokens it covers.
struct KvDocument {
  std::string writer;  ///< program and version
  TrunkOwner owner;
  Hash128 engine_fingerprint;  ///< of the weights, KV type and layout, RoPE and kernels
  std::string system_fingerprint;  ///< the same in words, for messages
  Hash128 cache_root;  ///< over engine_fingerprint and owner (engine/base/hash.h)
  std::string kv_layout;
  std::uint32_t block_size = 0;  ///< tokens
  std::uint64_t block_bytes = 0;
  std::vector<TokenId> token_ids;  ///< a positive multiple of block_size
  std::uint32_t tp_rank = 0;
  std::uint32_t tp_size = 1;
  double prefill_seconds = 0;  ///< what computing it takes, as its writer measured

  std::size_t num_blocks() const { return token_ids.size() / block_size; }
  std::uint64_t payload_bytes() const { return num_blocks() * block_bytes; }

  /// Errors: kInvalidArgument where a text is not UTF-8.
  Result<std::string> to_json() const;
  /// Errors: kDataLoss, naming the key; kUnsupported for another content or format.
  static Result<KvDocument> parse(std::string_view json);

  /// What the public project's reader looks for beside the file: NAME.thawkv.meta as it stands.
  std::string to_sidecar() const;
};

/// Largest JSON that is read: tokens of the longest trunk, in digits.
inline constexpr std::size_t kMaxKvDocumentBytes = std::size_t{96} << 20;

/// Whether KV can be used by an engine of this fingerprint and format for this owner. Errors:
/// kUnsupported (other weights, kernels or layout), kUnauthenticated (another owner's); each says
/// what differs.
Result<void> check_kv_document(const KvDocument& document, const Hash128& engine_fingerprint,
                               const std::string& system_fingerprint, const KvFormat& format,
                               const TrunkOwner& owner);

}  // namespace thaw::kvsnap

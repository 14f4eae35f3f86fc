#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace thaw::kvsnap {

/// Suffix of the file beside a .thawkv file that describes its blocks.
inline constexpr const char* kKvDescriptionSuffix = ".meta";
/// Larger ones are refused: a million blocks fit.
inline constexpr std::size_t kMaxKvDescriptionBytes = std::size_t{128} << 20;

/// What a .thawkv.meta file says of the blocks beside it (FORMAT.md).
struct KvDescription {
  std::uint64_t num_blocks = 0;
  std::vector<std::uint64_t> block_ids;  ///< in the pool of the engine that wrote them, distinct
  /// Chained names of the blocks as base64 (32 bytes of hash, 4 of a big-endian group id): equal
  /// names are equal tokens from the first on. Empty where the writer had none.
  std::vector<std::string> block_hashes;
  std::uint32_t num_layers = 0;
  std::vector<std::uint64_t>
      block_shape;  ///< of a layer: [2, block_size, kv_heads, head_dim]; or empty
  std::uint64_t block_bytes = 0;  ///< of one layer
  std::string dtype;  ///< "torch.float16"
  std::uint64_t block_size = 0;  ///< tokens
  /// "coalesced": one region, layer by layer; empty: a region for each layer, block, and K or V;
  /// "thaw ...": a region for each block of all layers.
  std::string layout;

  /// Of all blocks in all layers. REQUIRES: parsed by decode().
  std::uint64_t payload_bytes() const { return num_blocks * num_layers * block_bytes; }

  /// A whole .thawkv.meta file.
  std::string encode() const;
  /// Reads one, or the beginning of a file of the old form, in which blocks follow their
  /// description. What is said is checked against itself. Errors: kInvalidArgument where it does
  /// not begin as one; kDataLoss, saying what is wrong; none names the file.
  static Result<KvDescription> decode(std::string_view bytes);
};

/// A whole .thawkv.meta file with that JSON text in it.
std::string frame_kv_description(std::string_view json);

/// Whether bytes begin as a description does: THAWKV and two zeros.
bool is_kv_description(std::string_view bytes);

/// The JSON text in a description, not read. Errors: as decode().
Result<std::string_view> kv_description_text(std::string_view bytes);

/// Bytes of an element by torch's name; nothing for types that are not known.
std::optional<std::uint64_t> torch_element_bytes(std::string_view dtype);

}  // namespace thaw::kvsnap

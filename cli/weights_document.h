#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/checkpoint/dtype.h"
#include "engine/checkpoint/hf_directory.h"

namespace thaw::cli {

/// Where a tensor lies in a file of weights.
struct FrozenTensor {
  std::string name;
  checkpoint::DType dtype = checkpoint::DType::kF32;
  std::vector<std::int64_t> shape;  ///< of the whole tensor, outputs first
  std::uint32_t region = 0;  ///< logical id
  std::uint64_t offset = 0;  ///< in the region's payload
  /// Outputs that are here: [first, end). Nothing: all.
  std::optional<std::pair<std::int64_t, std::int64_t>> rows;
};

/// The metadata of a file of weights (kvsnap/FORMAT.md), as it stands: what is in it was checked
/// for its form, not against the file.
struct WeightsDocument {
  std::string writer;
  std::string model;
  std::string fingerprint;
  std::string weights_digest;
  std::string config_json;  ///< an object
  std::string dtype;
  std::string container;  ///< "GGUF" or "safetensors"
  std::vector<FrozenTensor> tensors;
  std::string tokenizer_hash;
  std::optional<std::string> chat_template_hash;
  std::map<std::string, std::string> texts;  ///< safetensors: by file name
  std::optional<checkpoint::StoredTemplate> chat_template;  ///< safetensors
  std::vector<std::byte> gguf_metadata;  ///< GGUF
  std::uint32_t rank = 0;
  std::uint32_t num_ranks = 1;

  /// Errors: kInvalidArgument where a text or name is not UTF-8.
  Result<std::string> to_json() const;
  /// Errors: kDataLoss, naming the key; kUnsupported for another content or format.
  static Result<WeightsDocument> parse(std::string_view json);
};

/// Most ranks that a model is split over.
inline constexpr std::uint32_t kMaxRanks = 1024;

}  // namespace thaw::cli

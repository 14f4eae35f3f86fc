#include "cli/public_weights.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "cli/region_layout.h"
#include "kvsnap/shard_path.h"

namespace thaw::cli {
namespace {

using checkpoint::DType;
using kvsnap::Region;
using kvsnap::RegionKind;

/// vLLM rounds the vocabulary up to a multiple of this.
constexpr std::int64_t kVocabPadding = 64;

std::vector<Region> weights_of(const kvsnap::ContainerReader& reader) {
  std::vector<Region> regions;
  std::ranges::copy_if(reader.regions(), std::back_inserter(regions),
                       [](const Region& region) { return region.kind == RegionKind::kWeights; });
  return regions;
}

std::uint64_t elements_of(const std::vector<model::TensorRule>& parts) {
  std::uint64_t elements = 0;
  for (const model::TensorRule& part : parts)
    elements += static_cast<std::uint64_t>(part.rows * part.cols);
  return elements;
}

std::string names_of(const std::vector<model::TensorRule>& parts) {
  std::string names;
  for (const model::TensorRule& part : parts)
    names += (names.empty() ? "" : ", ") + part.hf_name;
  return names;
}

bool is_of_vocabulary(const std::vector<model::TensorRule>& parts) {
  return parts.front().name == "token_embedding" || parts.front().name == "head";
}

/// Of the bits of bfloat16 numbers between 2^-15 and 2, which weights are nearly all, the four
/// behind the sign are 0111. Of float16 these are the numbers between 0.5 and 2, which at most
/// three of five are, however the weights are scaled. Nothing where that does not tell.
std::optional<DType> type_of_16_bits(std::span<const std::byte> weights) {
  constexpr std::size_t kSamples = 65536;
  constexpr double kMostOfF16 = 0.65;
  constexpr double kLeastOfBf16 = 0.75;
  const std::size_t count = weights.size() / sizeof(std::uint16_t);
  const std::size_t step = std::max<std::size_t>(1, count / kSamples);
  std::size_t marked = 0;
  std::size_t total = 0;
  for (std::size_t i = 0; i < count; i += step) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, weights.data() + i * sizeof(bits), sizeof(bits));
    if ((bits & 0x7FFF) == 0) continue;
    ++total;
    marked += (bits >> 11 & 0xF) == 0x7 ? 1 : 0;
  }
  if (total == 0) return std::nullopt;
  const double share = static_cast<double>(marked) / static_cast<double>(total);
  if (share >= kLeastOfBf16) return DType::kBF16;
  if (share <= kMostOfF16) return DType::kF16;
  return std::nullopt;
}

}  // namespace

bool is_public_weights(const kvsnap::ContainerReader& reader) {
  return reader.find(RegionKind::kMetadata, 0) == nullptr &&
         std::ranges::any_of(reader.regions(), [](const Region& region) {
           return region.kind == RegionKind::kWeights;
         });
}

Result<WeightsFile> open_public_weights(kvsnap::ContainerReader reader, WeightsDocument document,
                                        const model::ModelConfig& config, kvsnap::Verify checks) {
  const std::string& path = reader.path();
  const auto refuse = [&](const std::string& what) {
    return make_error(Errc::kUnsupported, path + " is not " + document.model + ": " + what);
  };
  std::error_code ignored;
  if (std::filesystem::exists(kvsnap::shard_path(path, 1), ignored)) {
    return make_error(Errc::kUnsupported,
                      path +
                          " is one of several shards without metadata, which nothing says how to "
                          "put together; freeze the model with --tensor-parallel 1");
  }
  const auto parameters = vllm_parameters(config);
  const std::vector<Region> regions = weights_of(reader);
  if (regions.size() != parameters.size()) {
    return refuse("it has " + std::to_string(regions.size()) + " weights, the model has " +
                  std::to_string(parameters.size()) + " parameters");
  }
  // The last norm is as long as it should be in every file, so it tells the size of an element.
  std::uint64_t element_bytes = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::uint64_t elements = elements_of(parameters[i]);
    if (is_of_vocabulary(parameters[i])) continue;
    if (element_bytes == 0) element_bytes = regions[i].size_bytes / elements;
    if ((element_bytes != 2 && element_bytes != 4) ||
        regions[i].size_bytes != elements * element_bytes) {
      return refuse("weights " + std::to_string(i) + " have " +
                    std::to_string(regions[i].size_bytes) + " bytes; " + names_of(parameters[i]) +
                    " has " + std::to_string(elements) + " elements of 2 or 4");
    }
  }
  std::map<std::uint32_t, std::uint64_t> padding;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (regions[i].logical_id != i)
      return refuse("its weights are not numbered in order, so theirs is not known");
    if (!is_of_vocabulary(parameters[i])) continue;
    const model::TensorRule& rule = parameters[i].front();
    const std::uint64_t row_bytes = static_cast<std::uint64_t>(rule.cols) * element_bytes;
    const auto padded =
        static_cast<std::uint64_t>((rule.rows + kVocabPadding - 1) / kVocabPadding * kVocabPadding);
    const auto rows = static_cast<std::uint64_t>(rule.rows);
    const std::uint64_t size = regions[i].size_bytes;
    if (size % row_bytes != 0 || size / row_bytes < rows || size / row_bytes > padded) {
      return refuse("weights " + std::to_string(i) + " have " + std::to_string(size) + " bytes; " +
                    rule.hf_name + " has " + std::to_string(rows) + " rows of " +
                    std::to_string(row_bytes) + ", at most " + std::to_string(padded) +
                    " with what fills it up");
    }
    if (size > rows * row_bytes) padding[regions[i].logical_id] = size - rows * row_bytes;
  }
  DType dtype = DType::kF32;
  if (element_bytes == 2) {
    const auto mapping = reader.map();
    if (!mapping) return mapping.error();
    if (mapping->size_bytes() != reader.file_bytes())
      return make_error(Errc::kDataLoss, path + ": its size changed while it was opened");
    const auto found = type_of_16_bits(mapping->bytes().subspan(
        regions.front().offset, static_cast<std::size_t>(regions.front().size_bytes)));
    if (!found) {
      return refuse(
          "its embeddings are no weights of 16 bits that could be told to be float16 or "
          "bfloat16");
    }
    dtype = *found;
  }
  document.tensors.clear();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    std::uint64_t offset = 0;
    for (const model::TensorRule& rule : parameters[i]) {
      FrozenTensor tensor{rule.hf_name, dtype, {}, regions[i].logical_id, offset, {}};
      if (rule.is_matrix) tensor.shape.push_back(rule.rows);
      tensor.shape.push_back(rule.cols);
      offset += static_cast<std::uint64_t>(rule.rows * rule.cols) * element_bytes;
      document.tensors.push_back(std::move(tensor));
    }
  }
  document.dtype = checkpoint::dtype_name(dtype);
  return WeightsFile::open_described(std::move(reader), std::move(document), padding, checks);
}

}  // namespace thaw::cli

#include "cli/freeze_weights.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "cli/region_layout.h"
#include "engine/base/hash.h"
#include "kvsnap/container_writer.h"
#include "kvsnap/shard_path.h"

namespace thaw::cli {
namespace {

using checkpoint::StoredTensor;
using kvsnap::ContainerWriter;
using kvsnap::RegionKind;

constexpr std::uint32_t kWriterThreads = 4;  ///< of all shards

std::vector<std::int64_t> frozen_shape(const StoredTensor& tensor) {
  return {tensor.shape.rbegin(), tensor.shape.rend()};
}

/// The part of a tensor that a rank has: as even as whole rows allow. Vectors are not split.
struct Part {
  std::span<const std::byte> data;
  std::optional<std::pair<std::int64_t, std::int64_t>> rows;
};
Part part_of(const StoredTensor& tensor, std::uint32_t rank, std::uint32_t num_ranks) {
  if (num_ranks == 1 || tensor.shape.size() < 2) return {tensor.data, std::nullopt};
  const std::int64_t each = tensor.rows() / num_ranks;
  const std::int64_t more = tensor.rows() % num_ranks;
  const auto start = [&](std::int64_t r) { return r * each + std::min(r, more); };
  const std::int64_t first = start(rank);
  const std::int64_t end = start(std::int64_t{rank} + 1);
  const auto row_bytes =
      static_cast<std::int64_t>(tensor.data.size()) / std::max<std::int64_t>(1, tensor.rows());
  return {tensor.data.subspan(static_cast<std::size_t>(first * row_bytes),
                              static_cast<std::size_t>((end - first) * row_bytes)),
          std::pair(first, end)};
}

/// A line of what weights_digest covers.
std::string digest_line(const StoredTensor& tensor) {
  std::string line =
      std::string(tensor.name) + " " + std::string(checkpoint::dtype_name(tensor.dtype)) + " ";
  const auto shape = frozen_shape(tensor);
  for (std::size_t i = 0; i < shape.size(); ++i)
    line += (i == 0 ? "" : "x") + std::to_string(shape[i]);
  return line + " " + hash_bytes(tensor.data).to_hex() + "\n";
}

/// One shard on its way.
struct Shard {
  WeightsDocument document;
  std::string metadata;
  std::unique_ptr<ContainerWriter> writer;  // last: until it is gone its threads read the metadata
};

}  // namespace

Result<FrozenWeights> freeze_weights(kvsnap::FileIo& io, const model::ModelSource& source,
                                     const WeightsDocument& document, const std::string& path) {
  const auto regions = layout_regions(source);
  if (!regions) return regions.error();
  const std::uint32_t num_ranks = document.num_ranks;
  std::deque<Shard> shards;
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    kvsnap::ContainerWriterOptions options;
    options.num_regions = regions->size() + 1;
    options.num_threads = static_cast<int>(std::max(1U, kWriterThreads / num_ranks));
    for (const RegionTensors& region : *regions)
      for (const StoredTensor* tensor : region)
        options.payload_bytes += part_of(*tensor, rank, num_ranks).data.size();
    auto writer = ContainerWriter::create(io, kvsnap::shard_path(path, rank), options);
    if (!writer) return std::move(writer).error();
    shards.push_back({document, {}, *std::move(writer)});
    shards.back().document.rank = rank;
  }

  FrozenWeights frozen;
  std::map<std::string, std::string> lines;  // by name
  for (std::size_t id = 0; id < regions->size(); ++id) {
    for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
      ContainerWriter::Pieces pieces;
      std::uint64_t offset = 0;
      for (const StoredTensor* tensor : (*regions)[id]) {
        const Part part = part_of(*tensor, rank, num_ranks);
        shards[rank].document.tensors.push_back(
            {std::string(tensor->name), tensor->dtype, frozen_shape(*tensor),
             static_cast<std::uint32_t>(id), offset, part.rows});
        pieces.push_back(part.data);
        offset += part.data.size();
      }
      frozen.total_bytes += offset;
      auto added = shards[rank].writer->add(RegionKind::kWeights, static_cast<std::uint32_t>(id),
                                            std::move(pieces));
      if (!added) return std::move(added).error();
    }
    // While the writers' threads are at it.
    for (const StoredTensor* tensor : (*regions)[id])
      lines.emplace(tensor->name, digest_line(*tensor));
  }
  std::string all_lines;
  for (const auto& [name, line] : lines)
    all_lines += line;
  const std::string weights_digest = hash_text(all_lines).to_hex();
  frozen.fingerprint =
      hash_text(document.config_json + "\n" + weights_digest + "\n" + document.tokenizer_hash +
                "\n" + document.chat_template_hash.value_or("") + "\n")
          .to_hex();
  for (Shard& shard : shards) {
    shard.document.weights_digest = weights_digest;
    shard.document.fingerprint = frozen.fingerprint;
    auto metadata = shard.document.to_json();
    if (!metadata) return std::move(metadata).error();
    shard.metadata = *std::move(metadata);
    frozen.total_bytes += shard.metadata.size();
    const std::span<const char> text(shard.metadata);
    auto added = shard.writer->add(RegionKind::kMetadata, 0, {std::as_bytes(text)});
    if (!added) return std::move(added).error();
  }
  for (auto shard = shards.rbegin(); shard != shards.rend(); ++shard)
    if (auto committed = shard->writer->commit(); !committed) return std::move(committed).error();
  frozen.num_regions = num_ranks * (regions->size() + 1);
  return frozen;
}

std::string hash_tokenizer(const text::TokenizerSpec& spec) {
  std::string all;
  const auto add = [&all](std::string_view text) {
    all += std::to_string(text.size()) + ":";
    all += text;
  };
  const auto add_number = [&](auto number) { add(std::to_string(number)); };
  add_number(static_cast<int>(spec.style));
  for (std::size_t id = 0; id < spec.tokens.size(); ++id) {
    add(spec.tokens[id]);
    add_number(static_cast<int>(spec.kinds[id]));
  }
  add("merges");
  for (const std::string& merge : spec.merges)
    add(merge);
  add("scores");
  for (const float score : spec.scores)
    add(std::string_view(reinterpret_cast<const char*>(&score), sizeof(score)));
  add(spec.pre_tokenizer);
  for (const text::SplitRegex& split : spec.splits) {
    add(split.pattern);
    add_number(2 * static_cast<int>(split.keep_matches) + static_cast<int>(split.keep_gaps));
  }
  for (const bool flag : {spec.split_at_spaces, spec.ignore_merges, spec.normalize_nfc,
                          spec.fuse_unknown, spec.add_bos, spec.add_eos}) {
    add_number(static_cast<int>(flag));
  }
  add_number(static_cast<int>(spec.space_prefix));
  add_number(static_cast<int>(spec.decode_start));
  for (const auto* ids : {&spec.strip_left, &spec.strip_right, &spec.eos}) {
    add("ids");
    for (const TokenId id : *ids)
      add_number(id);
  }
  add_number(spec.unknown);
  add_number(spec.bos);
  return hash_text(all).to_hex();
}

}  // namespace thaw::cli

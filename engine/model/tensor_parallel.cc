#include "engine/model/tensor_parallel.h"

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "engine/model/cuda_image.h"
#include "engine/ops/packed_weight.h"
#include "engine/ops/weight_tiles.h"

namespace thaw::model {
namespace {

using checkpoint::WeightEntry;
using ops::cuda::kChunk;
using ops::cuda::kWeightGroup;

/// Even shares of `total`, each a multiple of `unit` but for the last.
std::vector<int> cut(int total, int unit, int size) {
  const std::int64_t units = (total + unit - 1) / unit;
  std::vector<int> bounds;
  for (int rank = 0; rank <= size; ++rank)
    bounds.push_back(std::min<int>(total, static_cast<int>(units * rank / size) * unit));
  return bounds;
}

/// Rows [first, first + count) of an entry.
struct RowRange {
  int first = 0;
  int count = 0;
};

RowRange range_of(const std::vector<int>& bounds, int rank, int scale = 1, int offset = 0) {
  const auto at = static_cast<std::size_t>(rank);
  return {offset + bounds[at] * scale, (bounds[at + 1] - bounds[at]) * scale};
}

/// A rank's rows of an entry, in order; empty: all of them.
std::vector<RowRange> rows_of(std::string_view name, const ModelConfig& config,
                              const ShardBounds& bounds, int rank) {
  const std::size_t dot = name.rfind('.');
  const std::string_view leaf = dot == std::string_view::npos ? name : name.substr(dot + 1);
  if (leaf == "qkv" || leaf == "qkv_bias") {
    const int q = config.num_heads * config.head_dim;
    const int kv = config.num_kv_heads * config.head_dim;
    return {range_of(bounds.heads, rank, config.head_dim),
            range_of(bounds.kv_heads, rank, config.head_dim, q),
            range_of(bounds.kv_heads, rank, config.head_dim, q + kv)};
  }
  if (leaf == "o" || leaf == "o_bias" || leaf == "down") return {range_of(bounds.hidden, rank)};
  // Gate and up lie interleaved by eights.
  if (leaf == "gate_up") return {range_of(bounds.intermediate, rank, 2)};
  if (name == "head") return {range_of(bounds.vocabulary, rank)};
  return {};
}

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + checkpoint::kWeightAlignment - 1) / checkpoint::kWeightAlignment *
         checkpoint::kWeightAlignment;
}

Error misshapen(const WeightEntry& entry) {
  return make_error(Errc::kDataLoss,
                    "weight image: tensor " + entry.name + " of " + std::to_string(entry.rows) +
                        " x " + std::to_string(entry.cols) + " and " +
                        std::to_string(entry.size_bytes) + " bytes is not packed for CUDA");
}

/// Bytes of a row, or of an element of a vector; 0 where the entry is misshapen.
std::uint64_t row_bytes(const WeightEntry& entry) {
  const bool is_matrix = entry.packing == static_cast<std::uint32_t>(ops::Packing::kTiledBF16);
  const bool is_vector = entry.packing == static_cast<std::uint32_t>(ops::Packing::kVectorF32);
  if ((!is_matrix && !is_vector) || entry.rows < 1 || entry.cols < 1 ||
      entry.size_bytes !=
          ops::packed_bytes(static_cast<ops::Packing>(entry.packing), entry.rows, entry.cols))
    return 0;
  return is_matrix ? static_cast<std::uint64_t>(entry.cols) * 2 : sizeof(float);
}

}  // namespace

Result<void> check_tensor_parallel(const ModelConfig& config, TensorParallel tp) {
  if (tp.size < 1 || tp.size > kMostTensorParallel || tp.rank < 0 || tp.rank >= tp.size) {
    return make_error(Errc::kInvalidArgument, "tensor parallel: rank " + std::to_string(tp.rank) +
                                                  " of " + std::to_string(tp.size) + "; up to " +
                                                  std::to_string(kMostTensorParallel) +
                                                  " ranks, counted from 0, are right");
  }
  const auto divides = [&](int size) {
    return config.num_kv_heads % size == 0 && config.num_heads % size == 0 &&
           config.hidden_size / kWeightGroup >= size && config.intermediate_size / kChunk >= size &&
           (config.vocab_size + kWeightGroup - 1) / kWeightGroup >= size;
  };
  if (divides(tp.size)) return {};
  std::string sizes;
  for (int size = 1; size <= kMostTensorParallel; ++size)
    if (divides(size)) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  return make_error(Errc::kUnsupported, "tensor parallel: " + std::to_string(tp.size) +
                                            " ranks for " + std::to_string(config.num_heads) +
                                            " query and " + std::to_string(config.num_kv_heads) +
                                            " KV heads; " + sizes + " can be had");
}

ModelConfig rank_heads(const ModelConfig& config, int size) {
  ModelConfig own = config;
  own.num_heads /= size;
  own.num_kv_heads /= size;
  return own;
}

ShardBounds::ShardBounds(const ModelConfig& config, int size)
    : heads(cut(config.num_heads, config.num_heads / size, size)),
      kv_heads(cut(config.num_kv_heads, config.num_kv_heads / size, size)),
      attended(
          cut(config.num_heads * config.head_dim, config.num_heads / size * config.head_dim, size)),
      hidden(cut(config.hidden_size, kWeightGroup, size)),
      intermediate(cut(config.intermediate_size, kChunk, size)),
      vocabulary(cut(config.vocab_size, kWeightGroup, size)) {}

const WeightEntry* ShardPlan::find(const std::string& name) const {
  const auto found = std::ranges::find(entries, name, &WeightEntry::name);
  return found == entries.end() ? nullptr : &*found;
}

Result<ShardPlan> plan_shard(const checkpoint::WeightImageView& image, const ModelConfig& config,
                             TensorParallel tp) {
  if (auto checked = check_tensor_parallel(config, tp); !checked) return checked.error();
  ShardPlan plan;
  if (tp.size == 1) {
    plan.entries = image.entries();
    for (const WeightEntry& entry : plan.entries)
      plan.total_bytes = std::max(plan.total_bytes, entry.offset + entry.size_bytes);
    plan.copies = {{0, 0, plan.total_bytes}};
    return plan;
  }
  const ShardBounds bounds(config, tp.size);
  for (const WeightEntry& entry : image.entries()) {
    const std::uint64_t unit = row_bytes(entry);
    if (unit == 0) return misshapen(entry);
    const bool is_matrix = entry.packing == static_cast<std::uint32_t>(ops::Packing::kTiledBF16);
    std::vector<RowRange> ranges = rows_of(entry.name, config, bounds, tp.rank);
    WeightEntry part = entry;
    part.crc32c = 0;
    part.offset = plan.total_bytes;
    if (ranges.empty()) {
      plan.copies.push_back({entry.offset, part.offset, entry.size_bytes});
    } else {
      int rows = 0;
      for (const RowRange& range : ranges) {
        // Rows lie in groups of 16: a range begins with one, and a last one is padded.
        if (range.first + range.count > (is_matrix ? entry.rows : entry.cols) ||
            (is_matrix && range.first % kWeightGroup != 0))
          return misshapen(entry);
        const std::uint64_t bytes =
            is_matrix ? ops::packed_bytes(ops::Packing::kTiledBF16, range.count, entry.cols)
                      : range.count * unit;
        plan.copies.push_back(
            {entry.offset + range.first * unit, part.offset + rows * unit, bytes});
        rows += range.count;
      }
      (is_matrix ? part.rows : part.cols) = rows;
      part.size_bytes =
          ops::packed_bytes(static_cast<ops::Packing>(part.packing), part.rows, part.cols);
    }
    plan.total_bytes = aligned(plan.total_bytes + part.size_bytes);
    plan.entries.push_back(std::move(part));
  }
  if (const WeightEntry* table = plan.find("token_embedding");
      config.tied_embeddings && table != nullptr) {
    const RowRange range = range_of(bounds.vocabulary, tp.rank);
    WeightEntry head = *table;
    head.name = "head";
    head.offset += static_cast<std::uint64_t>(range.first) * row_bytes(head);
    head.rows = range.count;
    head.size_bytes = ops::packed_bytes(ops::Packing::kTiledBF16, head.rows, head.cols);
    plan.entries.push_back(std::move(head));
  }
  return plan;
}

}  // namespace thaw::model

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"

namespace thaw::checkpoint {

/// One tensor of a WeightImage. `packing` is a value of ops::Packing; this room does not interpret
/// it.
struct WeightEntry {
  std::string name;  ///< our own names: "token_embedding", "layers.0.attention_norm", ...
  std::uint32_t packing = 0;
  std::int64_t rows = 0;  ///< outputs; 1 for vectors
  std::int64_t cols = 0;  ///< inputs
  std::uint64_t offset = 0;  ///< from the start of the image, a multiple of kWeightAlignment
  std::uint64_t size_bytes = 0;
};

inline constexpr std::size_t kWeightAlignment = 4096;

/// One relocatable byte range that holds a model: a table, a JSON document (architecture, source)
/// and the packed tensors. A file, a memfd and a device allocation hold the same bytes; model code
/// sees views. Layout in bytes, little-endian: magic "THAWIMG1", u64 table bytes, the table as
/// JSON, padding, tensors. Immutable once built.
class WeightImageView {
 public:
  /// Checks magic, table and that every entry lies inside `bytes`. `bytes` must outlive the view.
  static Result<WeightImageView> open(std::span<const std::byte> bytes);

  const std::vector<WeightEntry>& entries() const { return entries_; }
  /// Null where there is none of that name.
  const WeightEntry* find(const std::string& name) const;
  std::span<const std::byte> data(const WeightEntry& entry) const {
    return bytes_.subspan(entry.offset, entry.size_bytes);
  }
  /// The JSON document given to the planner (model configuration, tokenizer hash, source).
  const std::string& document() const { return document_; }
  /// Digest over table and document and the source's digest: names these weights.
  const Hash128& digest() const { return digest_; }

 private:
  std::span<const std::byte> bytes_;
  std::vector<WeightEntry> entries_;
  std::map<std::string, std::size_t> index_;
  std::string document_;
  Hash128 digest_;
};

/// Lays out an image before its bytes exist: add every tensor, then write the header into memory of
/// total_bytes() and fill each tensor at its offset.
class WeightImagePlanner {
 public:
  void add(std::string name, std::uint32_t packing, std::int64_t rows, std::int64_t cols,
           std::uint64_t size_bytes);
  /// Fixes the offsets. `source_digest` covers the bytes the tensors are made from.
  void finish(std::string document, const Hash128& source_digest);

  const std::vector<WeightEntry>& entries() const { return entries_; }
  /// REQUIRES: finish() was called.
  std::uint64_t total_bytes() const { return total_bytes_; }
  void write_header(std::span<std::byte> image) const;

 private:
  std::vector<WeightEntry> entries_;
  std::string header_;
  std::uint64_t total_bytes_ = 0;
};

}  // namespace thaw::checkpoint

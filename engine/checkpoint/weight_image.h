#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
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
  std::uint32_t crc32c = 0;  ///< of the packed bytes
};

inline constexpr std::size_t kWeightAlignment = 4096;

/// One relocatable byte range that holds a model: a table, a JSON document (architecture, source)
/// and the packed tensors. A file, a memfd and a device allocation hold the same bytes; model code
/// sees views. Layout in bytes, little-endian: magic "THAWIMG2", u64 table bytes, the table's
/// digest (16 bytes), the table as JSON, padding, tensors. Immutable once built.
class WeightImageView {
 public:
  /// Checks magic, the table against its digest, and that every entry lies inside `bytes`, which
  /// must outlive the view. The tensors' bytes are not read: verify() does that.
  static Result<WeightImageView> open(std::span<const std::byte> bytes);

  const std::vector<WeightEntry>& entries() const { return entries_; }
  /// Null where there is none of that name.
  const WeightEntry* find(const std::string& name) const;
  std::span<const std::byte> data(const WeightEntry& entry) const {
    return bytes_.subspan(entry.offset, entry.size_bytes);
  }
  /// The JSON document given to the planner (model configuration, tokenizer hash, source).
  const std::string& document() const { return document_; }
  /// Digest over the table: document, digest of the source, places and checksums of the tensors. It
  /// names these weights.
  const Hash128& digest() const { return digest_; }
  /// The image up to the end of its table, as WeightImagePlanner::header() made it.
  std::span<const std::byte> header() const { return bytes_.first(header_bytes_); }

  /// Compares every tensor with its checksum: one pass over the image, at the rate of the memory.
  /// Errors: kDataLoss, with the name of a tensor that was damaged.
  Result<void> verify(ThreadPool& threads) const;

 private:
  std::span<const std::byte> bytes_;
  std::size_t header_bytes_ = 0;
  std::vector<WeightEntry> entries_;
  std::map<std::string, std::size_t> index_;
  std::string document_;
  Hash128 digest_;
};

/// Lays out an image before its bytes exist: add every tensor, fix the layout, write each tensor at
/// its offset and tell its checksum, then write header() at the start.
class WeightImagePlanner {
 public:
  void add(std::string name, std::uint32_t packing, std::int64_t rows, std::int64_t cols,
           std::uint64_t size_bytes);
  /// Fixes the offsets. `source_digest` covers the bytes the tensors are made from.
  void finish(std::string document, const Hash128& source_digest);
  /// Of the packed bytes of entries()[index]; 0 until it is told.
  void set_checksum(std::size_t index, std::uint32_t crc32c) { entries_[index].crc32c = crc32c; }

  const std::vector<WeightEntry>& entries() const { return entries_; }
  /// REQUIRES: finish() was called.
  std::uint64_t total_bytes() const { return total_bytes_; }
  /// Magic, table and its digest; of the same size whatever the checksums are. REQUIRES: finish().
  std::string header() const;

 private:
  std::vector<WeightEntry> entries_;
  std::string document_;
  Hash128 source_digest_;
  std::uint64_t data_start_ = 0;
  std::uint64_t total_bytes_ = 0;
};

}  // namespace thaw::checkpoint

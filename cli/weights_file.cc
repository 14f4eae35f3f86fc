#include "cli/weights_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "engine/base/hash.h"
#include "engine/checkpoint/in_quotes.h"
#include "kvsnap/shard_path.h"

namespace thaw::cli {
namespace {

using checkpoint::in_quotes;
using checkpoint::StoredTensor;
using kvsnap::RegionKind;

constexpr std::size_t kMaxMetadataBytes = std::size_t{512} << 20;
constexpr std::size_t kMaxDimensions = 4;

/// GGUF's order: the contiguous dimension first.
std::vector<std::int64_t> stored_shape(const FrozenTensor& tensor) {
  return {tensor.shape.rbegin(), tensor.shape.rend()};
}

/// Bytes of one output of the tensor, and the number of them. Nothing where the shape cannot be.
struct Rows {
  std::uint64_t row_bytes;
  std::uint64_t count;
};
std::optional<Rows> rows_of(const FrozenTensor& tensor) {
  constexpr std::uint64_t kLimit = std::uint64_t{1} << 48;
  if (tensor.shape.size() > kMaxDimensions) return std::nullopt;
  std::uint64_t count = 1;
  const std::int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    if (tensor.shape[i] <= 0 || static_cast<std::uint64_t>(tensor.shape[i]) > kLimit)
      return std::nullopt;
    if (i + 1 == tensor.shape.size()) break;
    if (count > kLimit / static_cast<std::uint64_t>(tensor.shape[i])) return std::nullopt;
    count *= static_cast<std::uint64_t>(tensor.shape[i]);
  }
  const auto elements = static_cast<std::uint64_t>(checkpoint::dtype_block_elements(tensor.dtype));
  if (static_cast<std::uint64_t>(cols) % elements != 0) return std::nullopt;
  const std::uint64_t row_bytes =
      static_cast<std::uint64_t>(cols) / elements * checkpoint::dtype_block_bytes(tensor.dtype);
  if (row_bytes > std::numeric_limits<std::uint64_t>::max() / count) return std::nullopt;
  return Rows{row_bytes, count};
}

Error damaged(const std::string& path, const std::string& what) {
  return make_error(Errc::kDataLoss, path + ": metadata: " + what);
}

Error other_freeze(const std::string& shard, const std::string& first) {
  return make_error(Errc::kDataLoss,
                    shard + " is of another freeze than " + first + "; freeze the model again");
}

}  // namespace

Result<std::optional<WeightsDocument>> read_weights_document(const kvsnap::ContainerReader& reader,
                                                             ThreadPool& threads) {
  const kvsnap::Region* region = reader.find(RegionKind::kMetadata, 0);
  if (region == nullptr) return std::optional<WeightsDocument>();
  const auto text = reader.read_text(*region, kMaxMetadataBytes, threads);
  if (!text) return text.error();
  auto document = WeightsDocument::parse(*text);
  if (document) return std::optional(*std::move(document));
  Error error = std::move(document).error();
  error.message = reader.path() + ": " + error.message;
  return error;
}

Result<WeightsFile::Shard> WeightsFile::open_shard(kvsnap::FileIo& io, const std::string& path) {
  auto reader = kvsnap::ContainerReader::open(io, path);
  if (!reader) return std::move(reader).error();
  ThreadPool caller(1);
  auto document = read_weights_document(*reader, caller);
  if (!document) return std::move(document).error();
  std::optional<WeightsDocument>& described = *document;
  if (!described) {
    return make_error(Errc::kUnsupported,
                      path +
                          ": it has no metadata, so nothing says which weights these are; "
                          "`thaw freeze` writes files that say it");
  }
  return make_shard(*std::move(reader), *std::move(described), {});
}

Result<WeightsFile::Shard> WeightsFile::make_shard(
    kvsnap::ContainerReader reader, WeightsDocument document,
    const std::map<std::uint32_t, std::uint64_t>& padding) {
  auto mapping = reader.map();
  if (!mapping) return std::move(mapping).error();
  if (mapping->size_bytes() != reader.file_bytes())
    return make_error(Errc::kDataLoss, reader.path() + ": its size changed while it was opened");
  Shard shard{std::move(reader), *std::move(mapping), std::move(document), {}};
  const std::string& path = shard.reader.path();

  // Tensors fill their regions one after another, and nothing else is there.
  std::map<std::uint32_t, std::uint64_t> filled;
  for (const FrozenTensor& tensor : shard.document.tensors) {
    const std::string name = "tensor " + in_quotes(tensor.name);
    const kvsnap::Region* region = shard.reader.find(RegionKind::kWeights, tensor.region);
    if (region == nullptr)
      return damaged(path, name + " lies in weights " + std::to_string(tensor.region) +
                               ", which the file does not have");
    const auto rows = rows_of(tensor);
    if (!rows) return damaged(path, name + " has a shape that cannot be");
    std::uint64_t count = rows->count;
    if (tensor.rows) {
      if (static_cast<std::uint64_t>(tensor.rows->second) > rows->count)
        return damaged(path, name + " has more rows here than it has");
      count = static_cast<std::uint64_t>(tensor.rows->second - tensor.rows->first);
    }
    const std::uint64_t size = count * rows->row_bytes;
    std::uint64_t& end = filled[tensor.region];
    if (tensor.offset != end || size > region->size_bytes - end) {
      return damaged(path, name + " has " + std::to_string(size) + " bytes at byte " +
                               std::to_string(tensor.offset) + " of a region of " +
                               std::to_string(region->size_bytes) + ", of which " +
                               std::to_string(end) + " are taken");
    }
    end += size;
    shard.parts.emplace_back(shard.mapping.bytes().subspan(region->offset + tensor.offset, size));
  }
  for (const auto& [region, bytes] : padding)
    filled[region] += bytes;
  for (const kvsnap::Region& region : shard.reader.regions()) {
    if (region.kind == RegionKind::kWeights && filled[region.logical_id] != region.size_bytes) {
      return damaged(path, "weights " + std::to_string(region.logical_id) + " have " +
                               std::to_string(region.size_bytes) + " bytes, but tensors for " +
                               std::to_string(filled[region.logical_id]));
    }
  }
  return shard;
}

Result<WeightsFile> WeightsFile::open(kvsnap::FileIo& io, const std::string& path,
                                      kvsnap::Verify checks) {
  WeightsFile file;
  file.path_ = path;
  file.checks_ = checks;
  auto first = open_shard(io, path);
  if (!first) return std::move(first).error();
  file.document_ = first->document;
  file.shards_.push_back(*std::move(first));
  const WeightsDocument& document = file.document_;
  if (document.rank != 0) {
    return make_error(Errc::kInvalidArgument,
                      path + " is the shard of rank " + std::to_string(document.rank) + " of " +
                          std::to_string(document.num_ranks) + "; name that of rank 0");
  }
  for (std::uint32_t rank = 1; rank < document.num_ranks; ++rank) {
    const std::string shard_path = kvsnap::shard_path(path, rank);
    auto shard = open_shard(io, shard_path);
    if (!shard && shard.error().code == Errc::kNotFound) {
      return make_error(Errc::kNotFound, shard_path + " is missing; the model is split over " +
                                             std::to_string(document.num_ranks) + " files");
    }
    if (!shard) return std::move(shard).error();
    if (shard->document.fingerprint != document.fingerprint || shard->document.rank != rank ||
        shard->document.num_ranks != document.num_ranks ||
        shard->document.tensors.size() != document.tensors.size()) {
      return other_freeze(shard_path, path);
    }
    file.shards_.push_back(*std::move(shard));
  }
  const auto taken = document.num_ranks == 1 ? file.take_whole(file.shards_.front()) : file.merge();
  if (!taken) return taken.error();
  if (auto indexed = file.index(); !indexed) return std::move(indexed).error();
  return file;
}

Result<WeightsFile> WeightsFile::open_described(
    kvsnap::ContainerReader reader, WeightsDocument document,
    const std::map<std::uint32_t, std::uint64_t>& padding, kvsnap::Verify checks) {
  WeightsFile file;
  file.path_ = reader.path();
  file.checks_ = checks;
  auto shard = make_shard(std::move(reader), std::move(document), padding);
  if (!shard) return std::move(shard).error();
  file.document_ = shard->document;
  file.shards_.push_back(*std::move(shard));
  if (auto taken = file.take_whole(file.shards_.front()); !taken) return std::move(taken).error();
  if (auto indexed = file.index(); !indexed) return std::move(indexed).error();
  return file;
}

Result<void> WeightsFile::take_whole(const Shard& shard) {
  for (std::size_t i = 0; i < shard.document.tensors.size(); ++i) {
    const FrozenTensor& tensor = document_.tensors[i];
    if (tensor.rows) return damaged(path_, "tensor " + in_quotes(tensor.name) + " is not whole");
    tensors_.push_back({tensor.name, tensor.dtype, stored_shape(tensor), shard.parts[i]});
  }
  return {};
}

Result<void> WeightsFile::merge() {
  // Every tensor's size: that of all parts, which are mapped, so no more than the files have.
  std::uint64_t total = 0;
  std::vector<std::uint64_t> sizes;
  for (const FrozenTensor& tensor : document_.tensors) {
    const Rows rows = rows_of(tensor).value_or(Rows{});  // checked by open_shard()
    const std::size_t index = sizes.size();
    std::uint64_t size = tensor.rows ? 0 : rows.count * rows.row_bytes;
    std::int64_t end = 0;
    for (const Shard& shard : shards_) {
      const FrozenTensor& part = shard.document.tensors[index];
      const bool same = part.name == tensor.name && part.dtype == tensor.dtype &&
                        part.shape == tensor.shape &&
                        part.rows.has_value() == tensor.rows.has_value();
      const bool goes_on = !part.rows || part.rows->first == end;
      const bool is_equal =
          part.rows || std::ranges::equal(shard.parts[index], shards_.front().parts[index]);
      if (!same || !goes_on || !is_equal) {
        return damaged(shard.reader.path(), "tensor " + in_quotes(part.name) +
                                                " does not go with that of the other shards");
      }
      if (part.rows) end = part.rows->second;
      if (part.rows) size += shard.parts[index].size();
    }
    if (tensor.rows && static_cast<std::uint64_t>(end) != rows.count)
      return damaged(path_, "the shards have not all rows of tensor " + in_quotes(tensor.name));
    sizes.push_back(size);
    total += size;
  }
  const auto memory = create_memfd("thaw-shards", static_cast<std::size_t>(total));
  if (!memory) return memory.error();
  auto mapping = map_fd(memory->get(), static_cast<std::size_t>(total), MapAccess::kReadWrite);
  if (!mapping) return std::move(mapping).error();
  merged_ = *std::move(mapping);
  std::size_t offset = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const FrozenTensor& tensor = document_.tensors[i];
    std::size_t at = offset;
    for (const Shard& shard : shards_) {
      const auto part = shard.parts[i];
      if (!part.empty()) std::memcpy(merged_.data() + at, part.data(), part.size());
      drop_pages(part);
      at += part.size();
      if (!tensor.rows) break;
    }
    tensors_.push_back({tensor.name, tensor.dtype, stored_shape(tensor),
                        merged_.bytes().subspan(offset, sizes[i])});
    offset += sizes[i];
  }
  return {};
}

Result<void> WeightsFile::index() {
  // Names are views into document_.tensors, whose elements stay in place when the file moves.
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    tensors_[i].name = document_.tensors[i].name;
    if (!tensor_index_.emplace(tensors_[i].name, i).second)
      return damaged(path_, "tensor " + in_quotes(tensors_[i].name) + " occurs twice");
  }
  return {};
}

const StoredTensor* WeightsFile::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

Hash128 WeightsFile::digest() const {
  std::string digests;
  for (const Shard& shard : shards_)
    digests += checkpoint::hash_and_drop(shard.mapping).to_hex();
  return hash_text("thaw\n" + digests);
}

Result<void> WeightsFile::verify(ThreadPool& threads) const {
  if (checks_ == kvsnap::Verify::kNothing) return {};
  for (const Shard& shard : shards_)
    if (auto verified = shard.reader.verify(threads); !verified) return verified;
  return {};
}

std::vector<std::string> WeightsFile::files() const {
  std::vector<std::string> paths;
  paths.reserve(shards_.size());
  for (const Shard& shard : shards_)
    paths.push_back(shard.reader.path());
  return paths;
}

void WeightsFile::release(const StoredTensor& tensor) const {
  if (shards_.size() == 1) drop_pages(tensor.data);
}

}  // namespace thaw::cli

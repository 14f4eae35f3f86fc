#include "engine/checkpoint/weight_image.h"

#include <bit>
#include <cstring>
#include <limits>
#include <string_view>

#include <nlohmann/json.hpp>

#include "engine/base/hash.h"

namespace thaw::checkpoint {
namespace {

constexpr std::string_view kMagic = "THAWIMG1";
constexpr std::uint64_t kPrefixBytes = 16;  ///< magic and table length
static_assert(std::endian::native == std::endian::little);

std::uint64_t align_up(std::uint64_t bytes) {
  return (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment;
}

Error damaged(const std::string& what) {
  return make_error(Errc::kDataLoss, "weight image: " + what);
}

template <typename T>
bool read_number(const nlohmann::json& value, T& out) {
  if (!value.is_number_unsigned()) return false;
  const auto number = value.get<std::uint64_t>();
  if (number > static_cast<std::uint64_t>(std::numeric_limits<T>::max())) return false;
  out = static_cast<T>(number);
  return true;
}

}  // namespace

// The table is {"document": text, "source": hex digest, "tensors": [[name, packing, rows, cols,
// offset, bytes], ...]}, offsets from the first aligned byte after it: so its own length does not
// change what it says.
Result<WeightImageView> WeightImageView::open(std::span<const std::byte> bytes) {
  if (bytes.size() < kPrefixBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0)
    return damaged("it does not start with " + std::string(kMagic));
  std::uint64_t table_bytes = 0;
  std::memcpy(&table_bytes, bytes.data() + kMagic.size(), sizeof(table_bytes));
  if (table_bytes > bytes.size() - kPrefixBytes) {
    return damaged("a table of " + std::to_string(table_bytes) + " bytes in an image of " +
                   std::to_string(bytes.size()));
  }
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + kPrefixBytes;
  const nlohmann::json table = nlohmann::json::parse(text, text + table_bytes, nullptr, false);
  if (!table.is_object() || !table.contains("document") || !table["document"].is_string() ||
      !table.contains("tensors") || !table["tensors"].is_array()) {
    return damaged("its table is not the JSON that was expected");
  }

  WeightImageView view;
  view.bytes_ = bytes;
  view.document_ = table["document"].get<std::string>();
  view.digest_ = hash_bytes(bytes.first(kPrefixBytes + table_bytes));
  const std::uint64_t data_start = align_up(kPrefixBytes + table_bytes);
  for (const nlohmann::json& row : table["tensors"]) {
    WeightEntry entry;
    std::uint64_t offset = 0;
    if (!row.is_array() || row.size() != 6 || !row[0].is_string() ||
        !read_number(row[1], entry.packing) || !read_number(row[2], entry.rows) ||
        !read_number(row[3], entry.cols) || !read_number(row[4], offset) ||
        !read_number(row[5], entry.size_bytes)) {
      return damaged("an entry of its table is not [name, packing, rows, cols, offset, bytes]");
    }
    entry.name = row[0].get<std::string>();
    const std::uint64_t available = bytes.size() > data_start ? bytes.size() - data_start : 0;
    if (offset % kWeightAlignment != 0 || offset > available ||
        entry.size_bytes > available - offset) {
      return damaged("tensor " + entry.name + " lies outside the image");
    }
    if (view.find(entry.name) != nullptr) return damaged("tensor " + entry.name + " occurs twice");
    entry.offset = data_start + offset;
    view.index_.emplace(entry.name, view.entries_.size());
    view.entries_.push_back(std::move(entry));
  }
  return view;
}

const WeightEntry* WeightImageView::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

void WeightImagePlanner::add(std::string name, std::uint32_t packing, std::int64_t rows,
                             std::int64_t cols, std::uint64_t size_bytes) {
  entries_.push_back({std::move(name), packing, rows, cols, 0, size_bytes});
}

void WeightImagePlanner::finish(std::string document, const Hash128& source_digest) {
  nlohmann::json tensors = nlohmann::json::array();
  std::uint64_t data_bytes = 0;
  for (WeightEntry& entry : entries_) {
    entry.offset = data_bytes;
    tensors.push_back(
        {entry.name, entry.packing, entry.rows, entry.cols, entry.offset, entry.size_bytes});
    data_bytes = align_up(data_bytes + entry.size_bytes);
  }
  const std::string table = nlohmann::json{
      {"document", std::move(document)},
      {"source", source_digest.to_hex()},
      {"tensors",
       std::move(tensors)}}.dump();
  const std::uint64_t table_bytes = table.size();
  header_ = kMagic;
  header_.append(reinterpret_cast<const char*>(&table_bytes), sizeof(table_bytes));
  header_ += table;
  const std::uint64_t data_start = align_up(header_.size());
  for (WeightEntry& entry : entries_)
    entry.offset += data_start;
  total_bytes_ = data_start + data_bytes;
}

void WeightImagePlanner::write_header(std::span<std::byte> image) const {
  std::memcpy(image.data(), header_.data(), header_.size());
}

}  // namespace thaw::checkpoint

#include "engine/checkpoint/weight_image.h"

#include <atomic>
#include <bit>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string_view>

#include <nlohmann/json.hpp>

#include "engine/base/crc32c.h"
#include "engine/base/hash.h"

namespace thaw::checkpoint {
namespace {

constexpr std::string_view kMagic = "THAWIMG2";
constexpr std::uint64_t kDigestAt = 16;  ///< after magic and table length
constexpr std::uint64_t kPrefixBytes = 32;
constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();  ///< no entry
constexpr std::size_t kChecksumDigits = 8;  ///< always so many, so that tables have one length
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

bool read_checksum(const nlohmann::json& value, std::uint32_t& out) {
  if (!value.is_string()) return false;
  const auto& text = value.get_ref<const std::string&>();
  const char* const end = text.data() + text.size();
  return text.size() == kChecksumDigits && std::from_chars(text.data(), end, out, 16).ptr == end;
}

std::string checksum_text(std::uint32_t crc32c) {
  char text[kChecksumDigits + 1];
  std::snprintf(text, sizeof text, "%08x", crc32c);
  return text;
}

}  // namespace

// The table is {"document": text, "source": hex digest, "tensors": [[name, packing, rows, cols,
// offset, bytes, checksum], ...]}, offsets from the first aligned byte after it: so its own length
// does not change what it says.
Result<WeightImageView> WeightImageView::open(std::span<const std::byte> bytes) {
  if (bytes.size() < kPrefixBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0)
    return damaged("it does not start with " + std::string(kMagic));
  std::uint64_t table_bytes = 0;
  std::memcpy(&table_bytes, bytes.data() + kMagic.size(), sizeof(table_bytes));
  if (table_bytes > bytes.size() - kPrefixBytes) {
    return damaged("a table of " + std::to_string(table_bytes) + " bytes in an image of " +
                   std::to_string(bytes.size()));
  }
  const Hash128 digest = hash_bytes(bytes.subspan(kPrefixBytes, table_bytes));
  if (std::memcmp(bytes.data() + kDigestAt, digest.bytes.data(), digest.bytes.size()) != 0)
    return damaged("its table does not have the digest that it should have");
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + kPrefixBytes;
  const nlohmann::json table = nlohmann::json::parse(text, text + table_bytes, nullptr, false);
  if (!table.is_object() || !table.contains("document") || !table["document"].is_string() ||
      !table.contains("tensors") || !table["tensors"].is_array()) {
    return damaged("its table is not the JSON that was expected");
  }

  WeightImageView view;
  view.bytes_ = bytes;
  view.document_ = table["document"].get<std::string>();
  view.digest_ = digest;
  view.header_bytes_ = kPrefixBytes + table_bytes;
  const std::uint64_t data_start = align_up(kPrefixBytes + table_bytes);
  for (const nlohmann::json& row : table["tensors"]) {
    WeightEntry entry;
    std::uint64_t offset = 0;
    if (!row.is_array() || row.size() != 7 || !row[0].is_string() ||
        !read_number(row[1], entry.packing) || !read_number(row[2], entry.rows) ||
        !read_number(row[3], entry.cols) || !read_number(row[4], offset) ||
        !read_number(row[5], entry.size_bytes) || !read_checksum(row[6], entry.crc32c)) {
      return damaged(
          "an entry of its table is not [name, packing, rows, cols, offset, bytes, checksum]");
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

Result<void> WeightImageView::verify(ThreadPool& threads) const {
  std::atomic<std::size_t> wrong = kNone;
  threads.parallel_for(static_cast<int>(entries_.size()), [&](int index) {
    const auto at = static_cast<std::size_t>(index);
    if (crc32c(data(entries_[at])) != entries_[at].crc32c) wrong = at;
  });
  if (wrong == kNone) return {};
  return damaged("tensor " + entries_[wrong].name + " does not have its checksum");
}

void WeightImagePlanner::add(std::string name, std::uint32_t packing, std::int64_t rows,
                             std::int64_t cols, std::uint64_t size_bytes) {
  entries_.push_back({std::move(name), packing, rows, cols, 0, size_bytes, 0});
}

void WeightImagePlanner::finish(std::string document, const Hash128& source_digest) {
  document_ = std::move(document);
  source_digest_ = source_digest;
  data_start_ = 0;
  std::uint64_t data_bytes = 0;
  for (WeightEntry& entry : entries_) {
    entry.offset = data_bytes;
    data_bytes = align_up(data_bytes + entry.size_bytes);
  }
  data_start_ = align_up(header().size());
  for (WeightEntry& entry : entries_)
    entry.offset += data_start_;
  total_bytes_ = data_start_ + data_bytes;
}

std::string WeightImagePlanner::header() const {
  nlohmann::json tensors = nlohmann::json::array();
  for (const WeightEntry& entry : entries_) {
    tensors.push_back({entry.name, entry.packing, entry.rows, entry.cols,
                       entry.offset - data_start_, entry.size_bytes, checksum_text(entry.crc32c)});
  }
  const std::string table = nlohmann::json{
      {"document", document_},
      {"source", source_digest_.to_hex()},
      {"tensors",
       std::move(tensors)}}.dump();
  const std::uint64_t table_bytes = table.size();
  const Hash128 digest = hash_text(table);
  std::string header(kMagic);
  header.append(reinterpret_cast<const char*>(&table_bytes), sizeof(table_bytes));
  header.append(reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size());
  header += table;
  return header;
}

}  // namespace thaw::checkpoint

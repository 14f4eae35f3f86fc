#include "engine/checkpoint/safetensors_header.h"

#include <simdjson.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "engine/checkpoint/in_quotes.h"

namespace thaw::checkpoint {
namespace {

using simdjson::dom::element;

constexpr std::uint64_t kLengthBytes = 8;
// The cap of the format itself. The parser's memory is a small multiple of the header, which the
// file must hold.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kMaxHeaderDepth = 8;
constexpr std::size_t kMaxShapeDimensions = 8;

struct ElementType {
  std::string_view name;
  std::uint64_t bits;
  std::optional<DType> dtype;  ///< none: known, not supported
};

constexpr ElementType kElementTypes[] = {
    {"F32", 32, DType::kF32},     {"F16", 16, DType::kF16},     {"BF16", 16, DType::kBF16},
    {"F64", 64, std::nullopt},    {"I64", 64, std::nullopt},    {"U64", 64, std::nullopt},
    {"I32", 32, std::nullopt},    {"U32", 32, std::nullopt},    {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},    {"I8", 8, std::nullopt},      {"U8", 8, std::nullopt},
    {"BOOL", 8, std::nullopt},    {"C64", 64, std::nullopt},    {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt}, {"F8_E8M0", 8, std::nullopt}, {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt}};

/// Reads the tensors of one header; the first failure sticks.
class HeaderReader {
 public:
  HeaderReader(const std::string& path, std::uint64_t data_start, std::uint64_t data_bytes)
      : path_(path), data_start_(data_start), data_bytes_(data_bytes) {}

  void read(std::string_view name, element value) {
    if (error_ || name == "__metadata__") return;
    SafetensorsEntry entry;
    entry.name = name;
    simdjson::dom::object fields;
    if (value.get(fields) != simdjson::SUCCESS) return fail(entry, "is described by no object");
    for (const char* key : {"dtype", "shape", "data_offsets"}) {
      int times = 0;
      for (const auto field : fields)
        times += field.key == key ? 1 : 0;
      if (times == 1) continue;
      return fail(entry, times == 0 ? "has no " + std::string(key)
                                    : "has its " + std::string(key) + " twice");
    }
    const ElementType* type = read_type(fields, entry);
    read_shape(fields, entry);
    read_offsets(fields, entry);
    if (error_) return;
    if (type != nullptr) check_size(entry, *type);
    entries_.push_back(std::move(entry));
  }

  Result<std::vector<SafetensorsEntry>> finish() {
    if (error_) return *std::move(error_);
    std::ranges::sort(entries_, {}, &SafetensorsEntry::name);
    const auto same = std::ranges::adjacent_find(entries_, {}, &SafetensorsEntry::name);
    if (same != entries_.end()) return failure(*same, "occurs twice");
    std::ranges::sort(entries_, [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
      return std::pair(a.begin, a.size_bytes) < std::pair(b.begin, b.size_bytes);
    });
    std::uint64_t end = data_start_;
    for (const SafetensorsEntry& entry : entries_) {
      if (entry.begin != end) {
        const std::string what =
            entry.begin < end ? "overlaps the tensor before it" : "leaves a hole before it";
        return failure(entry, what + ": it begins at byte " +
                                  std::to_string(entry.begin - data_start_) +
                                  " of the data, not at " + std::to_string(end - data_start_));
      }
      end += entry.size_bytes;
    }
    if (end != data_start_ + data_bytes_) {
      return make_error(Errc::kDataLoss, path_ + ": its tensors take " +
                                             std::to_string(end - data_start_) + " bytes, but " +
                                             std::to_string(data_bytes_) + " follow the header");
    }
    return std::move(entries_);
  }

 private:
  Error failure(const SafetensorsEntry& entry, const std::string& what) const {
    return make_error(Errc::kDataLoss, path_ + ": tensor " + in_quotes(entry.name) + " " + what);
  }

  /// The first failure stays.
  void fail(const SafetensorsEntry& entry, const std::string& what) {
    if (!error_) error_ = failure(entry, what);
  }

  const ElementType* read_type(const simdjson::dom::object& fields, SafetensorsEntry& entry) {
    std::string_view name;
    if (fields["dtype"].get(name) != simdjson::SUCCESS) {
      fail(entry, "has a dtype that is no string");
      return nullptr;
    }
    entry.dtype_name = name;
    const auto* known = std::ranges::find(kElementTypes, name, &ElementType::name);
    if (known == std::end(kElementTypes)) return nullptr;  // some newer type: its size is unknown
    entry.dtype = known->dtype;
    return known;
  }

  void read_shape(const simdjson::dom::object& fields, SafetensorsEntry& entry) {
    simdjson::dom::array extents;
    if (fields["shape"].get(extents) != simdjson::SUCCESS)
      return fail(entry, "has a shape that is no list");
    for (const element extent : extents) {
      std::int64_t value = 0;
      if (extent.get(value) != simdjson::SUCCESS || value <= 0)
        return fail(entry, "has an impossible shape; positive integers are right");
      if (entry.shape.size() == kMaxShapeDimensions) {
        return fail(entry, "has more than " + std::to_string(kMaxShapeDimensions) + " dimensions");
      }
      entry.shape.push_back(value);
    }
  }

  void read_offsets(const simdjson::dom::object& fields, SafetensorsEntry& entry) {
    simdjson::dom::array offsets;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    if (fields["data_offsets"].get(offsets) != simdjson::SUCCESS || offsets.size() != 2 ||
        offsets.at(0).get(begin) != simdjson::SUCCESS ||
        offsets.at(1).get(end) != simdjson::SUCCESS) {
      return fail(entry, "has data_offsets that are no pair of positions");
    }
    if (begin > end || end > data_bytes_) {
      return fail(entry, "lies at bytes " + std::to_string(begin) + " to " + std::to_string(end) +
                             " of the data, which has " + std::to_string(data_bytes_));
    }
    entry.begin = data_start_ + begin;
    entry.size_bytes = end - begin;
  }

  void check_size(const SafetensorsEntry& entry, const ElementType& type) {
    std::uint64_t bits = type.bits;
    for (const std::int64_t extent : entry.shape) {
      if (__builtin_mul_overflow(bits, static_cast<std::uint64_t>(extent), &bits))
        return fail(entry, "has an impossible shape");
    }
    if (bits % 8 == 0 && bits / 8 == entry.size_bytes) return;
    fail(entry, "has " + std::to_string(entry.size_bytes) + " bytes; its shape and type " +
                    std::string(type.name) + " ask for " + std::to_string((bits + 7) / 8));
  }

  const std::string& path_;
  std::uint64_t data_start_;
  std::uint64_t data_bytes_;
  std::vector<SafetensorsEntry> entries_;
  std::optional<Error> error_;
};

}  // namespace

Result<std::vector<SafetensorsEntry>> read_safetensors_header(const std::string& path,
                                                              std::span<const std::byte> bytes) {
  std::uint64_t header_bytes = 0;
  if (bytes.size() < kLengthBytes)
    return make_error(Errc::kDataLoss, path + ": too short to be a safetensors file");
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > bytes.size() - kLengthBytes || header_bytes > kMaxHeaderBytes) {
    return make_error(Errc::kDataLoss,
                      path + ": truncated, or not a safetensors file: it claims a header of " +
                          std::to_string(header_bytes) + " bytes, " +
                          (header_bytes > kMaxHeaderBytes
                               ? "at most " + std::to_string(kMaxHeaderBytes) + " are right"
                               : std::to_string(bytes.size() - kLengthBytes) + " follow"));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                              header_bytes);
  simdjson::dom::parser parser;
  simdjson::dom::object root;
  auto status = parser.allocate(text.size(), kMaxHeaderDepth);
  if (status == simdjson::SUCCESS) status = parser.parse(text.data(), text.size()).get(root);
  if (status != simdjson::SUCCESS) {
    return make_error(Errc::kDataLoss,
                      path + ": its header is not the JSON object that it should be (" +
                          simdjson::error_message(status) + ")");
  }
  const std::uint64_t data_start = kLengthBytes + header_bytes;
  HeaderReader reader(path, data_start, bytes.size() - data_start);
  for (const auto field : root)
    reader.read(field.key, field.value);
  return reader.finish();
}

}  // namespace thaw::checkpoint

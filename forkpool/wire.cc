#include "forkpool/wire.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

namespace thaw::forkpool::wire {
namespace {

static_assert(std::endian::native == std::endian::little, "token arrays are copied as they lie");

/// Reads one value, and counts while it does. A byte string is copied as a whole, which the
/// library's reader does byte by byte: nearly all that travels is tokens.
class Reader {
 public:
  explicit Reader(std::span<const char> payload) : payload_(payload) {}

  Json whole() {
    Json json = value(0);
    if (at_ < payload_.size()) malformed();
    return json;
  }

 private:
  /// `depth`: containers around it.
  Json value(std::size_t depth) {
    if (++num_values_ > kMaxValues)
      fail("payload: more than " + std::to_string(kMaxValues) + " values");
    const auto type = number<std::uint8_t>();
    if (type <= 0x7f) return static_cast<std::uint64_t>(type);
    if (type <= 0x8f) return map(type & 0x0f, depth);
    if (type <= 0x9f) return array(type & 0x0f, depth);
    if (type <= 0xbf) return text(type & 0x1f);
    if (type >= 0xe0) return static_cast<std::int64_t>(static_cast<std::int8_t>(type));
    switch (type) {
      case 0xc0:
        return nullptr;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
        return binary(number<std::uint8_t>());
      case 0xc5:
        return binary(number<std::uint16_t>());
      case 0xc6:
        return binary(number<std::uint32_t>());
      case 0xca:
        return static_cast<double>(std::bit_cast<float>(number<std::uint32_t>()));
      case 0xcb:
        return std::bit_cast<double>(number<std::uint64_t>());
      case 0xcc:
        return static_cast<std::uint64_t>(number<std::uint8_t>());
      case 0xcd:
        return static_cast<std::uint64_t>(number<std::uint16_t>());
      case 0xce:
        return static_cast<std::uint64_t>(number<std::uint32_t>());
      case 0xcf:
        return number<std::uint64_t>();
      case 0xd0:
        return static_cast<std::int64_t>(static_cast<std::int8_t>(number<std::uint8_t>()));
      case 0xd1:
        return static_cast<std::int64_t>(static_cast<std::int16_t>(number<std::uint16_t>()));
      case 0xd2:
        return static_cast<std::int64_t>(static_cast<std::int32_t>(number<std::uint32_t>()));
      case 0xd3:
        return static_cast<std::int64_t>(number<std::uint64_t>());
      case 0xd9:
        return text(number<std::uint8_t>());
      case 0xda:
        return text(number<std::uint16_t>());
      case 0xdb:
        return text(number<std::uint32_t>());
      case 0xdc:
        return array(number<std::uint16_t>(), depth);
      case 0xdd:
        return array(number<std::uint32_t>(), depth);
      case 0xde:
        return map(number<std::uint16_t>(), depth);
      case 0xdf:
        return map(number<std::uint32_t>(), depth);
      default:  // 0xc1, and extensions, which no frame has
        malformed();
    }
  }

  Json map(std::size_t size, std::size_t depth) {
    check_depth(depth);
    Json object = Json::object();
    auto& fields = object.get_ref<Json::object_t&>();
    for (std::size_t i = 0; i < size; ++i) {
      const auto [field, is_new] = fields.try_emplace(key(), nullptr);
      if (!is_new) fail("payload: field " + field->first + " appears twice");
      field->second = value(depth + 1);
    }
    return object;
  }

  Json array(std::size_t size, std::size_t depth) {
    check_depth(depth);
    Json items = Json::array();
    for (std::size_t i = 0; i < size; ++i)
      items.push_back(value(depth + 1));
    return items;
  }

  Json binary(std::size_t size) {
    const auto bytes = take(size);
    const auto* first = reinterpret_cast<const std::uint8_t*>(bytes.data());
    return Json::binary({first, first + bytes.size()});
  }

  std::string text(std::size_t size) {
    const auto bytes = take(size);
    return {bytes.begin(), bytes.end()};
  }

  std::string key() {
    const auto type = number<std::uint8_t>();
    if (type >= 0xa0 && type <= 0xbf) return text(type & 0x1f);
    if (type == 0xd9) return text(number<std::uint8_t>());
    if (type == 0xda) return text(number<std::uint16_t>());
    if (type == 0xdb) return text(number<std::uint32_t>());
    malformed();
  }

  template <typename Number>
  Number number() {
    std::uint64_t number = 0;  // big-endian
    for (const char byte : take(sizeof(Number)))
      number = number << 8 | static_cast<unsigned char>(byte);
    return static_cast<Number>(number);
  }

  std::span<const char> take(std::size_t size) {
    if (size > payload_.size() - at_) malformed();
    const auto bytes = payload_.subspan(at_, size);
    at_ += size;
    return bytes;
  }

  static void check_depth(std::size_t depth) {
    if (depth == kMaxDepth) fail("payload: nested deeper than " + std::to_string(kMaxDepth));
  }

  [[noreturn]] void malformed() const {
    fail("payload: not MessagePack at byte " + std::to_string(at_));
  }

  std::span<const char> payload_;
  std::size_t at_ = 0;
  std::size_t num_values_ = 0;
};

}  // namespace

void fail(const std::string& what) {
  throw Exception(make_error(Errc::kProtocol, what));
}

Json parse(std::span<const char> payload) {
  return Reader(payload).whole();
}

Json pack(const Hash128& hash) {
  return Json::binary({hash.bytes.begin(), hash.bytes.end()});
}

Json pack(std::span<const TokenId> tokens) {
  std::vector<std::uint8_t> bytes(tokens.size_bytes());
  if (!bytes.empty()) std::memcpy(bytes.data(), tokens.data(), bytes.size());
  return Json::binary(std::move(bytes));
}

Json pack_bytes(std::string_view bytes) {
  return Json::binary({bytes.begin(), bytes.end()});
}

Fields::Fields(const Json& value, std::string_view where) : value_(&value), where_(where) {
  if (!value.is_object()) fail(std::string(where) + " is " + value.type_name() + ", not a map");
}

void Fields::wrong(const char* name, const std::string& what) const {
  fail(std::string(where_) + "." + name + " " + what);
}

const Json& Fields::at(const char* name) const {
  const auto found = value_->find(name);
  if (found == value_->end()) wrong(name, "is missing");
  return *found;
}

bool Fields::boolean(const char* name) const {
  const Json& value = at(name);
  if (!value.is_boolean()) wrong(name, std::string("is ") + value.type_name() + ", not a boolean");
  return value.get<bool>();
}

std::uint64_t Fields::u64(const char* name, std::uint64_t max) const {
  const Json& value = at(name);
  if (!value.is_number_integer()) {
    wrong(name, std::string("is ") + value.type_name() + ", not an integer");
  }
  if (!value.is_number_unsigned() && value.get<std::int64_t>() < 0) {
    wrong(name, "is " + std::to_string(value.get<std::int64_t>()) + "; at least 0");
  }
  const auto number = value.get<std::uint64_t>();
  if (number > max) {
    wrong(name, "is " + std::to_string(number) + "; at most " + std::to_string(max));
  }
  return number;
}

std::uint32_t Fields::u32(const char* name, std::uint32_t max) const {
  return static_cast<std::uint32_t>(u64(name, max));
}

std::int64_t Fields::integer(const Json& value, const char* name, std::int64_t min,
                             std::int64_t max) const {
  if (!value.is_number_integer()) {
    wrong(name, std::string("is ") + value.type_name() + ", not an integer");
  }
  const auto number = value.get<std::int64_t>();
  const bool wrapped = value.is_number_unsigned() && number < 0;  // above int64
  if (wrapped || number < min || number > max) {
    wrong(name, "is out of range: " + std::to_string(min) + " to " + std::to_string(max));
  }
  return number;
}

std::int64_t Fields::i64(const char* name) const {
  return integer(at(name), name, std::numeric_limits<std::int64_t>::min(),
                 std::numeric_limits<std::int64_t>::max());
}

std::int32_t Fields::i32(const char* name) const {
  return static_cast<std::int32_t>(integer(at(name), name, std::numeric_limits<std::int32_t>::min(),
                                           std::numeric_limits<std::int32_t>::max()));
}

float Fields::number(const Json& value, const char* name) const {
  if (!value.is_number()) wrong(name, std::string("is ") + value.type_name() + ", not a number");
  const auto number = value.get<double>();
  if (std::isfinite(number) && std::abs(number) > std::numeric_limits<float>::max()) {
    wrong(name, "does not fit a 32-bit float");
  }
  return static_cast<float>(number);
}

float Fields::f32(const char* name) const {
  return number(at(name), name);
}

std::string Fields::text(const char* name, std::size_t max_bytes) const {
  const Json& value = at(name);
  if (!value.is_string()) wrong(name, std::string("is ") + value.type_name() + ", not a string");
  const auto& text = value.get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    wrong(name,
          "has " + std::to_string(text.size()) + " bytes; at most " + std::to_string(max_bytes));
  }
  return text;
}

std::string Fields::bytes(const char* name, std::size_t max_bytes) const {
  const Json& value = at(name);
  if (!value.is_binary()) {
    wrong(name, std::string("is ") + value.type_name() + ", not a byte string");
  }
  const auto& bytes = value.get_binary();
  if (bytes.size() > max_bytes) {
    wrong(name,
          "has " + std::to_string(bytes.size()) + " bytes; at most " + std::to_string(max_bytes));
  }
  return {bytes.begin(), bytes.end()};
}

Hash128 Fields::hash(const Json& value, const char* name) const {
  Hash128 hash;
  if (!value.is_binary() || value.get_binary().size() != hash.bytes.size()) {
    wrong(name, "is no byte string of 16 bytes");
  }
  std::memcpy(hash.bytes.data(), value.get_binary().data(), hash.bytes.size());
  return hash;
}

Hash128 Fields::hash(const char* name) const {
  return hash(at(name), name);
}

std::vector<Hash128> Fields::hashes(const char* name, std::size_t max_hashes) const {
  const Json& value = at(name);
  constexpr std::size_t kBytes = sizeof(Hash128::bytes);
  if (!value.is_binary() || value.get_binary().size() % kBytes != 0 ||
      value.get_binary().size() / kBytes > max_hashes) {
    wrong(name,
          "is no byte string of at most " + std::to_string(max_hashes) + " hashes of 16 bytes");
  }
  std::vector<Hash128> hashes(value.get_binary().size() / kBytes);
  for (std::size_t i = 0; i < hashes.size(); ++i)
    std::memcpy(hashes[i].bytes.data(), value.get_binary().data() + i * kBytes, kBytes);
  return hashes;
}

std::vector<TokenId> Fields::tokens(const char* name, std::size_t max_tokens) const {
  return tokens(at(name), name, max_tokens);
}

std::vector<TokenId> Fields::tokens(const Json& value, const char* name,
                                    std::size_t max_tokens) const {
  if (!value.is_binary()) {
    wrong(name, std::string("is ") + value.type_name() + ", not a byte string");
  }
  const auto& bytes = value.get_binary();
  if (bytes.size() % sizeof(TokenId) != 0) {
    wrong(name, "has " + std::to_string(bytes.size()) + " bytes, no multiple of 4");
  }
  const std::size_t count = bytes.size() / sizeof(TokenId);
  if (count > max_tokens) {
    wrong(name, "has " + std::to_string(count) + " tokens; at most " + std::to_string(max_tokens));
  }
  std::vector<TokenId> tokens(count);
  if (count != 0) std::memcpy(tokens.data(), bytes.data(), bytes.size());
  for (const TokenId token : tokens) {
    if (token < 0) wrong(name, "holds a token above 2147483647");
  }
  return tokens;
}

const Json& Fields::array(const char* name, std::size_t max_items) const {
  const Json& value = at(name);
  if (!value.is_array()) wrong(name, std::string("is ") + value.type_name() + ", not an array");
  if (value.size() > max_items) {
    wrong(name,
          "has " + std::to_string(value.size()) + " items; at most " + std::to_string(max_items));
  }
  return value;
}

}  // namespace thaw::forkpool::wire

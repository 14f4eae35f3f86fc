#include "forkpool/wire.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

namespace thaw::forkpool::wire {
namespace {

static_assert(std::endian::native == std::endian::little,
              "token arrays and lengths are copied as they lie");

/// Builds the document and counts while it does.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(std::span<const char> tail) : tail_(tail) {}

  Json take() { return std::move(root_); }
  const std::string& error() const { return error_; }
  std::size_t num_tail_bytes() const { return tail_.size(); }  ///< that nothing has taken

  bool null() override { return add(Json(nullptr)); }
  bool boolean(bool value) override { return add(Json(value)); }
  bool number_integer(number_integer_t value) override { return add(Json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return add(Json(value)); }
  bool number_float(number_float_t value, const string_t& /*text*/) override {
    return add(Json(value));
  }
  bool string(string_t& value) override { return add(Json(std::move(value))); }
  bool binary(binary_t& value) override {
    return value.has_subtype() ? add_lifted(value) : add(Json(std::move(value)));
  }
  bool start_object(std::size_t /*size*/) override { return open(Json::object()); }
  bool key(string_t& name) override {
    Json& object = *stack_.back();
    auto [slot, inserted] = object.get_ref<Json::object_t&>().try_emplace(name, nullptr);
    if (!inserted) {
      error_ = "field " + name + " appears twice";
      return false;
    }
    slot_ = &slot->second;
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(std::size_t /*size*/) override { return open(Json::array()); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    error_ = "not MessagePack at byte " + std::to_string(position);
    return false;
  }

 private:
  Json* place(Json value) {
    if (++num_values_ > kMaxValues) {
      error_ = "more than " + std::to_string(kMaxValues) + " values";
      return nullptr;
    }
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    *slot_ = std::move(value);
    return slot_;
  }
  bool add(Json value) { return place(std::move(value)) != nullptr; }
  bool add_lifted(const binary_t& extension) {
    std::uint32_t size = 0;
    if (extension.subtype() != kLiftedType || extension.size() != sizeof size) {
      error_ = "a MessagePack extension that is no length of what lies behind the payload";
      return false;
    }
    std::memcpy(&size, extension.data(), sizeof size);
    if (size > tail_.size()) {
      error_ = "a byte string of " + std::to_string(size) + " bytes, and " +
               std::to_string(tail_.size()) + " more behind the payload";
      return false;
    }
    const auto bytes = tail_.first(size);
    tail_ = tail_.subspan(size);
    return add(pack_bytes({bytes.data(), bytes.size()}));
  }
  bool open(Json container) {
    if (stack_.size() == kMaxDepth) {
      error_ = "nested deeper than " + std::to_string(kMaxDepth);
      return false;
    }
    Json* placed = place(std::move(container));
    if (placed == nullptr) return false;
    stack_.push_back(placed);
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Json*> stack_;  // open containers; a parent is not touched while a child is open
  Json* slot_ = nullptr;  // where the value of the last key goes
  std::size_t num_values_ = 0;
  std::span<const char> tail_;  // what is left of it
  std::string error_;
};

template <typename Item>
Json pack_items(std::span<const Item> items) {
  std::vector<std::uint8_t> bytes(items.size_bytes());
  if (!bytes.empty()) std::memcpy(bytes.data(), items.data(), bytes.size());
  return Json::binary(std::move(bytes));
}

void lift_into(Json& value, std::string& tail) {
  if (value.is_structured()) {
    for (Json& item : value)
      lift_into(item, tail);
  } else if (value.is_binary() && value.get_binary().size() >= kMinLiftedBytes) {
    const auto& bytes = value.get_binary();
    const auto size = static_cast<std::uint32_t>(bytes.size());
    tail.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    std::vector<std::uint8_t> length(sizeof size);
    std::memcpy(length.data(), &size, sizeof size);
    value = Json::binary(std::move(length), kLiftedType);
  }
}

}  // namespace

void fail(const std::string& what) {
  throw Exception(make_error(Errc::kProtocol, what));
}

Json parse(std::span<const char> payload, std::span<const char> tail) {
  Builder builder(tail);
  if (!Json::sax_parse(payload.begin(), payload.end(), &builder, Json::input_format_t::msgpack)) {
    fail("payload: " + builder.error());
  }
  if (builder.num_tail_bytes() > 0) {
    fail(std::to_string(builder.num_tail_bytes()) + " bytes behind the payload that are not its");
  }
  return builder.take();
}

std::string lift(Json& payload) {
  std::string tail;
  lift_into(payload, tail);
  return tail;
}

Json pack(const Hash128& hash) {
  return Json::binary({hash.bytes.begin(), hash.bytes.end()});
}

Json pack(std::span<const Hash128> hashes) {
  return pack_items(hashes);
}

Json pack(std::span<const TokenId> tokens) {
  return pack_items(tokens);
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

Hash128 Fields::hash(const char* name) const {
  const Json& value = at(name);
  Hash128 hash;
  if (!value.is_binary() || value.get_binary().size() != hash.bytes.size()) {
    wrong(name, "is no byte string of 16 bytes");
  }
  std::memcpy(hash.bytes.data(), value.get_binary().data(), hash.bytes.size());
  return hash;
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

#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

namespace thaw::coalescer {

enum class ValueKind : std::uint8_t {
  kAny,
  kBoolean,
  kString,
  kWhole,  ///< 3.0 counts as one
  kNumber,
  kList,  ///< of `item`
  kMap,  ///< an object from any name to `item`
  kObject,  ///< of `shape`
  kOneOf,  ///< one of `options`
  kNothing,  ///< known, and refused
};

/// A bound that the server has, not the field.
enum class ServerBound : std::uint8_t { kNone, kChoices, kTokenId, kSessionTtl, kSlot };

struct Shape;

/// One value, and the name that it has in an object.
struct Field {
  std::string_view name{};
  ValueKind kind = ValueKind::kAny;
  std::string_view about{};  ///< what the document says
  /// Of whole numbers; characters of strings; entries of lists and maps. Of a boolean, a `most` of
  /// 0 bars true.
  std::int64_t least = 0;
  std::int64_t most = std::numeric_limits<std::int64_t>::max();
  double minimum = 0;  ///< of kNumber
  double maximum = 0;
  bool is_above = false;  ///< `minimum` itself is too small
  ServerBound bound = ServerBound::kNone;  ///< of `most`
  bool counts_bytes = false;  ///< a string's `most` is of bytes of UTF-8; no schema can say so
  bool is_needed = false;
  bool may_be_null = false;  ///< of answers; in requests null is the same as left out
  /// Errors are found by who reads it, with words of its own; check_shape() passes it.
  bool is_by_hand = false;
  std::string_view pattern{};  ///< regular expression of a string, of the names of a map
  std::span<const std::string_view> words{};  ///< the only strings
  const Field* item = nullptr;
  const Shape* shape = nullptr;
  std::span<const Field> options{};

  constexpr Field needed() const { return with(&Field::is_needed); }
  constexpr Field or_null() const { return with(&Field::may_be_null); }
  constexpr Field by_hand() const { return with(&Field::is_by_hand); }
  constexpr Field above() const { return with(&Field::is_above); }
  constexpr Field in_bytes() const { return with(&Field::counts_bytes); }
  constexpr Field up_to(ServerBound server) const {
    Field field = *this;
    field.bound = server;
    return field;
  }
  constexpr Field like(std::string_view expression) const {
    Field field = *this;
    field.pattern = expression;
    return field;
  }

 private:
  constexpr Field with(bool Field::*flag) const {
    Field field = *this;
    field.*flag = true;
    return field;
  }
};

// The kinds, as they are written in tables.
constexpr Field any_value(std::string_view name, std::string_view about) {
  return {.name = name, .kind = ValueKind::kAny, .about = about};
}
constexpr Field boolean(std::string_view name, std::string_view about) {
  return {.name = name, .kind = ValueKind::kBoolean, .about = about};
}
constexpr Field text(std::string_view name, std::string_view about, std::int64_t least = 0,
                     std::int64_t most = std::numeric_limits<std::int64_t>::max()) {
  return {.name = name, .kind = ValueKind::kString, .about = about, .least = least, .most = most};
}
constexpr Field word(std::string_view name, std::string_view about,
                     std::span<const std::string_view> words) {
  return {.name = name, .kind = ValueKind::kString, .about = about, .words = words};
}
constexpr Field whole(std::string_view name, std::string_view about, std::int64_t least = 0,
                      std::int64_t most = std::numeric_limits<std::int64_t>::max()) {
  return {.name = name, .kind = ValueKind::kWhole, .about = about, .least = least, .most = most};
}
constexpr Field number(std::string_view name, std::string_view about, double minimum,
                       double maximum) {
  return {.name = name,
          .kind = ValueKind::kNumber,
          .about = about,
          .minimum = minimum,
          .maximum = maximum};
}
constexpr Field list(std::string_view name, std::string_view about, const Field& item,
                     std::int64_t least = 0,
                     std::int64_t most = std::numeric_limits<std::int64_t>::max()) {
  return {.name = name,
          .kind = ValueKind::kList,
          .about = about,
          .least = least,
          .most = most,
          .item = &item};
}
constexpr Field map(std::string_view name, std::string_view about, const Field& item,
                    std::int64_t most = std::numeric_limits<std::int64_t>::max()) {
  return {.name = name, .kind = ValueKind::kMap, .about = about, .most = most, .item = &item};
}
constexpr Field object(std::string_view name, std::string_view about, const Shape& shape) {
  return {.name = name, .kind = ValueKind::kObject, .about = about, .shape = &shape};
}
constexpr Field one_of(std::string_view name, std::string_view about,
                       std::span<const Field> options) {
  return {.name = name, .kind = ValueKind::kOneOf, .about = about, .options = options};
}
constexpr Field nothing(std::string_view name, std::string_view about) {
  return {.name = name, .kind = ValueKind::kNothing, .about = about};
}

// Entries of lists and maps, with no bounds.
inline constexpr Field kAnything = any_value("", "");
inline constexpr Field kCount = whole("", "");
inline constexpr Field kText = text("", "");

}  // namespace thaw::coalescer

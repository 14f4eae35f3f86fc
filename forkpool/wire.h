#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/base/error.h"
#include "engine/base/types.h"

namespace thaw::forkpool::wire {

using Json = nlohmann::json;

/// Throws Exception(kProtocol). Caught where a frame is decoded; never leaves the codec.
[[noreturn]] void fail(const std::string& what);

/// Parses exactly one MessagePack value. Throws Exception(kProtocol) for malformed bytes, for more
/// than kMaxDepth nested containers and for more than kMaxValues values, so that neither stack nor
/// memory can be exhausted by a small payload.
inline constexpr std::size_t kMaxDepth = 8;
inline constexpr std::size_t kMaxValues = std::size_t{4} << 20;
/// `tail`: the byte strings that lift() took out; all of them must be taken.
Json parse(std::span<const char> payload, std::span<const char> tail = {});

/// Takes the long byte strings out of a payload and returns them, one after the other. An extension
/// of kLiftedType stands for each and holds its length: readers of MessagePack go through a byte
/// string byte by byte, and prompts are long.
inline constexpr std::size_t kMinLiftedBytes = 256;
inline constexpr std::uint8_t kLiftedType = 1;
std::string lift(Json& payload);

/// Hashes and token arrays travel as byte strings: 16 bytes, and little-endian u32, each.
Json pack(const Hash128& hash);
Json pack(std::span<const Hash128> hashes);
Json pack(std::span<const TokenId> tokens);
Json pack_bytes(std::string_view bytes);

/// Typed access to one map. Every getter throws Exception(kProtocol) that names the field when it
/// is missing, of another type or out of range. Borrows the value.
class Fields {
 public:
  /// `where` names the map in messages, such as "submit.request"; must outlive this object.
  Fields(const Json& value, std::string_view where);

  /// The value of a field that must be there.
  const Json& at(const char* name) const;
  bool is_nil(const char* name) const { return at(name).is_null(); }

  bool boolean(const char* name) const;
  std::uint64_t u64(const char* name,
                    std::uint64_t max = std::numeric_limits<std::uint64_t>::max()) const;
  std::uint32_t u32(const char* name,
                    std::uint32_t max = std::numeric_limits<std::uint32_t>::max()) const;
  std::int64_t i64(const char* name) const;
  std::int32_t i32(const char* name) const;
  float f32(const char* name) const;
  std::string text(const char* name, std::size_t max_bytes) const;
  std::string bytes(const char* name, std::size_t max_bytes) const;
  Hash128 hash(const char* name) const;
  /// Packed one after another.
  std::vector<Hash128> hashes(const char* name, std::size_t max_hashes) const;
  std::vector<TokenId> tokens(const char* name, std::size_t max_tokens) const;
  const Json& array(const char* name, std::size_t max_items) const;

  /// The same checks for a value that is no map's field, such as an array's item.
  std::int64_t integer(const Json& value, const char* name, std::int64_t min,
                       std::int64_t max) const;
  float number(const Json& value, const char* name) const;
  std::vector<TokenId> tokens(const Json& value, const char* name, std::size_t max_tokens) const;

  [[noreturn]] void wrong(const char* name, const std::string& what) const;

 private:
  const Json* value_;
  std::string_view where_;
};

}  // namespace thaw::forkpool::wire

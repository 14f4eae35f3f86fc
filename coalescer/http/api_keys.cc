#include "coalescer/http/api_keys.h"

#include "engine/base/hash.h"

namespace thaw::coalescer {
namespace {

bool equal_in_constant_time(const Hash128& a, const Hash128& b) {
  unsigned difference = 0;
  for (std::size_t i = 0; i < a.bytes.size(); ++i)
    difference |= static_cast<unsigned>(a.bytes[i] ^ b.bytes[i]);
  return difference == 0;
}

/// The key of "Bearer KEY"; empty where the header is something else.
std::string_view bearer_key(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() <= kScheme.size()) return {};
  for (std::size_t i = 0; i < kScheme.size(); ++i) {
    const char c = authorization[i];
    const char lower = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    if (lower != kScheme[i]) return {};
  }
  authorization.remove_prefix(kScheme.size());
  authorization.remove_prefix(std::min(authorization.find_first_not_of(' '), authorization.size()));
  return authorization;
}

}  // namespace

KeyTable::KeyTable(const std::vector<ApiKey>& keys) {
  for (const ApiKey& key : keys)
    entries_.push_back({hash_text(key.key), key.tenant});
}

const std::string* KeyTable::find(std::string_view key) const {
  const Hash128 digest = hash_text(key);
  const Entry* found = nullptr;
  for (const Entry& entry : entries_)
    if (equal_in_constant_time(entry.digest, digest)) found = &entry;
  return found == nullptr ? nullptr : &found->tenant;
}

std::optional<std::string> KeyTable::tenant_of(std::string_view authorization,
                                               std::string_view api_key) const {
  if (entries_.empty()) return std::string();
  const std::string* tenant = find(bearer_key(authorization));
  if (tenant == nullptr) tenant = find(api_key);
  if (tenant == nullptr) return std::nullopt;
  return *tenant;
}

}  // namespace thaw::coalescer

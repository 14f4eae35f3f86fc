#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/http/server.h"
#include "engine/base/types.h"

namespace thaw::coalescer {

/// Looks up the tenant of a key. The time it takes does not depend on how much of
/// a key was right: digests are compared, all of them and to the end.
class KeyTable {
 public:
  explicit KeyTable(const std::vector<ApiKey>& keys);

  /// The tenant of `Authorization: Bearer KEY`, or else of `x-api-key: KEY`; empty where no keys
  /// are set. nullopt: no key or a wrong one.
  std::optional<std::string> tenant_of(std::string_view authorization,
                                       std::string_view api_key = {}) const;

 private:
  const std::string* find(std::string_view key) const;

  struct Entry {
    Hash128 digest;
    std::string tenant;
  };
  std::vector<Entry> entries_;
};

}  // namespace thaw::coalescer

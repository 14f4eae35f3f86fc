#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/http/server.h"
#include "engine/base/types.h"

namespace thaw::coalescer {

/// Looks up the tenant of an Authorization header. The time it takes does not depend on how much of
/// a key was right: digests are compared, all of them and to the end.
class KeyTable {
 public:
  explicit KeyTable(const std::vector<ApiKey>& keys);

  /// The tenant; empty where no keys are set. nullopt: no key or a wrong one.
  std::optional<std::string> tenant_of(std::string_view authorization) const;

 private:
  struct Entry {
    Hash128 digest;
    std::string tenant;
  };
  std::vector<Entry> entries_;
};

}  // namespace thaw::coalescer

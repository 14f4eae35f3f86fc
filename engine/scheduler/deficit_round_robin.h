#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace thaw::scheduler {

/// Shares out the prefill rows of a step: deficit round robin over tenants, round robin over a
/// tenant's prefills, kQuantum rows a turn. It goes on in the next step where it stopped, so that
/// over time each tenant, and each prefill of a tenant, gets an equal share of what it asks for.
/// Source: Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round-Robin", 1996.
class DeficitRoundRobin {
 public:
  static constexpr std::uint32_t kQuantum = 16;

  struct Job {
    std::string_view tenant;
    std::uint64_t order = 0;  ///< distinct; turns go by it
    std::uint32_t demand = 0;  ///< rows it could use
    std::uint32_t grant = 0;  ///< rows it got
  };

  /// Sets the grants; returns what is left of `budget` when every demand is met.
  std::uint32_t share(std::span<Job> jobs, std::uint32_t budget);

 private:
  struct Tenant {
    std::uint32_t deficit = 0;
    std::uint64_t next_order = 0;  ///< whose turn it is: the first job from here on
  };

  std::map<std::string, Tenant, std::less<>> tenants_;  ///< those with unmet demand
  std::string next_tenant_;
};

}  // namespace thaw::scheduler

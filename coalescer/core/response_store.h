#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "coalescer/core/session_state.h"
#include "engine/base/clock.h"

namespace thaw::coalescer {

struct ResponseLimits {
  std::uint32_t max_responses = 4096;
  std::uint64_t max_bytes = 256ULL << 20;  ///< of all tenants' responses; 0 keeps none
  std::chrono::seconds ttl{86400};  ///< after the last use
};

/// A response that ended, with all that can be asked of it later.
struct StoredResponse {
  std::string id;
  std::string tenant;
  std::string body;  ///< JSON
  std::vector<std::pair<std::string, std::string>> input;  ///< items: ids and JSON
  std::vector<std::pair<std::string, std::string>> output;
  SharedState line;  ///< the conversation up to its end; null: nothing can go on with it
  bool has_instructions = false;  ///< as the line's first message
  std::string served;  ///< the model's own name
  std::string weights;  ///< of that model; what goes on with it runs with these or not at all
  std::string cache_salt;
  bool background = false;
  std::string events;  ///< of a background response: the frames of its stream
  std::vector<std::size_t> event_ends;  ///< in `events`, by sequence number

  /// What it takes in memory, about.
  std::size_t size_bytes() const;
  /// The item's JSON, of input or output; null where it has none.
  const std::string* find_item(std::string_view item) const;
};

/// The responses that a server keeps, within limits: what was not used for longest goes first.
/// Pointers hold until the next call. One thread.
class ResponseStore {
 public:
  /// `clock` must outlive the store.
  ResponseStore(ResponseLimits limits, const Clock* clock) : limits_(limits), clock_(clock) {}

  /// Keeps it, in place of one with the same id. One that is beyond the limits alone is not kept.
  void put(StoredResponse response);
  /// The tenant's response, which counts as a use; null where there is none, its time is over, or
  /// it is another's.
  const StoredResponse* find(std::string_view tenant, const std::string& id);
  /// False where find() gives none.
  bool erase(std::string_view tenant, const std::string& id);
  /// Drops what was not used for the limits' time.
  void expire();

  std::size_t size() const { return entries_.size(); }
  std::uint64_t bytes() const { return bytes_; }
  /// That went before anybody deleted them.
  std::uint64_t num_dropped() const { return num_dropped_; }

 private:
  struct Entry {
    StoredResponse response;
    std::size_t bytes = 0;
    Clock::TimePoint last_used;
  };
  using Entries = std::list<Entry>;

  void remove(Entries::iterator entry);

  ResponseLimits limits_;
  const Clock* clock_;
  Entries entries_;  // the one used last is the first
  std::unordered_map<std::string, Entries::iterator> by_id_;
  std::uint64_t bytes_ = 0;
  std::uint64_t num_dropped_ = 0;
};

}  // namespace thaw::coalescer

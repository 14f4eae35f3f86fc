#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "coalescer/openai/call.h"
#include "coalescer/openai/session_turn.h"

namespace thaw::coalescer {

/// A chat call while it runs and for a while after: what a session could be made of.
struct CallRecord {
  std::string id;  ///< of the response
  std::string tenant;
  ApiCall call;
  std::vector<TokenId> prompt;
  std::vector<std::vector<TokenId>> generated;  ///< for each choice; grows while it runs
  std::optional<SessionTurn> turn;  ///< of a session's turn; its prompt is the one above
  std::size_t body_bytes = 0;  ///< of the request

  /// What it takes in memory, about.
  std::size_t size_bytes() const;
};

/// The chat calls that run and the last ones that ended. Those are bounded by their number and
/// bytes, those that run by the queue. I/O thread only.
class CallRecords {
 public:
  CallRecords(std::size_t max_ended, std::size_t max_ended_bytes)
      : max_ended_(max_ended), max_ended_bytes_(max_ended_bytes) {}

  void add(const std::shared_ptr<CallRecord>& record) { calls_.emplace(record->id, record); }
  /// No more tokens will come. `keep` false: nobody will ask for it.
  void end(const std::shared_ptr<CallRecord>& record, bool keep);
  /// Nobody is to ask for it any more.
  void erase(const std::string& id) { calls_.erase(id); }
  /// Null where there is none or it is another tenant's.
  std::shared_ptr<const CallRecord> find(const std::string& tenant, const std::string& id) const;

 private:
  std::size_t max_ended_;
  std::size_t max_ended_bytes_;
  std::unordered_map<std::string, std::shared_ptr<CallRecord>> calls_;
  std::deque<std::shared_ptr<CallRecord>> ended_;  // oldest first
  std::size_t ended_bytes_ = 0;
};

/// The state that the record's `choice` stands at; null where it has no such choice.
SharedState state_of_record(const CallRecord& record, std::uint32_t choice, const TextCodec& codec);

}  // namespace thaw::coalescer

#include "coalescer/http/call_record.h"

namespace thaw::coalescer {

namespace {

/// A parsed body takes several times its text.
constexpr std::size_t kParsedFactor = 4;

}  // namespace

std::size_t CallRecord::size_bytes() const {
  std::size_t num_tokens = prompt.size();
  for (const auto& choice : generated)
    num_tokens += choice.size();
  return num_tokens * sizeof(TokenId) + body_bytes * kParsedFactor;
}

void CallRecords::end(const std::shared_ptr<CallRecord>& record, bool keep) {
  if (!keep) {
    calls_.erase(record->id);
    return;
  }
  ended_.push_back(record);
  ended_bytes_ += record->size_bytes();
  while (ended_.size() > max_ended_ || ended_bytes_ > max_ended_bytes_) {
    ended_bytes_ -= ended_.front()->size_bytes();
    calls_.erase(ended_.front()->id);
    ended_.pop_front();
  }
}

std::shared_ptr<const CallRecord> CallRecords::find(const std::string& tenant,
                                                    const std::string& id) const {
  const auto found = calls_.find(id);
  if (found == calls_.end() || found->second->tenant != tenant) return nullptr;
  return found->second;
}

SharedState state_of_record(const CallRecord& record, std::uint32_t choice,
                            const TextCodec& codec) {
  if (choice >= record.generated.size()) return nullptr;
  SessionTurn turn;
  if (record.turn) {
    turn = *record.turn;
    turn.prompt = record.prompt;
  } else {
    turn = turn_of_chat(std::get<ChatPrompt>(record.call.prompts.front()), record.prompt);
  }
  return finish_turn(std::move(turn), record.generated[choice], record.call, codec, choice);
}

}  // namespace thaw::coalescer

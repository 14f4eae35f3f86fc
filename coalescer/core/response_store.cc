#include "coalescer/core/response_store.h"

#include <iterator>

namespace thaw::coalescer {

std::size_t StoredResponse::size_bytes() const {
  std::size_t bytes = sizeof(StoredResponse) + id.size() + tenant.size() + body.size() +
                      events.size() + event_ends.size() * sizeof(std::size_t);
  for (const auto* items : {&input, &output})
    for (const auto& [item, json] : *items)
      bytes += sizeof(std::pair<std::string, std::string>) + item.size() + json.size();
  return bytes + (line == nullptr ? 0 : line->size_bytes());
}

const std::string* StoredResponse::find_item(std::string_view item) const {
  for (const auto* items : {&output, &input})
    for (const auto& [own, json] : *items)
      if (own == item) return &json;
  return nullptr;
}

void ResponseStore::put(StoredResponse response) {
  expire();
  if (const auto old = by_id_.find(response.id); old != by_id_.end()) remove(old->second);
  const std::size_t bytes = response.size_bytes();
  if (bytes > limits_.max_bytes || limits_.max_responses == 0) {
    ++num_dropped_;
    return;
  }
  entries_.push_front({std::move(response), bytes, clock_->now()});
  by_id_[entries_.front().response.id] = entries_.begin();
  bytes_ += bytes;
  while (bytes_ > limits_.max_bytes || entries_.size() > limits_.max_responses) {
    remove(std::prev(entries_.end()));
    ++num_dropped_;
  }
}

const StoredResponse* ResponseStore::find(std::string_view tenant, const std::string& id) {
  expire();
  const auto found = by_id_.find(id);
  if (found == by_id_.end() || found->second->response.tenant != tenant) return nullptr;
  found->second->last_used = clock_->now();
  entries_.splice(entries_.begin(), entries_, found->second);
  return &entries_.front().response;
}

bool ResponseStore::erase(std::string_view tenant, const std::string& id) {
  if (find(tenant, id) == nullptr) return false;
  remove(entries_.begin());
  return true;
}

void ResponseStore::expire() {
  const auto now = clock_->now();
  while (!entries_.empty() && now - entries_.back().last_used >= limits_.ttl) {
    remove(std::prev(entries_.end()));
    ++num_dropped_;
  }
}

void ResponseStore::remove(Entries::iterator entry) {
  bytes_ -= entry->bytes;
  by_id_.erase(entry->response.id);
  entries_.erase(entry);
}

}  // namespace thaw::coalescer

#include "coalescer/http/response_service.h"

#include <algorithm>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

namespace net = boost::asio;

/// After which a response that runs may have ended.
constexpr std::chrono::milliseconds kNextTry{200};

ApiError wrong_previous(const std::string& id, int status, const std::string& why,
                        std::string code) {
  ApiError error = invalid_field("previous_response_id",
                                 "`previous_response_id` is \"" + id.substr(0, 100) + "\", " + why,
                                 std::move(code));
  error.status = status;
  return error;
}

}  // namespace

ResponseRun::ResponseRun(const net::any_io_executor& executor, std::shared_ptr<CallRecord> record,
                         std::shared_ptr<LiveCall> live)
    : record_(std::move(record)), live_(std::move(live)), changed_(executor) {
  changed_.expires_at(net::steady_timer::time_point::max());
}

ResponsesWriter& ResponseRun::writer() {
  return static_cast<ResponsesWriter&>(live_->completion().writer());
}

void ResponseRun::add(std::string_view frames) {
  if (frames.empty()) return;
  std::size_t end = events_.size();
  events_ += frames;
  while ((end = events_.find("\n\n", end)) != std::string::npos)
    event_ends_.push_back(end += 2);
  wake();
}

void ResponseRun::end() {
  ended_ = true;
  wake();
}

net::awaitable<void> ResponseRun::wait() {
  co_await changed_.async_wait(net::as_tuple(net::use_awaitable));
}

std::size_t events_after(const std::vector<std::size_t>& event_ends, std::int64_t after) {
  if (after < 0 || event_ends.empty()) return 0;
  return event_ends[std::min(static_cast<std::size_t>(after), event_ends.size() - 1)];
}

std::vector<std::pair<std::string, std::string>> input_items(const CallRecord& record) {
  std::vector<std::pair<std::string, std::string>> items;
  for (const ResponsesItem& item : record.call.responses->input) {
    const std::string id =
        item.id.empty() ? item_id(item.kind, record.id, 'i', items.size()) : item.id;
    nlohmann::ordered_json shown = {{"id", id}};
    for (const auto& [key, value] : item.shown.items())
      shown[key] = value;
    items.emplace_back(id, dump_json(shown));
  }
  return items;
}

void ResponseService::keep(const CallRecord& record, const ResponsesWriter& writer,
                           const ResponseRun* run) {
  const ApiCall& call = record.call;
  if (!call.responses->store) return;
  StoredResponse stored;
  stored.id = record.id;
  stored.tenant = record.tenant;
  stored.body = writer.object();
  stored.input = input_items(record);
  stored.output = writer.items();
  if (writer.status() == "completed" || writer.status() == "incomplete")
    stored.line = state_of_record(record, 0, *call.served->codec);
  stored.has_instructions = call.responses->instructions.has_value();
  stored.served = call.served->name();
  stored.weights = call.served->weights;
  stored.cache_salt = call.cache_salt;
  if (run != nullptr) {
    stored.background = true;
    stored.events = run->events();
    stored.event_ends = run->event_ends();
  }
  store_.put(std::move(stored));
}

std::shared_ptr<ResponseRun> ResponseService::running(const std::string& tenant,
                                                      const std::string& id) const {
  const auto found = runs_.find(id);
  if (found == runs_.end() || found->second->record()->tenant != tenant) return nullptr;
  return found->second;
}

void ResponseService::finish(const std::shared_ptr<ResponseRun>& run) {
  if (run->ended()) return;
  LiveCall& live = run->live();
  live.abandon();
  calls_->end(run->record(), /*keep=*/live.completion().started());
  keep(*run->record(), run->writer(), run.get());
  run->end();
  runs_.erase(run->record()->id);
}

void ResponseService::cancel(const std::shared_ptr<ResponseRun>& run) {
  // What was generated so far is part of it.
  if (run->live().completion().has_frames()) run->add(run->live().completion().take_frames());
  run->writer().cancel();
  finish(run);
  run->live().hang_up();  // wakes who drives it
}

void ResponseService::fail_runs(const ApiError& error) {
  for (const auto& [id, run] : runs_)
    run->live().fail(error);
}

bool ResponseService::erase(const std::string& tenant, const std::string& id) {
  if (const auto run = running(tenant, id)) cancel(run);
  if (!store_.erase(tenant, id)) return false;
  calls_->erase(id);
  return true;
}

ApiResult<ResponsesPast> ResponseService::past_of(const std::string& tenant, ApiCall& call) {
  ResponsesPast past;
  const std::string& id = call.responses->previous_id;
  if (!id.empty()) {
    if (running(tenant, id) != nullptr) {
      ApiError error = wrong_previous(id, 409, "which is not complete yet", "response_in_progress");
      error.retry_after = kNextTry;
      return error;
    }
    const StoredResponse* stored = store_.find(tenant, id);
    if (stored == nullptr) {
      return wrong_previous(id, 404, "which is no stored response; it may have been dropped",
                            "previous_response_not_found");
    }
    if (stored->line == nullptr)
      return wrong_previous(id, 400, "which failed or was cancelled", "previous_response_failed");
    past.line = stored->line;
    past.has_instructions = stored->has_instructions;
    if (stored->served != call.served->name() || stored->weights != call.served->weights) {
      // Another model reads the conversation's text, not its ids.
      auto messages = std::make_shared<SessionState>();
      messages->messages = stored->line->messages;
      past.line = std::move(messages);
    }
    if (call.cache_salt.empty()) call.cache_salt = stored->cache_salt;
  }
  for (const ResponsesItem& item : call.responses->input) {
    if (item.kind != ItemKind::kReference) continue;
    const std::string response = response_of_item(item.id);
    const StoredResponse* stored = response.empty() ? nullptr : store_.find(tenant, response);
    const std::string* json = stored == nullptr ? nullptr : stored->find_item(item.id);
    if (json != nullptr) past.items[item.id] = *json;
  }
  return past;
}

}  // namespace thaw::coalescer

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>

#include "coalescer/core/response_store.h"
#include "coalescer/http/call_record.h"
#include "coalescer/http/live_call.h"
#include "coalescer/openai/responses_prompt.h"
#include "coalescer/openai/responses_writer.h"

namespace thaw::coalescer {

/// A background response while it runs, and for those who still read its events. I/O thread only.
class ResponseRun {
 public:
  ResponseRun(const boost::asio::any_io_executor& executor, std::shared_ptr<CallRecord> record,
              std::shared_ptr<LiveCall> live);

  const std::shared_ptr<CallRecord>& record() const { return record_; }
  LiveCall& live() { return *live_; }
  ResponsesWriter& writer();

  /// Whole frames of the stream.
  void add(std::string_view frames);
  const std::string& events() const { return events_; }
  /// Ends in events(), by sequence number.
  const std::vector<std::size_t>& event_ends() const { return event_ends_; }
  /// Nothing more comes.
  void end();
  bool ended() const { return ended_; }
  /// Returns when there may be more events, or somebody called wake().
  boost::asio::awaitable<void> wait();
  void wake() { changed_.cancel(); }

 private:
  std::shared_ptr<CallRecord> record_;
  std::shared_ptr<LiveCall> live_;
  std::string events_;
  std::vector<std::size_t> event_ends_;
  bool ended_ = false;
  boost::asio::steady_timer changed_;  // never expires; cancelled to wake those who wait
};

/// Where the frames of `events` begin that follow event number `after` (-1: all).
std::size_t events_after(const std::vector<std::size_t>& event_ends, std::int64_t after);

/// The responses that the server keeps, and those that run in the background. I/O thread only.
class ResponseService {
 public:
  /// `clock` must outlive the service; `calls` as well.
  ResponseService(ResponseLimits limits, const Clock* clock, CallRecords* calls)
      : store_(limits, clock), calls_(calls) {}

  ResponseStore& store() { return store_; }
  /// Keeps the response that ended, where it is to be kept. `run`: of a background one, else null.
  void keep(const CallRecord& record, const ResponsesWriter& writer, const ResponseRun* run);

  void add(const std::shared_ptr<ResponseRun>& run) { runs_[run->record()->id] = run; }
  /// The tenant's response that runs; null where there is none.
  std::shared_ptr<ResponseRun> running(const std::string& tenant, const std::string& id) const;
  /// It is over: keeps it and lets its readers know.
  void finish(const std::shared_ptr<ResponseRun>& run);
  /// Ends it early, with what it has so far.
  void cancel(const std::shared_ptr<ResponseRun>& run);
  /// False where the tenant has no such response.
  bool erase(const std::string& tenant, const std::string& id);
  /// Those that run end with an error of the server's, as soon as the I/O context turns.
  void fail_runs(const ApiError& error);
  /// Before the I/O context goes.
  void drop_runs() { runs_.clear(); }
  std::size_t num_running() const { return runs_.size(); }

  /// What the call goes on with; a salt that it has not is the previous response's. Errors: 404 of
  /// a response that is not there, 409 of one that runs, 400 of one that failed.
  ApiResult<ResponsesPast> past_of(const std::string& tenant, ApiCall& call);

 private:
  ResponseStore store_;
  CallRecords* calls_;
  std::unordered_map<std::string, std::shared_ptr<ResponseRun>> runs_;
};

/// Items with their ids, as GET .../input_items shows them.
std::vector<std::pair<std::string, std::string>> input_items(const CallRecord& record);

}  // namespace thaw::coalescer

#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>

#include "coalescer/http/http_reply.h"
#include "coalescer/http/live_call.h"
#include "coalescer/http/request_reader.h"
#include "coalescer/http/route.h"
#include "coalescer/http/server_context.h"
#include "coalescer/openai/fork_call.h"
#include "coalescer/openai/session_call.h"

namespace thaw::coalescer {

/// One connection: reads requests one after another and answers them. Runs on the I/O thread. Every
/// wait on the socket has a deadline, which the server checks from its tick; a call that is being
/// generated has none, but a client that hangs up ends it.
class Session : public std::enable_shared_from_this<Session> {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;

  /// `socket` is connected: over TCP, or one end of a socketpair.
  Session(Socket socket, ServerContext* context);

  /// Serves until the connection ends.
  boost::asio::awaitable<void> serve();

  /// Ends a wait whose deadline has passed, and looks for a hang-up that could not be seen.
  void tick(Clock::TimePoint now);
  /// A draining server needs no idle connections.
  void close_if_idle();
  /// Ends the running call with an error.
  void cut(const ApiError& error);
  void close();

  /// A trunk that the server has, and where to cut it.
  struct ForkTrunk {
    SharedState state;
    SessionCut cut;
    std::string cache_salt;
    ServedModelPtr model;
  };

 private:
  struct Request {
    RequestHead head;
    Route route;
    std::string tenant;
    std::string body;
    std::unique_ptr<BodyLease> body_lease;
    Clock::TimePoint received;
    std::optional<HttpReply> refusal;  ///< set where the head alone is reason to refuse it
  };
  enum class Phase { kIdle, kReading, kAnswering };

  boost::asio::awaitable<std::optional<Request>> read_request();
  boost::asio::awaitable<bool> read_body(RequestReader* reader, BodyLease* lease, ReplyMode mode);
  void check_head(Request& request);
  boost::asio::awaitable<bool> read_some(std::size_t most);
  boost::asio::awaitable<bool> write(std::string bytes);
  /// Answers a request whose rest is not read: the connection ends afterwards.
  boost::asio::awaitable<void> refuse(HttpReply reply, ReplyMode mode);
  boost::asio::awaitable<void> linger();

  /// Both give false where the connection must end.
  boost::asio::awaitable<bool> answer(Request request);
  boost::asio::awaitable<bool> answer_call(ApiKind kind, Request request);
  /// Submits the call that the record has; `turn`: of a session, else null.
  ApiResult<std::shared_ptr<LiveCall>> start_call(const std::shared_ptr<CallRecord>& record,
                                                  std::vector<PreparedPrompt> prompts,
                                                  std::shared_ptr<RunningTurn> turn,
                                                  Clock::TimePoint received);
  /// Answers a call that runs, and ends it.
  boost::asio::awaitable<bool> answer_live(std::shared_ptr<LiveCall> live,
                                           std::shared_ptr<CallRecord> record, Request request);
  /// POST /v1/responses and its input_tokens, and what is below it.
  boost::asio::awaitable<bool> answer_responses(Request request);
  boost::asio::awaitable<bool> answer_response(Request request);
  /// The events of a background response behind number `after`, as they come.
  boost::asio::awaitable<bool> stream_run(std::shared_ptr<ResponseRun> run, std::int64_t after,
                                          Request request);
  boost::asio::awaitable<bool> reply(const Request& request, HttpReply reply);
  boost::asio::awaitable<HttpReply> simple_reply(Request request);
  /// With keys: the tenants that ServerOptions names.
  bool may_administer(const Request& request) const;
  boost::asio::awaitable<HttpReply> admin_reply(Request request);
  boost::asio::awaitable<bool> answer_stream(std::shared_ptr<LiveCall> call, Request request,
                                             std::string id, bool explain);
  boost::asio::awaitable<bool> answer_whole(std::shared_ptr<LiveCall> call, Request request,
                                            std::string id, bool explain);
  /// POST /v1/forks.
  struct ForkRun;
  boost::asio::awaitable<bool> answer_forks(Request request);
  /// Everything up to the submission.
  boost::asio::awaitable<ApiResult<std::shared_ptr<ForkRun>>> start_forks(
      std::string tenant, std::string body, std::unique_ptr<BodyLease> lease,
      Clock::TimePoint received);
  boost::asio::awaitable<ApiResult<ForkTrunk>> find_trunk(std::string tenant, StoredTrunk stored);
  boost::asio::awaitable<bool> whole_forks(std::shared_ptr<ForkRun> run, Request request);
  boost::asio::awaitable<bool> stream_forks(std::shared_ptr<ForkRun> run, Request request);
  /// What a session's turn begins with.
  struct TurnStart {
    std::shared_ptr<RunningTurn> turn;
    PreparedPrompt prompt;
  };
  boost::asio::awaitable<ApiResult<TurnStart>> begin_turn(std::shared_ptr<CallRecord> record);
  /// Everything below /v1/sessions.
  boost::asio::awaitable<bool> answer_session(Request request);
  boost::asio::awaitable<ApiResult<std::string>> session_body_of(Request request);
  boost::asio::awaitable<ApiResult<std::string>> create_session(Request request);
  boost::asio::awaitable<ApiResult<std::string>> fork_session(Request request);
  boost::asio::awaitable<ApiResult<std::string>> rewind_session(Request request);
  boost::asio::awaitable<ApiResult<std::string>> checkpoint_session(Request request);
  boost::asio::awaitable<ApiResult<std::string>> export_session_call(Request request);
  boost::asio::awaitable<ApiResult<std::string>> import_session(Request request);
  /// Nothing where the server has a directory for files of sessions.
  std::optional<ApiError> check_has_files() const;
  /// Computes the KV of tokens that is not there; a client that hangs up ends it.
  boost::asio::awaitable<ApiResult<CompletionUsage>> prefill(GenerateRequest request,
                                                             ServedModelPtr model,
                                                             Clock::TimePoint received);
  /// Has the KV kept that the call asks to keep, once it is computed.
  void keep_prompts(LiveCall& live, const ApiCall& call, const std::string& tenant,
                    const std::vector<PreparedPrompt>& prompts);
  /// The error with the time after which trying again may help.
  ApiError with_retry(ApiError error);
  boost::asio::awaitable<std::string> explanation(std::vector<RequestId> requests);

  void watch_client(const std::shared_ptr<LiveCall>& call);
  ReplyMode mode_for(const RequestHead& head) const;
  void count(const Request& request, int status);
  void set_deadline(std::chrono::milliseconds from_now);
  void clear_deadline();

  Socket socket_;
  ServerContext* context_;
  std::string buffer_;  // received, not parsed yet
  Phase phase_ = Phase::kIdle;
  Clock::TimePoint deadline_ = Clock::TimePoint::max();
  bool expired_ = false;  // the deadline ended the last wait
  bool closed_ = false;
  std::shared_ptr<LiveCall> call_;  // while one is answered
  bool blind_ = false;  // a pipelined request hides the client's hang-up
  std::shared_ptr<ResponseRun> followed_;  // its events are sent; null once the client hung up
};

}  // namespace thaw::coalescer

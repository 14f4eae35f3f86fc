// The part of Session (a connection) that answers POST /v1/forks: several calls as one.

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "coalescer/core/unix_time.h"
#include "coalescer/http/session.h"
#include "coalescer/http/session_spill.h"
#include "coalescer/http/text_work.h"
#include "coalescer/openai/chunk_writer.h"
#include "coalescer/openai/fork_call.h"
#include "coalescer/openai/session_turn.h"

namespace thaw::coalescer {

/// The branches of one call while they run; the first one's LiveCall wakes for all.
struct Session::ForkRun {
  CompletionLabel label;
  bool stream = false;
  bool include_usage = false;
  std::vector<std::shared_ptr<CallRecord>> records;
  std::vector<std::string> labels;
  std::vector<std::shared_ptr<LiveCall>> calls;

  bool ended() const {
    return std::ranges::all_of(calls, [](const auto& c) { return c->completion().ended(); });
  }
  /// Why none of them was served; nothing where one was, or may still be.
  std::optional<ApiError> failure() const {
    std::optional<ApiError> first;
    for (const auto& call : calls) {
      const auto& error = call->completion().error();
      if (!error) return std::nullopt;
      if (!first) first = *error;
    }
    return first;
  }
  CompletionUsage usage() const {
    CompletionUsage sum;
    for (const auto& call : calls) {
      const CompletionUsage& one = call->completion().usage();
      sum.prompt_tokens += one.prompt_tokens;
      sum.cached_tokens += one.cached_tokens;
      sum.completion_tokens += one.completion_tokens;
      sum.reasoning_tokens += one.reasoning_tokens;
    }
    return sum;
  }
};

namespace {

namespace net = boost::asio;

/// After which a running completion has some more tokens.
constexpr std::chrono::milliseconds kNextTokens{50};

struct PreparedForks {
  ForksCall call;
  std::vector<PreparedPrompt> prompts;  ///< one for each branch
  std::vector<std::optional<SessionTurn>> turns;  ///< where the trunk is stored
};

std::string branch_param(std::size_t branch, const std::string& param) {
  const std::string name = "forks[" + std::to_string(branch) + "]";
  return param.empty() ? name : name + "." + param;
}

/// How the reply of a branch is held to its form.
std::optional<ApiError> plan_branch(const ServerContext* context, std::size_t branch, ApiCall& call,
                                    const PreparedPrompt& prompt, std::string_view known_tools) {
  auto plan = plan_reply(call, prompt.tokens, known_tools, context->options.eager_tools,
                         *call.served->codec, context->options.has_grammars);
  if (auto* error = std::get_if<ApiError>(&plan)) {
    error->param = branch_param(branch, error->param);
    return std::move(*error);
  }
  call.reply = std::move(std::get<ReplyPlan>(plan));
  return std::nullopt;
}

/// Prompts of branches whose trunk came with the call.
std::optional<ApiError> prepare_own(const ServerContext* context, PreparedForks& forks) {
  for (std::size_t i = 0; i < forks.call.branches.size(); ++i) {
    ApiCall& call = forks.call.branches[i].call;
    auto prompts = prepare_prompts(call, *call.served->codec, call.served->max_model_len);
    if (auto* error = std::get_if<ApiError>(&prompts)) {
      error->param = branch_param(i, error->param);
      return std::move(*error);
    }
    forks.prompts.push_back(std::move(std::get<std::vector<PreparedPrompt>>(prompts).front()));
    if (auto error = plan_branch(context, i, call, forks.prompts.back(), "")) return error;
  }
  forks.turns.resize(forks.call.branches.size());
  return std::nullopt;
}

/// Of branches that go on from `state`.
std::optional<ApiError> prepare_stored(const ServerContext* context, const SharedState& state,
                                       PreparedForks& forks) {
  for (std::size_t i = 0; i < forks.call.branches.size(); ++i) {
    ApiCall& call = forks.call.branches[i].call;
    auto turn = prepare_turn(call, *state, *call.served->codec);
    ApiError* error = std::get_if<ApiError>(&turn);
    if (error == nullptr) {
      auto& prepared = std::get<SessionTurn>(turn);
      auto prompt =
          fit_prompt(call, std::exchange(prepared.prompt, {}), call.served->max_model_len);
      if (auto* misfit = std::get_if<ApiError>(&prompt)) {
        misfit->param = branch_param(i, misfit->param);
        return std::move(*misfit);
      }
      forks.prompts.push_back(std::move(std::get<PreparedPrompt>(prompt)));
      auto refused = plan_branch(context, i, call, forks.prompts.back(), prepared.next.tools);
      if (refused) return refused;
      forks.turns.emplace_back(std::move(prepared));
      continue;
    }
    error->param = branch_param(i, error->param);
    return std::move(*error);
  }
  return std::nullopt;
}

net::awaitable<ApiResult<PreparedForks>> parse_forks_on_pool(const ServerContext* context,
                                                             std::string body) {
  auto parsed = parse_forks(body, *context->models, context->options.max_num_seqs);
  if (auto* error = std::get_if<ApiError>(&parsed)) co_return std::move(*error);
  PreparedForks forks;
  forks.call = std::move(std::get<ForksCall>(parsed));
  if (forks.call.stored.is_given()) co_return forks;
  if (auto error = prepare_own(context, forks)) co_return std::move(*error);
  co_return forks;
}

net::awaitable<ApiResult<PreparedForks>> prepare_stored_on_pool(const ServerContext* context,
                                                                PreparedForks forks,
                                                                SharedState state, SessionCut cut) {
  if (!cut.is_whole()) {
    auto kept = cut_session(state, cut, "trunk.", *forks.call.branches.front().call.served->codec);
    if (auto* error = std::get_if<ApiError>(&kept)) co_return std::move(*error);
    state = std::move(std::get<SharedState>(kept));
  }
  if (auto error = prepare_stored(context, state, forks)) co_return std::move(*error);
  co_return forks;
}

ApiError no_such_trunk(const std::string& id) {
  ApiError error = invalid_field("trunk.response_id",
                                 "there is no response `" + id.substr(0, 100) +
                                     "`: it runs not, is none of the last that ended, and is not "
                                     "stored",
                                 "response_not_found");
  error.status = 404;
  return error;
}

ApiError token_not_reached(std::uint32_t token, std::size_t there) {
  ApiError error =
      invalid_field("trunk.token",
                    "`trunk.token` is " + std::to_string(token) + "; the completion has " +
                        std::to_string(there) + " tokens so far",
                    "token_not_reached");
  error.status = 409;
  error.retry_after = kNextTokens;
  return error;
}

/// Of a response that POST /v1/responses stored.
ApiResult<Session::ForkTrunk> trunk_of_stored(const ServerContext* context,
                                              const StoredResponse& response,
                                              const StoredTrunk& stored) {
  const ServedModelPtr model = context->models->find(response.served);
  if (response.line == nullptr || model == nullptr || model->weights != response.weights)
    return no_such_trunk(stored.response_id);
  if (stored.choice != 0) {
    return invalid_field("trunk.choice", "`trunk.choice` is " + std::to_string(stored.choice) +
                                             "; a response has one, number 0");
  }
  Session::ForkTrunk trunk{response.line, {}, response.cache_salt, model};
  if (!stored.token) return trunk;
  std::uint32_t prompt_tokens = 0;
  for (const SessionMark& mark : response.line->marks)
    if (mark.end == LineEnd::kPrompted) prompt_tokens = mark.tokens;
  const std::size_t there = response.line->tokens.size() - prompt_tokens;
  if (*stored.token > there) return token_not_reached(*stored.token, there);
  trunk.cut.tokens = prompt_tokens + *stored.token;
  return trunk;
}

/// The response's state, and where to cut it.
ApiResult<Session::ForkTrunk> trunk_of_response(const CallRecord* record,
                                                const StoredTrunk& stored) {
  if (record == nullptr) return no_such_trunk(stored.response_id);
  Session::ForkTrunk trunk{state_of_record(*record, stored.choice, *record->call.served->codec),
                           {},
                           record->call.cache_salt,
                           record->call.served};
  if (trunk.state == nullptr) {
    return invalid_field("trunk.choice", "`trunk.choice` is " + std::to_string(stored.choice) +
                                             "; the completion has " +
                                             std::to_string(record->generated.size()));
  }
  if (!stored.token) return trunk;
  const std::size_t there = trunk.state->tokens.size() - record->prompt.size();
  // A running completion may get there.
  if (*stored.token > there) return token_not_reached(*stored.token, there);
  trunk.cut.tokens = static_cast<std::uint32_t>(record->prompt.size()) + *stored.token;
  return trunk;
}

}  // namespace

net::awaitable<ApiResult<std::shared_ptr<Session::ForkRun>>> Session::start_forks(
    std::string tenant, std::string body, std::unique_ptr<BodyLease> lease,
    Clock::TimePoint received) {
  auto parsed =
      co_await prepare_on_text_thread(context_, parse_forks_on_pool(context_, std::move(body)));
  lease.reset();
  if (auto* error = std::get_if<ApiError>(&parsed)) co_return std::move(*error);
  auto forks = std::move(std::get<PreparedForks>(parsed));
  if (forks.call.stored.is_given()) {
    auto stored = co_await find_trunk(tenant, forks.call.stored);
    if (auto* error = std::get_if<ApiError>(&stored)) co_return std::move(*error);
    auto& [state, cut, salt, model] = std::get<ForkTrunk>(stored);
    for (ForkBranch& branch : forks.call.branches) {
      branch.call.cache_salt = salt;
      if (branch.call.served->name() != model->name()) {
        co_return invalid_field("model", "the trunk is of the model `" + model->name() +
                                             "`, not of `" + branch.call.served->name() +
                                             "`; name it in `model`");
      }
    }
    auto prepared = co_await prepare_on_text_thread(
        context_, prepare_stored_on_pool(context_, std::move(forks), std::move(state), cut));
    if (auto* error = std::get_if<ApiError>(&prepared)) co_return std::move(*error);
    forks = std::move(std::get<PreparedForks>(prepared));
  }
  if (context_->draining) co_return not_ready(*context_);

  auto run = std::make_shared<ForkRun>();
  run->stream = forks.call.stream;
  run->include_usage = forks.call.include_usage;
  run->label.id = context_->next_response_id("forks");
  run->label.created = unix_seconds();
  std::vector<Dispatcher::Submission> submissions;
  for (std::size_t i = 0; i < forks.call.branches.size(); ++i) {
    auto record = std::make_shared<CallRecord>();
    record->tenant = tenant;
    record->call = std::move(forks.call.branches[i].call);
    record->turn = std::move(forks.turns[i]);
    const ApiCall& call = record->call;
    const ServedModel& model = *call.served;
    CompletionLabel label = run->label;
    label.id = context_->next_response_id(call.kind);
    label.model = call.model.empty() ? model.name() : call.model;
    label.system_fingerprint = context_->system_fingerprint(model);
    label.branch = i;
    label.branch_label = forks.call.branches[i].label;
    run->label.model = label.model;
    run->labels.push_back(label.branch_label);
    record->id = label.id;
    record->call.reply.id = label.id;
    record->prompt = forks.prompts[i].tokens;
    record->generated.resize(call.num_choices);
    auto live = std::make_shared<LiveCall>(
        socket_.get_executor(), Completion(call, 1, label, model.codec.get()), call.stream,
        &context_->dispatcher, &context_->metrics, model.codec.get(), received);
    live->completion().set_prompts(call, {&forks.prompts[i], 1});
    if (i > 0) run->calls.front()->add_sibling(live);
    std::vector<PreparedPrompt> prompts;
    prompts.push_back(std::move(forks.prompts[i]));
    keep_prompts(*live, call, tenant, prompts);
    submissions.push_back(
        {make_requests(call, std::move(prompts), model.name(), tenant, context_->random()), live});
    run->records.push_back(std::move(record));
    run->calls.push_back(std::move(live));
  }
  auto submitted = context_->dispatcher.submit_all(std::move(submissions));
  if (auto* error = std::get_if<ApiError>(&submitted)) co_return std::move(*error);
  auto& ids = std::get<std::vector<std::vector<RequestId>>>(submitted);
  for (std::size_t i = 0; i < run->calls.size(); ++i) {
    run->calls[i]->set_requests(std::move(ids[i]));
    if (run->records[i]->call.kind != ApiKind::kChat) continue;
    run->calls[i]->set_record(run->records[i]);
    context_->sessions.calls().add(run->records[i]);
  }
  context_->schedule_flush();
  co_return run;
}

net::awaitable<ApiResult<Session::ForkTrunk>> Session::find_trunk(std::string tenant,
                                                                  StoredTrunk stored) {
  SessionService& sessions = context_->sessions;
  if (!stored.response_id.empty()) {
    const auto record = sessions.calls().find(tenant, stored.response_id);
    const StoredResponse* kept =
        record == nullptr ? context_->responses.store().find(tenant, stored.response_id) : nullptr;
    if (kept != nullptr) co_return trunk_of_stored(context_, *kept, stored);
    co_return trunk_of_response(record.get(), stored);
  }
  auto found = sessions.find(tenant, stored.session_id, "trunk.session_id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  const StoredSession& session = *std::get<StoredSession*>(found);
  auto model = context_->model_of(session);
  if (auto* error = std::get_if<ApiError>(&model)) co_return std::move(*error);
  ForkTrunk trunk{
      session.state, {}, session.cache_salt, std::get<ServedModelPtr>(std::move(model))};
  co_await load_spilled(context_, stored.session_id);
  co_return trunk;
}

net::awaitable<bool> Session::answer_forks(Request request) {
  if (context_->draining || !context_->backend_was_ready())
    co_return co_await reply(request, error_reply(not_ready(*context_)));
  auto started = co_await start_forks(request.tenant, std::exchange(request.body, {}),
                                      std::move(request.body_lease), request.received);
  if (auto* error = std::get_if<ApiError>(&started))
    co_return co_await reply(request, error_reply(*error));
  const auto run = std::move(std::get<std::shared_ptr<ForkRun>>(started));
  const std::shared_ptr<LiveCall> first = run->calls.front();
  call_ = first;
  watch_client(first);
  bool open = false;
  if (run->stream)
    open = co_await stream_forks(run, std::move(request));
  else
    open = co_await whole_forks(run, std::move(request));
  call_ = nullptr;
  first->abandon();
  for (std::size_t i = 0; i < run->calls.size(); ++i) {
    if (run->records[i]->call.kind == ApiKind::kChat)
      context_->sessions.calls().end(run->records[i], run->calls[i]->completion().started());
  }
  boost::system::error_code ignored;
  static_cast<void>(socket_.cancel(ignored));  // ends the watch
  if (first->hung_up()) ++context_->metrics.client_disconnects;
  co_return open;
}

net::awaitable<bool> Session::whole_forks(std::shared_ptr<ForkRun> run, Request request) {
  LiveCall& first = *run->calls.front();
  while (!run->ended() && !first.hung_up())
    co_await first.wait();
  if (first.hung_up()) {
    count(request, kClientClosed);
    co_return false;
  }
  // Where none was served, the call has failed; else each branch says for itself.
  if (auto failure = run->failure())
    co_return co_await reply(request, error_reply(with_retry(*std::move(failure))));
  std::vector<std::string> bodies;
  for (std::size_t i = 0; i < run->calls.size(); ++i) {
    LiveCall& call = *run->calls[i];
    Completion& completion = call.completion();
    if (const auto& error = completion.error()) {
      bodies.push_back(branch_error_body(i, run->labels[i], *error));
      continue;
    }
    std::string explained;
    if (run->records[i]->call.explain) explained = co_await explanation(call.requests());
    completion.set_system_fingerprint(context_->system_fingerprint(*completion.served()));
    completion.writer().set_metadata(context_->metadata(*completion.served(), request.received));
    bodies.push_back(completion.body(explained));
  }
  HttpReply whole;
  whole.body = forks_body(run->label, bodies, run->usage());
  whole.headers.emplace_back("x-request-id", run->label.id);
  co_return co_await reply(request, std::move(whole));
}

net::awaitable<bool> Session::stream_forks(std::shared_ptr<ForkRun> run, Request request) {
  LiveCall& first = *run->calls.front();
  ReplyMode mode = mode_for(request.head);
  if (mode.http_1_0) mode.keep_alive = false;  // the end of the body is the connection's
  std::vector<bool> closed(run->calls.size(), false);
  bool head_written = false;
  const auto has_news = [&](std::size_t i) {
    const Completion& completion = run->calls[i]->completion();
    return !closed[i] && (completion.ended() || (completion.started() && completion.has_frames()));
  };
  for (;;) {
    const auto any_news = [&] {
      for (std::size_t i = 0; i < closed.size(); ++i)
        if (has_news(i)) return true;
      return false;
    };
    while (!any_news() && !first.hung_up())
      co_await first.wait();
    if (first.hung_up()) break;
    if (auto failure = run->failure(); failure && !head_written)
      co_return co_await reply(request, error_reply(with_retry(*std::move(failure))));
    std::string bytes;
    if (!head_written) bytes = stream_head(mode, run->label.id);
    head_written = true;
    std::string frames;
    for (std::size_t i = 0; i < closed.size(); ++i) {
      if (!has_news(i)) continue;
      Completion& completion = run->calls[i]->completion();
      completion.set_system_fingerprint(context_->system_fingerprint(*completion.served()));
      const bool ended = completion.ended();
      frames += completion.take_frames();
      if (!ended) continue;
      closed[i] = true;
      if (const auto& error = completion.error()) {
        frames += "data: " + branch_error_body(i, run->labels[i], *error) + "\n\n";
        continue;
      }
      std::string explained;
      if (run->records[i]->call.explain)
        explained = co_await explanation(run->calls[i]->requests());
      frames += completion.end_frames(explained);
    }
    const bool last = std::ranges::all_of(closed, [](bool done) { return done; });
    if (last && run->include_usage) frames += forks_usage_frame(run->label, run->usage());
    if (last) frames += kDoneFrame;
    bytes += stream_chunk(mode, std::move(frames));
    if (last) bytes += stream_end(mode);
    if (!co_await write(std::move(bytes))) break;
    if (!last) continue;
    count(request, 200);
    co_return mode.keep_alive;
  }
  count(request, kClientClosed);
  co_return false;
}

}  // namespace thaw::coalescer

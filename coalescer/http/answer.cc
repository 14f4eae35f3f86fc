// The half of Session that answers requests.

#include <algorithm>
#include <exception>
#include <string>
#include <utility>
#include <variant>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "coalescer/core/unix_time.h"
#include "coalescer/http/openapi.h"
#include "coalescer/http/session.h"
#include "coalescer/http/text_work.h"
#include "coalescer/openai/admin_bodies.h"
#include "coalescer/openai/describe.h"
#include "coalescer/openai/messages_call.h"
#include "coalescer/openai/messages_models.h"
#include "engine/base/log.h"

namespace thaw::coalescer {
namespace {

namespace net = boost::asio;

constexpr std::size_t kRecentWindows = 32;

struct PreparedCall {
  ApiCall call;
  std::vector<PreparedPrompt> prompts;
};

/// Parsing, rendering and tokenizing. Any thread.
ApiResult<PreparedCall> prepare_call(const ServerContext* context, const ServedModels& models,
                                     ApiKind kind, const std::string& body) {
  auto parsed = parse_call(kind, body, models, context->options.max_num_seqs);
  if (auto* error = std::get_if<ApiError>(&parsed)) return std::move(*error);
  PreparedCall prepared;
  prepared.call = std::move(std::get<ApiCall>(parsed));
  const ServedModel& model = *prepared.call.served;
  if (!prepared.call.session_id.empty()) return prepared;  // its prompt follows from the session
  auto prompts = prepare_prompts(prepared.call, *model.codec, model.max_model_len);
  if (auto* error = std::get_if<ApiError>(&prompts)) return std::move(*error);
  prepared.prompts = std::move(std::get<std::vector<PreparedPrompt>>(prompts));
  auto plan = plan_reply(prepared.call, prepared.prompts.front().tokens, /*known_tools=*/"",
                         context->options.eager_tools, *model.codec, context->options.has_grammars);
  if (auto* error = std::get_if<ApiError>(&plan)) return std::move(*error);
  prepared.call.reply = std::move(std::get<ReplyPlan>(plan));
  return prepared;
}

net::awaitable<ApiResult<PreparedCall>> prepare_on_pool(const ServerContext* context,
                                                        std::shared_ptr<const ServedModels> models,
                                                        ApiKind kind,
                                                        std::shared_ptr<const std::string> body) {
  co_return prepare_call(context, *models, kind, *body);
}

net::awaitable<ApiResult<PreparedCall>> prepare_anywhere(ServerContext* context,
                                                         std::shared_ptr<const ServedModels> models,
                                                         ApiKind kind,
                                                         std::shared_ptr<const std::string> body) {
  if (body->size() <= kInlineBodyBytes) co_return prepare_call(context, *models, kind, *body);
  co_return co_await prepare_on_text_thread(context, prepare_on_pool(context, models, kind, body));
}

/// The models in the order in which a session's turn that names none takes them: its own first.
/// Null where that is the order they are in.
std::shared_ptr<const ServedModels> models_of_turn(ServerContext* context, const ApiCall& call,
                                                   const std::string& tenant) {
  if (call.session_id.empty() || !call.model.empty()) return nullptr;
  const StoredSession* session = context->sessions.store().find(tenant, call.session_id);
  if (session == nullptr) return nullptr;
  const ServedModelPtr own = context->models->find(session->served);
  return own == nullptr || own == call.served ? nullptr : context->models->led_by(own);
}

ApiResult<std::string> token_reply(const ServerContext* context, Endpoint endpoint,
                                   const std::string& body) {
  if (endpoint == Endpoint::kTokenize) return tokenize(body, *context->models);
  if (endpoint == Endpoint::kCountTokens) return count_message_tokens(body, *context->models);
  return detokenize(body, *context->models);
}

net::awaitable<ApiResult<std::string>> token_reply_on_pool(const ServerContext* context,
                                                           Endpoint endpoint, std::string body) {
  co_return token_reply(context, endpoint, body);
}

net::awaitable<std::string> explain_on_pool(const ServerContext* context,
                                            std::vector<RequestId> requests) {
  std::vector<Explanation> explanations;
  for (const RequestId request : requests)
    if (auto explanation = context->history.explain(request))
      explanations.push_back(std::move(*explanation));
  co_return explanations_json(explanations);
}

net::awaitable<std::vector<ForkHistory::WindowExplanation>> recent_on_pool(
    const ServerContext* context) {
  co_return context->history.recent(kRecentWindows);
}

net::awaitable<std::string> openapi_on_pool(OpenApiCache* cache, OpenApiFacts facts) {
  co_return *cache->document(facts);
}

OpenApiFacts openapi_facts(const ServerContext& context) {
  OpenApiFacts facts;
  facts.version = context.options.version;
  facts.needs_keys = !context.options.api_keys.empty();
  facts.limits.max_choices = context.options.max_num_seqs;
  facts.limits.max_session_ttl = context.options.session_limits.max_ttl.count();
  facts.limits.num_slots =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(context.backend->status().slots.size()));
  facts.limits.vocab_size = 0;
  for (const ServedModelPtr& model : context.models->list())
    facts.limits.vocab_size =
        std::max<std::int64_t>(facts.limits.vocab_size, model->codec->vocab_size());
  return facts;
}

HttpReply health_reply(ServerContext* context) {
  if (const PoolStatus status = context->backend->status(); status.ready && !context->draining)
    return json_reply(health_body(status, *context->models));
  HttpReply reply = error_reply(not_ready(*context));
  reply.body = context->draining ? R"({"status":"draining"})" : R"({"status":"loading"})";
  return reply;
}

}  // namespace

net::awaitable<bool> Session::answer(Request request) {
  std::string failure;
  const RequestHead head = request.head;
  try {
    if (request.route.endpoint == Endpoint::kChat)
      co_return co_await answer_call(ApiKind::kChat, std::move(request));
    if (request.route.endpoint == Endpoint::kCompletions)
      co_return co_await answer_call(ApiKind::kCompletions, std::move(request));
    if (request.route.endpoint == Endpoint::kResponses ||
        request.route.endpoint == Endpoint::kInputTokens)
      co_return co_await answer_responses(std::move(request));
    if (request.route.endpoint >= Endpoint::kResponse &&
        request.route.endpoint <= Endpoint::kResponseItems)
      co_return co_await answer_response(std::move(request));
    if (request.route.endpoint == Endpoint::kMessages)
      co_return co_await answer_call(ApiKind::kMessages, std::move(request));
    if (request.route.endpoint == Endpoint::kForks)
      co_return co_await answer_forks(std::move(request));
    if (request.route.endpoint >= Endpoint::kSessions)
      co_return co_await answer_session(std::move(request));
    Request seen;
    seen.head = head;
    seen.route = request.route;
    seen.received = request.received;
    co_return co_await reply(seen, co_await simple_reply(std::move(request)));
  } catch (const std::exception& exception) {
    failure = exception.what();
  }
  logger("http")->error("event=request_failed path={} error=\"{}\"", head.path, failure);
  if (call_ != nullptr) {
    const auto call = std::exchange(call_, nullptr);
    call->abandon();
    if (call->record() != nullptr) context_->sessions.calls().end(call->record(), /*keep=*/false);
    co_return false;  // part of an answer may be out
  }
  ApiError error = to_api_error(make_error(Errc::kInternal, "the server failed on this request"));
  co_await refuse(error_reply(error), mode_for(head));
  co_return false;
}

net::awaitable<HttpReply> Session::simple_reply(Request request) {
  const ServerOptions& options = context_->options;
  const bool is_anthropic =
      dialect_of(request.head.path, request.head.has_anthropic_version) == ApiDialect::kAnthropic;
  switch (request.route.endpoint) {
    case Endpoint::kModels: {
      auto page = message_models_body(*context_->models, request.head.query);
      if (const auto* error = std::get_if<ApiError>(&page)) co_return error_reply(*error);
      if (is_anthropic) co_return json_reply(std::move(std::get<std::string>(page)));
      co_return json_reply(models_body(*context_->models));
    }
    case Endpoint::kModel: {
      const auto model = require_model(*context_->models, request.route.parameter);
      if (const auto* error = std::get_if<ApiError>(&model)) co_return error_reply(*error);
      const ServedModel& served = *std::get<ServedModelPtr>(model);
      co_return json_reply(is_anthropic ? message_model_body(request.route.parameter, served)
                                        : model_body(request.route.parameter, served));
    }
    case Endpoint::kHealth:
      co_return health_reply(context_);
    case Endpoint::kVersion:
      co_return json_reply(nlohmann::json{{"version", options.version}}.dump());
    case Endpoint::kMetrics: {
      HttpReply reply;
      reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
      reply.body = context_->metrics_text();
      co_return reply;
    }
    case Endpoint::kOpenApi: {
      OpenApiFacts facts = openapi_facts(*context_);
      std::string document = co_await net::co_spawn(
          context_->text_pool, openapi_on_pool(&context_->openapi, std::move(facts)),
          net::use_awaitable);
      co_return json_reply(std::move(document));
    }
    case Endpoint::kAdminPool: {
      PoolStatus status = context_->backend->status();
      status.draining = status.draining || context_->draining;
      co_return json_reply(pool_status_body(status, *context_->models, may_administer(request),
                                            options.tensor_parallel));
    }
    case Endpoint::kAdminSnapshots:
    case Endpoint::kAdminRegister:
    case Endpoint::kAdminUnregister:
    case Endpoint::kAdminPreload:
      co_return co_await admin_reply(std::move(request));
    case Endpoint::kForksRecent: {
      auto windows =
          co_await net::co_spawn(context_->text_pool, recent_on_pool(context_), net::use_awaitable);
      // A tenant sees its own requests only.
      for (auto& window : windows)
        std::erase_if(window.requests, [&](const Explanation& explanation) {
          return context_->dispatcher.tenant_of(explanation.request) != request.tenant;
        });
      std::erase_if(windows, [](const auto& window) { return window.requests.empty(); });
      co_return json_reply(windows_body(windows));
    }
    default:
      break;
  }
  ApiResult<std::string> result;
  if (request.body.size() <= kInlineBodyBytes) {
    result = token_reply(context_, request.route.endpoint, request.body);
  } else {
    result = co_await net::co_spawn(
        context_->text_pool,
        token_reply_on_pool(context_, request.route.endpoint, std::move(request.body)),
        net::use_awaitable);
  }
  if (auto* error = std::get_if<ApiError>(&result)) co_return error_reply(*error);
  co_return json_reply(std::move(std::get<std::string>(result)));
}

net::awaitable<bool> Session::answer_call(ApiKind kind, Request request) {
  if (context_->draining || !context_->backend_was_ready())
    co_return co_await reply(request, error_reply(not_ready(*context_)));
  const auto body = std::make_shared<const std::string>(std::exchange(request.body, {}));
  const std::size_t body_bytes = body->size();
  ApiResult<PreparedCall> result =
      co_await prepare_anywhere(context_, context_->models, kind, body);
  if (const auto* read = std::get_if<PreparedCall>(&result)) {
    // Vocabulary and defaults are those of the session's model.
    if (auto models = models_of_turn(context_, read->call, request.tenant))
      result = co_await prepare_anywhere(context_, std::move(models), kind, body);
  }
  request.body_lease.reset();
  if (auto* error = std::get_if<ApiError>(&result))
    co_return co_await reply(request, error_reply(*error));
  // The server may have begun to drain meanwhile.
  if (context_->draining) co_return co_await reply(request, error_reply(not_ready(*context_)));

  auto& prepared = std::get<PreparedCall>(result);
  const auto record = std::make_shared<CallRecord>();
  record->tenant = request.tenant;
  record->call = std::move(prepared.call);
  record->body_bytes = body_bytes;
  const ApiCall& call = record->call;
  std::shared_ptr<RunningTurn> turn;
  if (!call.session_id.empty()) {
    auto begun = co_await begin_turn(record);
    if (auto* error = std::get_if<ApiError>(&begun))
      co_return co_await reply(request, error_reply(*error));
    auto& [running, prompt] = std::get<TurnStart>(begun);
    turn = std::move(running);
    prepared.prompts.push_back(std::move(prompt));
    if (context_->draining) co_return co_await reply(request, error_reply(not_ready(*context_)));
  }
  auto started = start_call(record, std::move(prepared.prompts), std::move(turn), request.received);
  if (auto* error = std::get_if<ApiError>(&started))
    co_return co_await reply(request, error_reply(*error));
  co_return co_await answer_live(std::move(std::get<std::shared_ptr<LiveCall>>(started)), record,
                                 std::move(request));
}

ApiResult<std::shared_ptr<LiveCall>> Session::start_call(const std::shared_ptr<CallRecord>& record,
                                                         std::vector<PreparedPrompt> prompts,
                                                         std::shared_ptr<RunningTurn> turn,
                                                         Clock::TimePoint received) {
  const ApiCall& call = record->call;
  const std::string& tenant = record->tenant;
  const std::size_t num_prompts = prompts.size();
  CompletionLabel label;
  label.id = context_->next_response_id(call.kind);
  label.created = unix_seconds();
  // An alias is repeated; a request that names none reads which one answered.
  label.model = call.model.empty() ? call.served->name() : call.model;
  label.system_fingerprint = context_->system_fingerprint(*call.served);
  record->id = label.id;
  record->call.reply.id = label.id;
  const TextCodec* codec = call.served->codec.get();  // lives as long as the record
  auto live = std::make_shared<LiveCall>(
      socket_.get_executor(), Completion(call, num_prompts, label, codec), call.stream,
      &context_->dispatcher, &context_->metrics, codec, received);
  live->completion().set_prompts(call, prompts);
  if (call.kind != ApiKind::kCompletions) {
    record->prompt = prompts.front().tokens;
    record->generated.resize(call.num_choices);
  }
  if (turn != nullptr) {
    SessionUsage used;
    used.id = call.session_id;
    used.appended = call.append;
    if (const auto& plan = record->turn) used.common_tokens = plan->common_tokens;
    live->completion().set_session(std::move(used));
  }
  keep_prompts(*live, call, tenant, prompts);
  auto submitted = context_->dispatcher.submit(
      make_requests(call, std::move(prompts), call.served->name(), tenant, context_->random()),
      live);
  if (auto* error = std::get_if<ApiError>(&submitted)) return std::move(*error);
  live->set_requests(std::move(std::get<std::vector<RequestId>>(submitted)));
  context_->schedule_flush();
  if (call.kind != ApiKind::kCompletions) {
    live->set_record(record);
    context_->sessions.calls().add(record);
  }
  if (turn != nullptr) {
    context_->sessions.set_running(call.session_id, record);
    live->set_turn(std::move(turn));
  }
  return live;
}

net::awaitable<bool> Session::answer_live(std::shared_ptr<LiveCall> live,
                                          std::shared_ptr<CallRecord> record, Request request) {
  const ApiCall& call = record->call;
  call_ = live;
  watch_client(live);
  bool open = false;
  if (call.stream)
    open = co_await answer_stream(live, std::move(request), record->id, call.explain);
  else
    open = co_await answer_whole(live, std::move(request), record->id, call.explain);
  call_ = nullptr;
  live->abandon();
  if (call.kind != ApiKind::kCompletions)
    context_->sessions.calls().end(record, /*keep=*/live->completion().started());
  boost::system::error_code ignored;
  static_cast<void>(socket_.cancel(ignored));  // ends the watch
  if (live->hung_up()) ++context_->metrics.client_disconnects;
  co_return open;
}

void Session::keep_prompts(LiveCall& live, const ApiCall& call, const std::string& tenant,
                           const std::vector<PreparedPrompt>& prompts) {
  std::vector<std::vector<TokenId>> kept;
  bool keeps_any = false;
  for (const PreparedPrompt& prompt : prompts) {
    keeps_any = keeps_any || prompt.kept_tokens > 0;
    kept.emplace_back(prompt.tokens.begin(), prompt.tokens.begin() + prompt.kept_tokens);
  }
  if (!keeps_any) return;
  const TrunkOwner owner{tenant, call.cache_salt, call.served->name(), ""};
  live.set_on_prefilled([pins = &context_->cache_pins, owner, cache = call.cache,
                         kept = std::move(kept)](std::size_t slot) mutable {
    pins->keep(owner, cache.key, std::move(kept[slot]), cache.ttl);
  });
}

ApiError Session::with_retry(ApiError error) {
  // The pool's queue is full where ours is not: it moves at the same rate.
  if (error.status == 429) error.retry_after = context_->dispatcher.next_retry();
  return error;
}

net::awaitable<std::string> Session::explanation(std::vector<RequestId> requests) {
  co_return co_await net::co_spawn(
      context_->text_pool, explain_on_pool(context_, std::move(requests)), net::use_awaitable);
}

net::awaitable<bool> Session::answer_whole(std::shared_ptr<LiveCall> call, Request request,
                                           std::string id, bool explain) {
  Completion& completion = call->completion();
  while (!completion.ended() && !call->hung_up())
    co_await call->wait();
  if (call->hung_up()) {
    count(request, kClientClosed);
    co_return false;
  }
  if (const auto& error = completion.error())
    co_return co_await reply(request, error_reply(with_retry(*error)));
  std::string explained;
  if (explain) explained = co_await explanation(call->requests());
  completion.set_system_fingerprint(context_->system_fingerprint(*completion.served()));
  completion.writer().set_metadata(context_->metadata(*completion.served(), request.received));
  HttpReply whole = json_reply(completion.body(explained));
  call->answered();
  whole.headers.emplace_back("x-request-id", id);
  co_return co_await reply(request, std::move(whole));
}

net::awaitable<bool> Session::answer_stream(std::shared_ptr<LiveCall> call, Request request,
                                            std::string id, bool explain) {
  Completion& completion = call->completion();
  const ReplyMode mode = [&] {
    ReplyMode result = mode_for(request.head);
    if (result.http_1_0) result.keep_alive = false;  // the end of the body is the connection's
    return result;
  }();
  bool head_written = false;
  for (;;) {
    while (!completion.ended() && !call->hung_up() &&
           !(completion.started() && (completion.has_frames() || !head_written)))
      co_await call->wait();
    const bool last = completion.ended();
    if (call->hung_up()) break;
    // What failed before it began is an ordinary error with its own status.
    const auto& error = completion.error();
    if (error && !head_written) co_return co_await reply(request, error_reply(with_retry(*error)));
    std::string explained;
    if (last && explain && !error) explained = co_await explanation(call->requests());
    std::string bytes;
    if (!head_written) {
      bytes = stream_head(mode, id);
      completion.set_system_fingerprint(context_->system_fingerprint(*completion.served()));
    }
    head_written = true;
    std::string frames = completion.take_frames();
    if (last) frames += completion.last_frames(explained);
    if (last) call->answered();
    bytes += stream_chunk(mode, std::move(frames));
    if (last) bytes += stream_end(mode);
    if (!bytes.empty() && !co_await write(std::move(bytes))) break;
    if (!last) continue;
    count(request, error ? error->status : 200);
    co_return mode.keep_alive;
  }
  count(request, kClientClosed);
  co_return false;
}

}  // namespace thaw::coalescer

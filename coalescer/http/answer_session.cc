// The part of Session (a connection) that answers /v1/sessions, and begins the turns of sessions.

#include <algorithm>
#include <string>
#include <utility>
#include <variant>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "coalescer/http/session.h"
#include "coalescer/http/session_spill.h"
#include "coalescer/http/text_work.h"
#include "coalescer/openai/session_call.h"
#include "coalescer/openai/session_json.h"
#include "coalescer/openai/session_turn.h"

namespace thaw::coalescer {
namespace {

namespace net = boost::asio;

/// A file may hold a larger document than a body.
constexpr std::uint64_t kDocumentFactor = 4;

struct PreparedTurn {
  SessionTurn turn;
  PreparedPrompt prompt;
  ReplyPlan reply;
};

ApiResult<PreparedTurn> prepare_session_turn(const ServerContext* context, const CallRecord& record,
                                             const SessionState& state) {
  const ServedModel& model = *record.call.served;
  auto turn = prepare_turn(record.call, state, *model.codec);
  if (auto* error = std::get_if<ApiError>(&turn)) return std::move(*error);
  PreparedTurn prepared{std::move(std::get<SessionTurn>(turn)), {}, {}};
  auto prompt =
      fit_prompt(record.call, std::exchange(prepared.turn.prompt, {}), model.max_model_len);
  if (auto* error = std::get_if<ApiError>(&prompt)) return std::move(*error);
  prepared.prompt = std::move(std::get<PreparedPrompt>(prompt));
  auto plan = plan_reply(record.call, prepared.prompt.tokens, prepared.turn.next.tools,
                         context->options.eager_tools, *model.codec, context->options.has_grammars);
  if (auto* error = std::get_if<ApiError>(&plan)) return std::move(*error);
  prepared.reply = std::move(std::get<ReplyPlan>(plan));
  return prepared;
}

net::awaitable<ApiResult<PreparedTurn>> turn_on_pool(const ServerContext* context,
                                                     std::shared_ptr<const CallRecord> record,
                                                     SharedState state) {
  co_return prepare_session_turn(context, *record, *state);
}

net::awaitable<ApiResult<SharedState>> cut_on_pool(ServedModelPtr model, SharedState state,
                                                   SessionCut cut, std::string prefix) {
  co_return cut_session(state, cut, prefix, *model->codec);
}

struct NewState {
  CreateSessionCall call;
  ServedModelPtr model;
  SharedState state;  ///< null where the call names a response
};

ApiResult<NewState> read_create(const ServerContext* context, const std::string& body) {
  auto parsed = parse_create_session(body);
  if (auto* error = std::get_if<ApiError>(&parsed)) return std::move(*error);
  NewState made{std::move(std::get<CreateSessionCall>(parsed)), nullptr, nullptr};
  auto model = require_model(*context->models, made.call.model);
  if (auto* error = std::get_if<ApiError>(&model)) return std::move(*error);
  made.model = std::move(std::get<ServedModelPtr>(model));
  if (!made.call.response_id.empty()) return made;
  auto state = state_of_messages(made.call.prompt, *made.model->codec, made.model->max_model_len);
  if (auto* error = std::get_if<ApiError>(&state)) return std::move(*error);
  made.state = std::move(std::get<SharedState>(state));
  return made;
}

net::awaitable<ApiResult<NewState>> create_on_pool(const ServerContext* context, std::string body) {
  co_return read_create(context, body);
}

/// The document that an import names or brings.
net::awaitable<ApiResult<SessionDocument>> import_on_pool(const ServerContext* context,
                                                          SessionFileCall call) {
  if (call.file.empty()) {
    auto read = read_session_document(call.document, document_limits(context));
    if (auto* error = std::get_if<ApiError>(&read)) {
      error->param = error->param.empty() ? "document" : "document." + error->param;
    }
    co_return read;
  }
  const auto files = context->sessions.files();
  const auto text = files->read(files->export_document_path(call.file),
                                kDocumentFactor * context->options.max_body_bytes);
  if (!text) {
    ApiError error = to_api_error(text.error());
    error.param = "file";
    if (error.status == 404) error.code = "file_not_found";
    co_return error;
  }
  auto read = read_session_document(*text, document_limits(context));
  if (auto* error = std::get_if<ApiError>(&read)) error->param = "file";
  co_return read;
}

ApiError not_found(const std::string& param, std::string message, std::string code) {
  ApiError error = invalid_field(param, std::move(message), std::move(code));
  error.status = 404;
  return error;
}

/// The checkpoint's state, or the 404.
ApiResult<SharedState> state_of_checkpoint(const StoredSession& session, const std::string& name) {
  for (const SessionCheckpoint& checkpoint : session.checkpoints)
    if (checkpoint.name == name) return checkpoint.state;
  return not_found("checkpoint",
                   "session `" + session.id + "` has no checkpoint `" + name.substr(0, 200) + "`",
                   "checkpoint_not_found");
}

}  // namespace

net::awaitable<ApiResult<Session::TurnStart>> Session::begin_turn(
    std::shared_ptr<CallRecord> record) {
  SessionService& sessions = context_->sessions;
  ApiCall& call = record->call;
  auto found = sessions.find(record->tenant, call.session_id, "session_id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  StoredSession& session = *std::get<StoredSession*>(found);
  if (!call.cache_salt.empty() && call.cache_salt != session.cache_salt) {
    co_return invalid_field("cache_salt",
                            "`cache_salt` is not the session's own; leave it out in a session's "
                            "turn");
  }
  auto model = context_->model_of(session);
  if (auto* error = std::get_if<ApiError>(&model)) co_return std::move(*error);
  if (std::get<ServedModelPtr>(model)->name() != call.served->name()) {
    co_return invalid_field("model", "the session is of the model `" + session.model +
                                         "`, not of `" + call.model.substr(0, 200) +
                                         "`; leave `model` out in a session's turn");
  }
  call.cache_salt = session.cache_salt;
  auto begun = sessions.begin_turn(session);
  if (auto* error = std::get_if<ApiError>(&begun)) co_return std::move(*error);
  TurnStart start;
  start.turn = std::move(std::get<std::shared_ptr<RunningTurn>>(begun));

  const SharedState state = session.state;  // the session may go while the text threads work
  co_await load_spilled(context_, call.session_id);
  ApiResult<PreparedTurn> result;
  if (record->body_bytes <= kInlineBodyBytes && state->tokens.size() <= kInlineTokens) {
    result = prepare_session_turn(context_, *record, *state);
  } else {
    result = co_await prepare_on_text_thread(context_, turn_on_pool(context_, record, state));
  }
  if (auto* error = std::get_if<ApiError>(&result)) co_return std::move(*error);
  auto& prepared = std::get<PreparedTurn>(result);
  record->turn = std::move(prepared.turn);
  record->call.reply = std::move(prepared.reply);
  start.prompt = std::move(prepared.prompt);
  co_return start;
}

net::awaitable<bool> Session::answer_session(Request request) {
  Request seen;
  seen.head = request.head;
  seen.route = request.route;
  seen.received = request.received;
  ApiResult<std::string> body;
  if (context_->draining || !context_->backend_was_ready())
    body = not_ready(*context_);
  else
    body = co_await session_body_of(std::move(request));
  if (auto* error = std::get_if<ApiError>(&body))
    co_return co_await reply(seen, error_reply(*error));
  HttpReply whole;
  whole.body = std::move(std::get<std::string>(body));
  co_return co_await reply(seen, std::move(whole));
}

net::awaitable<ApiResult<std::string>> Session::session_body_of(Request request) {
  SessionService& sessions = context_->sessions;
  SessionStore& store = sessions.store();
  switch (request.route.endpoint) {
    case Endpoint::kSessionCreate:
      co_return co_await create_session(std::move(request));
    case Endpoint::kSessionFork:
      co_return co_await fork_session(std::move(request));
    case Endpoint::kSessionRewind:
      co_return co_await rewind_session(std::move(request));
    case Endpoint::kSessionCheckpoint:
      co_return co_await checkpoint_session(std::move(request));
    case Endpoint::kSessionExport:
      co_return co_await export_session_call(std::move(request));
    case Endpoint::kSessionImport:
      co_return co_await import_session(std::move(request));
    case Endpoint::kSessions: {
      const auto parsed = parse_session_page(request.head.query);
      if (const auto* error = std::get_if<ApiError>(&parsed)) co_return *error;
      const auto& page = std::get<SessionPage>(parsed);
      std::vector<StoredSession*> listed = store.list(request.tenant);
      if (!page.after.empty()) {
        const auto after = std::ranges::find(listed, page.after, &StoredSession::id);
        if (after == listed.end()) {
          co_return invalid_field("after", "`after` is `" + page.after.substr(0, 64) +
                                               "`, which is none of the sessions");
        }
        listed.erase(listed.begin(), after + 1);
      }
      const bool has_more = listed.size() > page.limit;
      listed.resize(std::min<std::size_t>(listed.size(), page.limit));
      co_return sessions_body(sessions.view(), listed, has_more);
    }
    default:
      break;
  }
  auto found = sessions.find(request.tenant, request.route.parameter, "id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  StoredSession& session = *std::get<StoredSession*>(found);
  switch (request.route.endpoint) {
    case Endpoint::kSession: {
      const auto view = parse_session_view(request.head.query);
      if (const auto* error = std::get_if<ApiError>(&view)) co_return *error;
      co_return session_body(sessions.view(), session, std::get<SessionView>(view));
    }
    case Endpoint::kSessionTree:
      co_return tree_body(sessions.view(), session);
    case Endpoint::kSessionDelete: {
      const auto recursive = parse_recursive(request.head.query);
      if (const auto* error = std::get_if<ApiError>(&recursive)) co_return *error;
      const std::string id = session.id;
      std::size_t count = 1;
      if (std::get<bool>(recursive))
        count = store.erase_tree(session);
      else
        store.erase(session);
      co_return deleted_body(id, count);
    }
    default:
      co_return to_api_error(make_error(Errc::kInternal, "no such session endpoint"));
  }
}

net::awaitable<ApiResult<std::string>> Session::create_session(Request request) {
  std::string body = std::exchange(request.body, {});
  ApiResult<NewState> result;
  if (body.size() <= kInlineBodyBytes) {
    result = read_create(context_, body);
  } else {
    result = co_await net::co_spawn(context_->text_pool, create_on_pool(context_, std::move(body)),
                                    net::use_awaitable);
  }
  request.body_lease.reset();
  if (auto* error = std::get_if<ApiError>(&result)) co_return std::move(*error);
  auto& made = std::get<NewState>(result);
  const CreateSessionCall& call = made.call;

  SessionService& sessions = context_->sessions;
  NewSession fresh;
  fresh.tenant = request.tenant;
  fresh.cache_salt = call.cache_salt;
  fresh.label = call.label;
  fresh.ttl = call.ttl;
  fresh.state = made.state;
  if (!call.response_id.empty()) {
    const auto record = sessions.calls().find(request.tenant, call.response_id);
    if (record == nullptr) {
      co_return not_found("response_id",
                          "there is no chat completion `" + call.response_id.substr(0, 100) +
                              "`: it runs not, and is none of the last that ended",
                          "response_not_found");
    }
    if (!call.cache_salt.empty() && call.cache_salt != record->call.cache_salt) {
      co_return invalid_field("cache_salt",
                              "`cache_salt` is not the completion's own; leave it out");
    }
    if (!call.model.empty() && made.model->name() != record->call.served->name()) {
      co_return invalid_field("model", "`model` is not the completion's own; leave it out");
    }
    made.model = record->call.served;
    fresh.cache_salt = record->call.cache_salt;
    fresh.state = state_of_record(*record, call.choice, *made.model->codec);
    if (fresh.state == nullptr) {
      co_return invalid_field("choice", "`choice` is " + std::to_string(call.choice) +
                                            "; the completion has " +
                                            std::to_string(record->generated.size()));
    }
  }
  const ServedModelPtr model = made.model;
  fresh.model = call.model.empty() ? model->name() : call.model;
  fresh.served = model->name();
  fresh.weights = model->weights;
  fresh.vocab_size = model->codec->vocab_size();
  const SharedState state = fresh.state;
  auto created = sessions.store().create(std::move(fresh));
  if (!created) {
    co_return session_error(created.error(),
                            created.error().code == Errc::kInvalidArgument ? "ttl_seconds" : "");
  }
  const std::string id = (*created)->id;
  sessions.count_created(1);
  std::optional<CompletionUsage> usage;
  // A running completion's KV is where it is; what it computed last is not worth a request.
  if (call.prefill && call.response_id.empty()) {
    GenerateRequest prefill_request;
    prefill_request.tenant = request.tenant;
    prefill_request.cache_salt = call.cache_salt;
    prefill_request.model = model->name();
    prefill_request.session = id;
    prefill_request.prompt = state->tokens;
    auto filled = co_await prefill(std::move(prefill_request), model, request.received);
    StoredSession* session = sessions.store().find(request.tenant, id);
    if (auto* error = std::get_if<ApiError>(&filled)) {
      if (session != nullptr) sessions.store().erase(*session);
      co_return std::move(*error);
    }
    usage = std::get<CompletionUsage>(filled);
  }
  auto found = sessions.find(request.tenant, id, "id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  StoredSession& session = *std::get<StoredSession*>(found);
  sessions.keep(session);
  co_return session_body(sessions.view(), session, {}, usage);
}

net::awaitable<ApiResult<CompletionUsage>> Session::prefill(GenerateRequest request,
                                                            ServedModelPtr model,
                                                            Clock::TimePoint received) {
  const TextCodec* codec = model->codec.get();
  request.sampling = SamplingParams{};
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 1;
  ApiCall call;
  call.prompts.emplace_back(std::vector<TokenId>());
  const auto live = std::make_shared<LiveCall>(
      socket_.get_executor(), Completion(call, 1, CompletionLabel{}, codec),
      /*streamed=*/false, &context_->dispatcher, &context_->metrics, codec, received);
  std::vector<GenerateRequest> requests;
  requests.push_back(std::move(request));
  auto submitted = context_->dispatcher.submit(std::move(requests), live);
  if (auto* error = std::get_if<ApiError>(&submitted)) co_return std::move(*error);
  live->set_requests(std::move(std::get<std::vector<RequestId>>(submitted)));
  context_->schedule_flush();
  call_ = live;
  watch_client(live);
  const Completion& completion = live->completion();
  while (!completion.ended() && !live->hung_up())
    co_await live->wait();
  call_ = nullptr;
  live->abandon();
  boost::system::error_code ignored;
  static_cast<void>(socket_.cancel(ignored));  // ends the watch
  if (live->hung_up()) {
    ++context_->metrics.client_disconnects;
    ApiError gone = invalid_field("", "the client hung up");
    gone.status = kClientClosed;
    co_return gone;
  }
  if (const auto& error = completion.error()) co_return *error;
  co_return completion.usage();
}

net::awaitable<ApiResult<std::string>> Session::fork_session(Request request) {
  auto parsed = parse_fork_session(request.body, context_->options.max_num_seqs);
  if (auto* error = std::get_if<ApiError>(&parsed)) co_return std::move(*error);
  const auto call = std::move(std::get<ForkSessionCall>(parsed));
  SessionService& sessions = context_->sessions;
  auto found = sessions.find(request.tenant, request.route.parameter, "id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  co_await load_spilled(context_, request.route.parameter);
  found = sessions.find(request.tenant, request.route.parameter, "id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  SharedState state = std::get<StoredSession*>(found)->state;
  if (!call.checkpoint.empty()) {
    auto kept = state_of_checkpoint(*std::get<StoredSession*>(found), call.checkpoint);
    if (auto* error = std::get_if<ApiError>(&kept)) co_return std::move(*error);
    state = std::move(std::get<SharedState>(kept));
  } else if (const auto record = sessions.running(request.route.parameter);
             call.include_running && record != nullptr) {
    state = state_of_record(*record, 0, *record->call.served->codec);
  }
  if (!call.cut.is_whole()) {
    auto model = context_->model_of(*std::get<StoredSession*>(found));
    if (auto* error = std::get_if<ApiError>(&model)) co_return std::move(*error);
    const ServedModelPtr served = std::get<ServedModelPtr>(model);
    auto cut = co_await net::co_spawn(
        context_->text_pool, cut_on_pool(served, state, call.cut, "cut."), net::use_awaitable);
    if (auto* error = std::get_if<ApiError>(&cut)) co_return std::move(*error);
    state = std::move(std::get<SharedState>(cut));
    found = sessions.find(request.tenant, request.route.parameter, "id");
    if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  }
  auto children = sessions.store().fork(*std::get<StoredSession*>(found), call.count, state,
                                        call.labels, call.ttl);
  if (!children) {
    co_return session_error(children.error(),
                            children.error().code == Errc::kInvalidArgument ? "ttl_seconds" : "n");
  }
  sessions.count_created(children->size());
  sessions.count_forked(children->size());
  for (const StoredSession* child : *children)
    sessions.keep(*child);
  co_return sessions_body(sessions.view(), *children, /*has_more=*/false);
}

net::awaitable<ApiResult<std::string>> Session::checkpoint_session(Request request) {
  auto parsed = parse_checkpoint(request.body);
  if (auto* error = std::get_if<ApiError>(&parsed)) co_return std::move(*error);
  auto found = context_->sessions.find(request.tenant, request.route.parameter, "id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  StoredSession& session = *std::get<StoredSession*>(found);
  std::string name = std::get<CheckpointCall>(parsed).name;
  for (std::size_t number = session.checkpoints.size() + 1; name.empty(); ++number) {
    const std::string tried = std::to_string(number);
    if (std::ranges::find(session.checkpoints, tried, &SessionCheckpoint::name) ==
        session.checkpoints.end())
      name = tried;
  }
  if (auto made = context_->sessions.store().checkpoint(session, name); !made)
    co_return session_error(made.error(), "name");
  const SessionCheckpoint checkpoint = session.checkpoints.back();
  if (context_->sessions.files() == nullptr)
    co_return checkpoint_body(session, checkpoint, nullptr);
  const StoredSession shown = session;
  const auto saved = co_await save_session(context_, shown.id);
  if (!saved) co_return to_api_error(saved.error());
  co_return checkpoint_body(shown, checkpoint, &*saved);
}

net::awaitable<ApiResult<std::string>> Session::export_session_call(Request request) {
  auto parsed = parse_session_file(request.body, /*is_import=*/false);
  if (auto* error = std::get_if<ApiError>(&parsed)) co_return std::move(*error);
  const std::string file = std::get<SessionFileCall>(parsed).file;
  auto found = context_->sessions.find(request.tenant, request.route.parameter, "id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  const StoredSession& session = *std::get<StoredSession*>(found);
  const std::string id = session.id;
  if (file.empty()) co_return export_body(id, document_text(context_, session));
  if (auto error = check_has_files()) co_return std::move(*error);
  const auto saved = co_await export_session(context_, id, file);
  if (!saved) co_return session_error(saved.error(), "file");
  co_return export_file_body(id, file, *saved);
}

net::awaitable<ApiResult<std::string>> Session::import_session(Request request) {
  auto parsed = parse_session_file(request.body, /*is_import=*/true);
  request.body.clear();
  request.body_lease.reset();
  if (auto* error = std::get_if<ApiError>(&parsed)) co_return std::move(*error);
  auto call = std::move(std::get<SessionFileCall>(parsed));
  if (!call.file.empty()) {
    if (auto error = check_has_files()) co_return std::move(*error);
  }
  auto read = co_await net::co_spawn(context_->text_pool, import_on_pool(context_, call),
                                     net::use_awaitable);
  if (auto* error = std::get_if<ApiError>(&read)) co_return std::move(*error);
  auto& document = std::get<SessionDocument>(read);
  // A file is its tenant's; what came in the body is whoever's sent it.
  if (!call.file.empty() && document.session.tenant != request.tenant)
    co_return not_found("file", "there is no file " + call.file, "file_not_found");
  SessionService& sessions = context_->sessions;
  StoredSession session = std::move(document.session);
  session.tenant = request.tenant;
  settle_model(context_, session);
  session.parent.clear();
  session.fork_tokens = 0;
  session.number = 0;  // it comes after those that are here
  if (!call.label.empty()) session.label = call.label;
  session.ttl =
      call.ttl.count() > 0 ? call.ttl : std::min(session.ttl, sessions.store().limits().max_ttl);
  const std::string id = session.id;
  if (sessions.store().by_id(id) != nullptr) {
    ApiError taken = invalid_field(
        "document", "session `" + id + "` is on this server already; delete it first, or fork it",
        "session_exists");
    taken.status = 409;
    co_return taken;
  }
  auto adopted = sessions.store().adopt(std::move(session));
  if (!adopted) {
    co_return session_error(adopted.error(),
                            adopted.error().code == Errc::kInvalidArgument ? "ttl_seconds" : "");
  }
  sessions.count_created(1);
  std::string kv_error;
  if (!call.file.empty())
    kv_error = co_await load_kv(context_, id, sessions.files()->export_kv_path(call.file));
  auto found = sessions.find(request.tenant, id, "id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  co_return session_body(sessions.view(), *std::get<StoredSession*>(found), {}, std::nullopt,
                         kv_error);
}

std::optional<ApiError> Session::check_has_files() const {
  if (context_->sessions.files() == nullptr) {
    return unsupported_field("file",
                             "`file` needs a server that was started with --session-dir; without "
                             "one sessions are exported and imported by the body");
  }
  return std::nullopt;
}

net::awaitable<ApiResult<std::string>> Session::rewind_session(Request request) {
  auto parsed = parse_rewind(request.body);
  if (auto* error = std::get_if<ApiError>(&parsed)) co_return std::move(*error);
  const auto call = std::move(std::get<RewindCall>(parsed));
  SessionService& sessions = context_->sessions;
  auto found = sessions.find(request.tenant, request.route.parameter, "id");
  if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  SharedState state = std::get<StoredSession*>(found)->state;
  if (!call.checkpoint.empty()) {
    auto kept = state_of_checkpoint(*std::get<StoredSession*>(found), call.checkpoint);
    if (auto* error = std::get_if<ApiError>(&kept)) co_return std::move(*error);
    state = std::move(std::get<SharedState>(kept));
  } else {
    auto model = context_->model_of(*std::get<StoredSession*>(found));
    if (auto* error = std::get_if<ApiError>(&model)) co_return std::move(*error);
    const ServedModelPtr served = std::get<ServedModelPtr>(model);
    auto cut = co_await net::co_spawn(context_->text_pool, cut_on_pool(served, state, call.cut, ""),
                                      net::use_awaitable);
    if (auto* error = std::get_if<ApiError>(&cut)) co_return std::move(*error);
    state = std::move(std::get<SharedState>(cut));
    found = sessions.find(request.tenant, request.route.parameter, "id");
    if (auto* error = std::get_if<ApiError>(&found)) co_return std::move(*error);
  }
  StoredSession& session = *std::get<StoredSession*>(found);
  if (auto done = sessions.store().rewind(session, std::move(state)); !done) {
    if (done.error().code == Errc::kUnavailable) sessions.count_conflict();
    co_return session_error(done.error(), "id");
  }
  sessions.keep(session);
  co_return session_body(sessions.view(), session, {});
}

}  // namespace thaw::coalescer

#include "coalescer/http/session_spill.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "coalescer/core/unix_time.h"
#include "coalescer/http/model_admin.h"
#include "engine/base/hash.h"
#include "engine/base/log.h"

namespace thaw::coalescer {
namespace {

namespace net = boost::asio;

/// For the backend to write or read the KV of one session.
constexpr std::chrono::seconds kTrunkDeadline{30};
/// The backend answers by then, whatever happens; a little later we stop waiting.
constexpr std::chrono::seconds kTrunkPatience{35};
/// For all sessions at the end of the server.
constexpr std::chrono::seconds kFarewellDeadline{20};
/// Longest document that is read back.
constexpr std::uint64_t kMaxDocumentBytes = 256ULL << 20;

using TrunkCall = std::function<void(TrunkDone)>;

struct TrunkWait {
  explicit TrunkWait(const net::any_io_executor& executor) : timer(executor) {}
  net::steady_timer timer;
  std::optional<Result<KeptTrunk>> result;
};

/// Starts a call of the backend's and waits for its end.
net::awaitable<Result<KeptTrunk>> await_trunk(ServerContext* context, TrunkCall start) {
  const auto executor = co_await net::this_coro::executor;
  const auto wait = std::make_shared<TrunkWait>(executor);
  wait->timer.expires_after(kTrunkPatience);
  start([wait, post = context->sessions.post()](Result<KeptTrunk> result) {
    post([wait, result = std::move(result)] {
      wait->result = result;
      wait->timer.cancel();
    });
  });
  co_await wait->timer.async_wait(net::as_tuple(net::use_awaitable));
  if (auto& result = wait->result) co_return std::move(*result);
  co_return make_error(Errc::kDeadlineExceeded, "the pool did not answer");
}

net::awaitable<Result<void>> write_on_pool(std::shared_ptr<const SessionFiles> files,
                                           std::string path, SessionDocument document) {
  co_return files->write(path, write_session_document(document));
}

net::awaitable<void> swap_in_on_pool(ModelAdmin* admin, std::string model) {
  static_cast<void>(admin->load_model(model));
  co_return;
}

// Plain functions, not lines of the coroutines: GCC 12 copies aggregates that are made of
// temporaries in a coroutine byte by byte.
TrunkCall save_call(ServerContext* context, const StoredSession& session, const std::string& path) {
  SaveTrunk trunk{path, SessionService::owner_of(session), session.state->tokens, kTrunkDeadline};
  return [backend = context->backend, trunk = std::move(trunk)](TrunkDone done) {
    backend->save(trunk, std::move(done));
  };
}

TrunkCall load_call(ServerContext* context, const StoredSession& session, const std::string& path) {
  LoadTrunk trunk{path, SessionService::pin_of(session.id), SessionService::owner_of(session),
                  std::chrono::seconds(0), kTrunkDeadline};
  return [backend = context->backend, trunk = std::move(trunk)](TrunkDone done) {
    backend->load(trunk, std::move(done));
  };
}

SessionDocument document_of(ServerContext* context, const StoredSession& session) {
  const auto model = context->models->find(session.served);
  return {session, context->sessions.store().expires_at(session),
          model == nullptr ? "" : context->system_fingerprint(*model)};
}

/// KV that was written a moment ago, by what it is of: sessions that were forked and did not go on
/// have the same.
struct WrittenKv {
  struct File {
    std::string path;
    SavedSession saved;
  };
  std::map<std::string, File> files;

  static std::string name_of(const StoredSession& session) {
    return hash_bytes(std::as_bytes(std::span(session.state->tokens))).to_hex() + session.served +
           '/' + session.tenant + '/' + session.cache_salt;
  }
  const File* find(const std::string& name) const {
    const auto found = files.find(name);
    return found == files.end() ? nullptr : &found->second;
  }
};

/// Both files of one session; `written` is what it may share. REQUIRES: the session is there.
net::awaitable<Result<SavedSession>> save_as(ServerContext* context, std::string id,
                                             std::string document_path, std::string kv_path,
                                             WrittenKv* written_kv) {
  SessionService& sessions = context->sessions;
  const StoredSession* session = sessions.store().by_id(id);
  if (session == nullptr) co_return make_error(Errc::kNotFound, "the session is gone");
  SessionDocument document = document_of(context, *session);
  SavedSession saved;
  const std::string kv_name = WrittenKv::name_of(*session);
  const WrittenKv::File* same = written_kv->find(kv_name);
  if (same != nullptr && SessionFiles::share_kv(same->path, kv_path)) {
    saved = same->saved;
  } else if (session->state->tokens.size() >= kBlockSize) {
    TrunkCall start = save_call(context, *session, kv_path);
    const auto written = co_await await_trunk(context, std::move(start));
    if (written) {
      saved.kv_tokens = written->num_tokens;
      saved.kv_bytes = written->bytes;
      written_kv->files[kv_name] = {kv_path, saved};
    } else {
      saved.kv_error = written.error().message;
    }
  }
  const auto files = sessions.files();
  const auto written = co_await net::co_spawn(
      context->file_pool, write_on_pool(files, document_path, std::move(document)),
      net::use_awaitable);
  if (!written) co_return written.error();
  co_return saved;
}

net::awaitable<Result<SavedSession>> save_beside(ServerContext* context, std::string id,
                                                 WrittenKv* written) {
  const auto files = context->sessions.files();
  // What lies there and was not loaded yet is as good as what would be written.
  co_await load_spilled(context, id);
  auto saved = co_await save_as(context, id, files->document_path(id), files->kv_path(id), written);
  // It may have been deleted meanwhile, and its files before they were written.
  if (context->sessions.store().by_id(id) == nullptr) files->remove(id);
  co_return saved;
}

}  // namespace

std::string document_text(ServerContext* context, const StoredSession& session) {
  return write_session_document(document_of(context, session));
}

LimitsOf document_limits(const ServerContext* context) {
  return [context](const std::string& weights, const std::string& name) {
    const ServedModelPtr model = context->model_of(weights, name);
    return DocumentLimits{model->codec->vocab_size(), model->max_model_len};
  };
}

void settle_model(const ServerContext* context, StoredSession& session) {
  const ServedModelPtr model = context->model_of(session.weights, session.model);
  if (!model->is_called(session.model)) session.model = model->name();
  session.served = model->name();
  session.weights = model->weights;
}

net::awaitable<Result<SavedSession>> save_session(ServerContext* context, std::string id) {
  WrittenKv nothing;
  co_return co_await save_beside(context, id, &nothing);
}

net::awaitable<Result<SavedSession>> export_session(ServerContext* context, std::string id,
                                                    std::string name) {
  const auto files = context->sessions.files();
  const std::string document_path = files->export_document_path(name);
  const std::string kv_path = files->export_kv_path(name);
  for (const std::string& path : {document_path, kv_path, kv_path + ".meta"}) {
    if (SessionFiles::exists(path)) {
      co_return make_error(Errc::kInvalidArgument,
                           "`file` is `" + name + "`, which is there already; take another name");
    }
  }
  co_await load_spilled(context, id);
  WrittenKv nothing;
  co_return co_await save_as(context, id, document_path, kv_path, &nothing);
}

net::awaitable<std::string> load_kv(ServerContext* context, std::string id, std::string path) {
  SessionService& sessions = context->sessions;
  const StoredSession* session = sessions.store().by_id(id);
  if (session == nullptr) co_return "the session is gone";
  if (!SessionFiles::is_file(path) || !SessionFiles::is_file(path + ".meta"))
    co_return "there is no KV beside the document";
  const SharedState state = session->state;
  const TrunkCall start = load_call(context, *session, path);
  const std::string model = session->served;
  auto loaded = co_await await_trunk(context, start);
  if (!loaded && loaded.error().code == Errc::kUnavailable && context->options.admin != nullptr &&
      !context->draining) {
    // Another model has the slot. The turn that follows wants this one too.
    co_await net::co_spawn(context->admin_pool, swap_in_on_pool(context->options.admin, model),
                           net::use_awaitable);
    loaded = co_await await_trunk(context, start);
  }
  if (!loaded) {
    logger("http")->warn("event=session_kv_not_loaded session={} error=\"{}\"", id,
                         loaded.error().message);
    co_return loaded.error().message;
  }
  sessions.on_loaded(id, *loaded);
  co_return "";
}

net::awaitable<void> load_spilled(ServerContext* context, std::string id) {
  if (!context->sessions.take_spilled(id)) co_return;
  const std::string path = context->sessions.files()->kv_path(id);
  co_await load_kv(context, id, path);
}
net::awaitable<void> save_all_sessions(ServerContext* context) {
  SessionStore& store = context->sessions.store();
  store.expire();
  std::vector<std::string> ids;
  for (const StoredSession* session : store.all())
    ids.push_back(session->id);
  const auto deadline = context->clock.now() + kFarewellDeadline;
  std::size_t saved = 0;
  WrittenKv written;
  for (const std::string& id : ids) {
    if (context->clock.now() >= deadline) break;
    const auto done = co_await save_beside(context, id, &written);
    if (done)
      ++saved;
    else
      logger("http")->error("event=session_not_saved session={} error=\"{}\"", id,
                            done.error().message);
  }
  logger("http")->info("event=sessions_saved saved={} of={}", saved, ids.size());
}

void load_all_sessions(ServerContext* context) {
  SessionService& sessions = context->sessions;
  const auto& files = sessions.files();
  const auto log = logger("http");
  const auto ids = files->list();
  if (!ids) return log->error("event=sessions_not_loaded error=\"{}\"", ids.error().message);
  std::size_t loaded = 0;
  for (const std::string& id : *ids) {
    const auto text = files->read(files->document_path(id), kMaxDocumentBytes);
    const auto refuse = [&](const std::string& why) {
      log->warn("event=session_not_loaded session={} error=\"{}\"", id, why);
    };
    if (!text) {
      refuse(text.error().message);
      continue;
    }
    auto read = read_session_document(*text, document_limits(context));
    if (const auto* error = std::get_if<ApiError>(&read)) {
      refuse(error->message);
      continue;
    }
    auto& document = std::get<SessionDocument>(read);
    if (document.session.id != id) {
      refuse("the file holds session " + document.session.id);
      continue;
    }
    if (document.expires_at <= unix_seconds()) {
      files->remove(id);
      continue;
    }
    settle_model(context, document.session);
    document.session.ttl = std::min(document.session.ttl, sessions.store().limits().max_ttl);
    const auto adopted = sessions.store().adopt(std::move(document.session));
    if (!adopted) {
      refuse(adopted.error().message);
      continue;
    }
    if (SessionFiles::is_file(files->kv_path(id))) sessions.set_spilled(id);
    ++loaded;
  }
  if (!ids->empty()) log->info("event=sessions_loaded loaded={} of={}", loaded, ids->size());
}

}  // namespace thaw::coalescer

#include "coalescer/http/server.h"

#include <sys/socket.h>

#include <cerrno>
#include <exception>
#include <mutex>
#include <unordered_map>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "coalescer/core/unix_time.h"
#include "coalescer/http/server_context.h"
#include "coalescer/http/session.h"
#include "coalescer/http/session_spill.h"
#include "engine/base/log.h"

namespace thaw::coalescer {
namespace {

namespace net = boost::asio;
using net::ip::tcp;

/// How often deadlines of connections are looked at.
constexpr std::chrono::milliseconds kTick{100};
/// How often what is kept for a time is looked at.
constexpr std::chrono::seconds kExpiry{1};
/// For the last answers to leave after the drain deadline.
constexpr std::chrono::milliseconds kFarewell{1000};
constexpr std::chrono::milliseconds kAcceptBackOff{100};

Result<void> check_options(const ServerOptions& options) {
  const auto wrong = [](std::string message) {
    return make_error(Errc::kInvalidArgument, std::move(message));
  };
  if (options.num_text_threads == 0) return wrong("num_text_threads is 0; it must be at least 1");
  for (const ApiKey& key : options.api_keys)
    if (key.key.empty()) return wrong("an API key is empty");
  return {};
}

Result<tcp::acceptor> listen(net::io_context& io, const ServerOptions& options) {
  const std::string where = options.host + ":" + std::to_string(options.port);
  boost::system::error_code error;
  tcp::resolver resolver(io);
  const auto found =
      resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
  if (error || found.empty()) {
    return make_error(
        Errc::kInvalidArgument,
        "host `" + options.host + "` is not an address to listen on: " + error.message());
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  tcp::acceptor acceptor(io);
  static_cast<void>(acceptor.open(endpoint.protocol(), error));
  if (!error) static_cast<void>(acceptor.set_option(tcp::acceptor::reuse_address(true), error));
  if (!error) static_cast<void>(acceptor.bind(endpoint, error));
  if (!error) static_cast<void>(acceptor.listen(net::socket_base::max_listen_connections, error));
  if (error) {
    return make_error(Errc::kIo, "cannot listen on " + where + ": " + error.message() +
                                     "; choose another host or port");
  }
  return acceptor;
}

/// Events on their way from the backend's thread to the I/O thread.
struct Inbox {
  std::mutex mutex;
  std::vector<GenerateEvent> events;  // guarded by mutex
  std::function<void()> notify;  // guarded by mutex; empty once the server is gone
  std::function<void(std::function<void()>)> post;  // the same
};

void run_on_io(Inbox& inbox, std::function<void()> task) {
  const std::scoped_lock lock(inbox.mutex);
  if (inbox.post) inbox.post(std::move(task));
}

void put(Inbox& inbox, GenerateEvent event) {
  const std::scoped_lock lock(inbox.mutex);
  if (!inbox.notify) return;
  inbox.events.push_back(std::move(event));
  if (inbox.events.size() == 1) inbox.notify();
}

}  // namespace

// Destroyed from the last member to the first: the suspended coroutines die with `io` and still see
// the context.
struct Server::Impl {
  Impl(ServerOptions options, Backend* backend, std::shared_ptr<const ServedModels> models)
      : context(std::move(options), backend, std::move(models)),
        acceptor(io),
        tick_timer(io),
        window_timer(io),
        drain_timer(io) {
    context.schedule_flush = [this] { schedule_flush(); };
  }
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void connect_backend();
  void take_events();
  void schedule_flush();
  void admit(Session::Socket socket);
  void start_session(Session::Socket socket);
  void end_session(Session* session, const std::exception_ptr& exception);
  void refuse_connection(Session::Socket socket);
  net::awaitable<void> accept_loop();
  void tick();
  void begin_drain(std::chrono::milliseconds timeout);
  void on_drain_deadline(std::chrono::milliseconds timeout);
  /// Writes the sessions where there is a directory for them, and stops.
  void finish();

  ServerContext context;
  net::io_context io{1};
  tcp::acceptor acceptor;
  net::steady_timer tick_timer;
  net::steady_timer window_timer;
  net::steady_timer drain_timer;
  std::unordered_map<Session*, std::weak_ptr<Session>> sessions;
  bool ticking = false;
  Clock::TimePoint next_expiry = Clock::TimePoint::min();
  bool flush_posted = false;
  bool past_drain_deadline = false;
  bool finishing = false;
  std::uint16_t port = 0;
  std::shared_ptr<Inbox> inbox = std::make_shared<Inbox>();
};

Server::Impl::~Impl() {
  {
    const std::scoped_lock lock(inbox->mutex);
    inbox->notify = nullptr;
    inbox->post = nullptr;
  }
  context.text_pool.join();  // its tasks end by posting to `io`
  context.file_pool.join();
  context.admin_pool.join();
  context.dispatcher.drop_receivers();
  context.responses.drop_runs();
}

void Server::Impl::connect_backend() {
  {
    const std::scoped_lock lock(inbox->mutex);
    inbox->notify = [this] { net::post(io, [this] { take_events(); }); };
    inbox->post = [this](std::function<void()> task) { net::post(io, std::move(task)); };
  }
  context.sessions.set_post(
      [inbox = inbox](std::function<void()> task) { run_on_io(*inbox, std::move(task)); });
  context.cache_pins.set_post(
      [inbox = inbox](std::function<void()> task) { run_on_io(*inbox, std::move(task)); });
  context.backend->set_event_sink(
      [inbox = inbox](GenerateEvent event) { put(*inbox, std::move(event)); });
}

void Server::Impl::take_events() {
  std::vector<GenerateEvent> events;
  {
    const std::scoped_lock lock(inbox->mutex);
    events.swap(inbox->events);
  }
  context.dispatcher.deliver(events);
}

void Server::Impl::schedule_flush() {
  const auto deadline = context.dispatcher.deadline();
  if (!deadline || flush_posted) return;
  if (*deadline <= context.clock.now() && !context.dispatcher.put_off()) {
    // Posted rather than called: requests that were read in the same turn join the window.
    flush_posted = true;
    net::post(io, [this] {
      flush_posted = false;
      context.dispatcher.flush();
    });
    return;
  }
  window_timer.expires_at(context.dispatcher.deadline().value_or(*deadline));  // it may be put off
  window_timer.async_wait([this](boost::system::error_code error) {
    if (!error) schedule_flush();
  });
}

void Server::Impl::admit(Session::Socket socket) {
  if (sessions.size() >= context.options.max_connections)
    refuse_connection(std::move(socket));
  else
    start_session(std::move(socket));
}

void Server::Impl::start_session(Session::Socket socket) {
  auto session = std::make_shared<Session>(std::move(socket), &context);
  sessions.emplace(session.get(), session);
  net::co_spawn(io, session->serve(), [this, session](const std::exception_ptr& exception) {
    end_session(session.get(), exception);
  });
  if (!ticking) {
    ticking = true;
    tick();
  }
}

void Server::Impl::end_session(Session* session, const std::exception_ptr& exception) {
  try {
    if (exception) std::rethrow_exception(exception);
  } catch (const std::exception& error) {
    logger("http")->error("event=session_failed error=\"{}\"", error.what());
  }
  session->close();
  sessions.erase(session);
  if (context.draining && sessions.empty()) finish();
}

void Server::Impl::refuse_connection(Session::Socket socket) {
  ApiError error = to_api_error(
      make_error(Errc::kUnavailable, "too many connections are open; try again later"));
  ReplyMode mode;
  mode.keep_alive = false;
  mode.request_id = context.next_response_id("req");
  const std::string bytes = reply_bytes(error_reply(error), mode);
  // One try: a fresh socket takes this much, and nothing may wait here.
  ::send(socket.native_handle(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

net::awaitable<void> Server::Impl::accept_loop() {
  net::steady_timer back_off(io);
  while (acceptor.is_open()) {
    auto [error, socket] = co_await acceptor.async_accept(net::as_tuple(net::use_awaitable));
    if (error == net::error::operation_aborted) break;
    if (error) {  // no descriptors left, or the client is gone already
      back_off.expires_after(kAcceptBackOff);
      co_await back_off.async_wait(net::as_tuple(net::use_awaitable));
      continue;
    }
    static_cast<void>(socket.set_option(tcp::no_delay(true), error));
    admit(std::move(socket));
  }
}

void Server::Impl::tick() {
  if (sessions.empty()) {
    ticking = false;
    return;
  }
  const auto now = context.clock.now();
  for (const auto& [raw, weak] : sessions)
    if (const auto session = weak.lock()) session->tick(now);
  if (now >= next_expiry) {
    next_expiry = now + kExpiry;
    context.expire();
  }
  tick_timer.expires_after(kTick);
  tick_timer.async_wait([this](boost::system::error_code error) {
    if (!error) tick();
  });
}

void Server::Impl::begin_drain(std::chrono::milliseconds timeout) {
  if (!context.draining) {
    logger("http")->info("event=draining connections={} requests={} timeout_ms={}", sessions.size(),
                         context.dispatcher.num_in_flight(), timeout.count());
    context.draining = true;
    boost::system::error_code ignored;
    static_cast<void>(acceptor.close(ignored));
    for (const auto& [raw, weak] : sessions)
      if (const auto session = weak.lock()) session->close_if_idle();
  }
  if (sessions.empty()) return finish();
  if (past_drain_deadline) return;
  drain_timer.expires_after(timeout);
  drain_timer.async_wait([this, timeout](boost::system::error_code error) {
    if (!error) on_drain_deadline(timeout);
  });
}

void Server::Impl::on_drain_deadline(std::chrono::milliseconds timeout) {
  if (past_drain_deadline) return finish();
  past_drain_deadline = true;
  const auto cut_requests = context.dispatcher.num_in_flight();
  // To cut at once is what the caller wanted: no news, nor is a connection that took its time.
  const bool is_news = cut_requests > 0 && timeout.count() > 0;
  logger("http")->log(is_news ? spdlog::level::warn : spdlog::level::info,
                      "event=drain_deadline cut={}", cut_requests);
  const ApiError cut = to_api_error(
      make_error(Errc::kUnavailable, "the server shut down before the answer was complete"));
  for (const auto& [raw, weak] : sessions)
    if (const auto session = weak.lock()) session->cut(cut);
  context.responses.fail_runs(cut);
  drain_timer.expires_after(kFarewell);
  drain_timer.async_wait([this](boost::system::error_code error) {
    if (!error) finish();
  });
}

void Server::Impl::finish() {
  if (context.sessions.files() == nullptr) return io.stop();
  if (std::exchange(finishing, true)) return;
  net::co_spawn(io, save_all_sessions(&context), [this](const std::exception_ptr& exception) {
    if (exception) logger("http")->error("event=save_all_sessions_failed");
    io.stop();
  });
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::create(ServerOptions options, Backend* backend,
                                               std::shared_ptr<const TextCodec> codec) {
  auto models = std::make_shared<ServedModels>();
  if (auto added = models->add({.names = options.served_model_names,
                                .max_model_len = options.max_model_len,
                                .description = options.model,
                                .codec = std::move(codec),
                                .weights = "",
                                .path = "",
                                .created = unix_seconds()});
      !added)
    return std::move(added).error();
  return create(std::move(options), backend, std::shared_ptr<const ServedModels>(models));
}

Result<std::unique_ptr<Server>> Server::create(ServerOptions options, Backend* backend,
                                               std::shared_ptr<const ServedModels> models) {
  if (auto checked = check_options(options); !checked) return std::move(checked).error();
  const ServedModelPtr first = models->find("");
  if (first == nullptr)
    return make_error(Errc::kInvalidArgument, "no model is served; at least one is needed");
  options.served_model_names = first->names;
  options.max_model_len = first->max_model_len;
  auto impl = std::make_unique<Impl>(std::move(options), backend, std::move(models));
  if (const std::string& directory = impl->context.options.session_dir; !directory.empty()) {
    auto files = SessionFiles::open(directory);
    if (!files) return std::move(files).error();
    impl->context.sessions.set_files(std::make_shared<const SessionFiles>(std::move(*files)));
    load_all_sessions(&impl->context);
  }
  if (impl->context.options.listens) {
    auto acceptor = listen(impl->io, impl->context.options);
    if (!acceptor) return std::move(acceptor).error();
    impl->acceptor = std::move(*acceptor);
    impl->port = impl->acceptor.local_endpoint().port();
  }
  impl->connect_backend();
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

std::uint16_t Server::port() const {
  return impl_->port;
}

Result<UniqueFd> Server::connect() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    return io_error("socketpair", errno);
  UniqueFd theirs(ends[0]);
  // The handler owns our end: one that never runs closes it.
  net::post(impl_->io, [impl = impl_.get(), ours = UniqueFd(ends[1])]() mutable {
    Session::Socket socket(impl->io);
    boost::system::error_code error;
    static_cast<void>(socket.assign(net::generic::stream_protocol(AF_UNIX, 0), ours.get(), error));
    if (error) return;
    ours.release();
    impl->admit(std::move(socket));
  });
  return theirs;
}

void Server::run() {
  if (impl_->context.options.listens)
    logger("http")->info("event=listening host={} port={}", impl_->context.options.host, port());
  net::co_spawn(impl_->io, impl_->accept_loop(), [](const std::exception_ptr& exception) {
    if (exception) logger("http")->critical("event=accept_loop_failed");
  });
  const auto keep_running = net::make_work_guard(impl_->io);
  impl_->io.run();
  logger("http")->info("event=stopped");
}

void Server::stop(std::chrono::milliseconds drain_timeout) {
  net::post(impl_->io, [impl = impl_.get(), drain_timeout] { impl->begin_drain(drain_timeout); });
}

}  // namespace thaw::coalescer

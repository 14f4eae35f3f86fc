#include "coalescer/http/session.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "engine/base/log.h"

namespace thaw::coalescer {
namespace {

namespace net = boost::asio;

/// Heads are read in small pieces, since every idle connection keeps room for one.
constexpr std::size_t kHeadReadBytes = 4U << 10;
constexpr std::size_t kBodyReadBytes = 64U << 10;
/// Slowest body that is accepted; its deadline follows from its length.
constexpr std::uint64_t kSlowestBodyBytesPerSecond = 64U << 10;
/// How long a refused client may still send before its connection is cut.
constexpr std::chrono::seconds kLingerTimeout{5};

/// Whatever lies unread in front of the hang-up.
bool has_hung_up(int socket) {
  pollfd state{socket, POLLRDHUP, 0};
  return ::poll(&state, 1, 0) > 0;
}

}  // namespace

Session::Session(Socket socket, ServerContext* context)
    : socket_(std::move(socket)), context_(context) {
  ++context_->metrics.connections;
  ++context_->metrics.connections_total;
}

net::awaitable<void> Session::serve() {
  const auto self = shared_from_this();
  while (!closed_) {
    auto request = co_await read_request();
    if (!request) break;
    phase_ = Phase::kAnswering;
    bool open = false;
    if (request->refusal)
      open = co_await reply(*request, std::move(*request->refusal));
    else
      open = co_await answer(std::move(*request));
    if (!open) break;
  }
  close();
}

net::awaitable<std::optional<Session::Request>> Session::read_request() {
  RequestLimits limits;
  limits.max_body_bytes = context_->options.max_body_bytes;
  RequestReader reader(limits);
  phase_ = buffer_.empty() ? Phase::kIdle : Phase::kReading;
  set_deadline(phase_ == Phase::kIdle ? context_->options.idle_timeout
                                      : context_->options.header_timeout);
  if (context_->draining && phase_ == Phase::kIdle) co_return std::nullopt;
  if (buffer_.empty()) buffer_.shrink_to_fit();  // an idle connection keeps little
  while (reader.feed(buffer_) == RequestReader::State::kHead) {
    if (!co_await read_some(kHeadReadBytes)) {
      if (expired_ && phase_ == Phase::kReading) {
        ApiError slow = invalid_field("", "the request's headers took too long");
        slow.status = 408;
        const ReplyMode mode = mode_for(reader.head());
        co_await refuse(error_reply(slow), mode);
      }
      co_return std::nullopt;
    }
    if (phase_ == Phase::kIdle) {
      phase_ = Phase::kReading;
      set_deadline(context_->options.header_timeout);
    }
  }
  const ReplyMode mode = mode_for(reader.head());
  if (reader.state() == RequestReader::State::kFailed) {
    co_await refuse(error_reply(reader.error()), mode);
    co_return std::nullopt;
  }
  Request request;
  request.head = reader.head();
  request.received = context_->clock.now();
  check_head(request);
  if (request.refusal && request.head.has_body) {
    co_await refuse(std::move(*request.refusal), mode);
    co_return std::nullopt;
  }
  if (request.head.has_body) {
    request.body_lease = std::make_unique<BodyLease>(context_);
    if (!co_await read_body(&reader, request.body_lease.get(), mode)) co_return std::nullopt;
  }
  request.body = reader.take_body();
  request.received = context_->clock.now();
  clear_deadline();
  co_return request;
}

net::awaitable<bool> Session::read_body(RequestReader* reader, BodyLease* lease, ReplyMode mode) {
  if (!reader->head().expect.empty() && buffer_.empty() && !mode.http_1_0) {
    if (!co_await write("HTTP/1.1 100 Continue\r\n\r\n")) co_return false;
  }
  const std::uint64_t expected =
      reader->head().content_length.value_or(context_->options.max_body_bytes);
  set_deadline(context_->options.header_timeout +
               std::chrono::seconds(expected / kSlowestBodyBytesPerSecond));
  while (reader->feed(buffer_) == RequestReader::State::kBody) {
    if (!lease->grow_to(reader->body_size())) {
      co_await refuse(
          error_reply(to_api_error(make_error(
              Errc::kUnavailable, "too many large bodies are being received; try again later"))),
          mode);
      co_return false;
    }
    if (co_await read_some(kBodyReadBytes)) continue;
    if (expired_) {
      ApiError slow = invalid_field("", "the request's body took too long");
      slow.status = 408;
      co_await refuse(error_reply(slow), mode);
    }
    co_return false;
  }
  if (reader->state() == RequestReader::State::kFailed) {
    co_await refuse(error_reply(reader->error()), mode);
    co_return false;
  }
  co_return true;
}

void Session::check_head(Request& request) {
  const RequestHead& head = request.head;
  const auto refuse_with = [&](int status, std::string message) {
    ApiError error = invalid_field("", std::move(message));
    error.status = status;
    request.refusal = error_reply(error);
  };
  // Pages may not ask what their users' browsers can reach, unless they are allowed to. Where keys
  // are needed, those who have one may.
  const bool page_may = head.origin.empty() || context_->origins.allows(head.origin);
  if (!page_may && context_->options.api_keys.empty()) {
    request.route.label = "origin";
    refuse_with(403, "the page `" + head.origin.substr(0, 100) +
                         "` may not use this server; --allow-origin allows it");
    return;
  }
  if (page_may && Origins::is_preflight(head)) {
    request.route.label = "preflight";
    request.refusal = Origins::preflight(head);
    return;
  }
  auto route = find_route(head.method, head.path);
  if (auto* refusal = std::get_if<HttpReply>(&route)) {
    request.route.label = "unknown";
    request.refusal = std::move(*refusal);
    return;
  }
  request.route = std::move(std::get<Route>(route));
  if (request.route.needs_key) {
    auto tenant = context_->keys.tenant_of(head.authorization, head.api_key);
    if (!tenant) {
      request.refusal = error_reply(to_api_error(make_error(
          Errc::kUnauthenticated, head.authorization.empty() && head.api_key.empty()
                                      ? "an API key is needed: send `Authorization: Bearer KEY` or "
                                        "`x-api-key: KEY`"
                                      : "the API key is not known")));
      return;
    }
    request.tenant = std::move(*tenant);
  }
  if (!head.content_encoding.empty() && head.content_encoding != "identity") {
    refuse_with(415, "the body's encoding `" + head.content_encoding.substr(0, 40) +
                         "` is not supported; send it as it is");
  } else if (!head.expect.empty() && head.expect != "100-continue") {
    refuse_with(417, "only `Expect: 100-continue` is supported");
  }
}

net::awaitable<bool> Session::read_some(std::size_t most) {
  const std::size_t old_size = buffer_.size();
  buffer_.resize(old_size + most);
  expired_ = false;
  const auto [error, count] = co_await socket_.async_read_some(
      net::buffer(buffer_.data() + old_size, most), net::as_tuple(net::use_awaitable));
  buffer_.resize(old_size + (error ? 0 : count));
  co_return !error;
}

net::awaitable<bool> Session::write(std::string bytes) {
  std::size_t written = 0;
  while (written < bytes.size()) {
    // A new deadline for each piece: a slow client is served, one that reads nothing is not.
    set_deadline(context_->options.write_timeout);
    const auto [error, count] = co_await socket_.async_write_some(
        net::buffer(bytes.data() + written, bytes.size() - written),
        net::as_tuple(net::use_awaitable));
    if (error) co_return false;
    written += count;
  }
  clear_deadline();
  co_return true;
}

net::awaitable<void> Session::refuse(HttpReply reply, ReplyMode mode) {
  mode.keep_alive = false;
  Request unread;
  unread.received = context_->clock.now();
  unread.route.label = "refused";
  count(unread, reply.status);
  phase_ = Phase::kAnswering;
  if (co_await write(reply_bytes(reply, mode))) co_await linger();
}

net::awaitable<void> Session::linger() {
  // Closing with unread bytes would reset the connection, and the client might lose the answer.
  boost::system::error_code ignored;
  static_cast<void>(socket_.shutdown(Socket::shutdown_send, ignored));
  set_deadline(kLingerTimeout);
  std::string sink(kBodyReadBytes, '\0');
  for (;;) {
    const auto [error, count] =
        co_await socket_.async_read_some(net::buffer(sink), net::as_tuple(net::use_awaitable));
    if (error || count == 0) co_return;
  }
}

net::awaitable<bool> Session::reply(const Request& request, HttpReply reply) {
  count(request, reply.status);
  const ReplyMode mode = mode_for(request.head);
  const bool written = co_await write(reply_bytes(reply, mode));
  co_return written&& mode.keep_alive;
}

ReplyMode Session::mode_for(const RequestHead& head) const {
  ReplyMode mode;
  mode.keep_alive = head.keep_alive && !context_->draining;
  mode.http_1_0 = head.http_1_0;
  mode.head_only = head.method == "HEAD";
  mode.dialect = dialect_of(head.path, head.has_anthropic_version);
  mode.request_id = context_->next_response_id("req");
  if (!head.origin.empty() && context_->origins.allows(head.origin)) mode.origin = head.origin;
  return mode;
}

void Session::count(const Request& request, int status) {
  const auto took = context_->clock.now() - request.received;
  ++context_->metrics.requests[{request.route.label, status}];
  context_->metrics.request_duration.observe(took);
  static const auto log = logger("http");
  log->debug("event=request endpoint={} status={} micros={}", request.route.label, status,
             std::chrono::duration_cast<std::chrono::microseconds>(took).count());
}

void Session::set_deadline(std::chrono::milliseconds from_now) {
  deadline_ = context_->clock.now() + from_now;
}

void Session::clear_deadline() {
  deadline_ = Clock::TimePoint::max();
}

void Session::tick(Clock::TimePoint now) {
  if (now >= deadline_) {
    clear_deadline();
    expired_ = true;
    boost::system::error_code ignored;
    static_cast<void>(socket_.cancel(ignored));
  }
  if (blind_ && call_ != nullptr && has_hung_up(socket_.native_handle())) call_->hang_up();
  if (followed_ != nullptr && has_hung_up(socket_.native_handle()))
    std::exchange(followed_, nullptr)->wake();
}

void Session::watch_client(const std::shared_ptr<LiveCall>& call) {
  auto handler = [self = shared_from_this(), call](boost::system::error_code error) {
    if (error || self->call_ != call) return;
    char byte = 0;
    const ssize_t count = ::recv(self->socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR))
      call->hang_up();
    else
      self->blind_ = true;
  };
  blind_ = false;
  socket_.async_wait(Socket::wait_read, std::move(handler));
}

void Session::close_if_idle() {
  if (phase_ == Phase::kIdle) close();
}

void Session::cut(const ApiError& error) {
  if (call_ != nullptr) call_->fail(error);
}

void Session::close() {
  if (closed_) return;
  closed_ = true;
  --context_->metrics.connections;
  boost::system::error_code ignored;
  static_cast<void>(socket_.close(ignored));
}

}  // namespace thaw::coalescer

#include "cli/embedded_host.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <future>
#include <mutex>
#include <thread>
#include <utility>

#include "cli/serve_host.h"
#include "cli/serve_options.h"
#include "engine/base/log.h"

namespace thaw::cli {
namespace {

using std::chrono::milliseconds;

constexpr int kFirstOwnFd = 3;
constexpr milliseconds kConnectDeadline{10000};

/// What the process asks of the host's thread. One message is one ask, and has one answer.
struct Ask {
  enum class Kind : std::uint32_t { kConnect, kStop };
  Kind kind = Kind::kConnect;
  std::uint32_t number = 0;
  std::int64_t drain_ms = 0;
};

/// Whether there was a connection to give; its descriptor comes with it.
struct Answer {
  std::uint32_t number = 0;  ///< the ask's
  std::uint32_t connected = 0;
};

/// Gives the calling thread, and those that it starts, a descriptor table that holds stdin, stdout,
/// stderr and `keep`. close_range() does it where unshare() is forbidden, as in containers.
Result<void> leave_descriptor_table(int keep) {
  const auto close_all = [](unsigned first, unsigned last, unsigned flags) {
    return first > last || ::syscall(SYS_close_range, first, last, flags) == 0;
  };
  if (!close_all(static_cast<unsigned>(keep) + 1, ~0U, CLOSE_RANGE_UNSHARE) ||
      !close_all(kFirstOwnFd, static_cast<unsigned>(keep) - 1, 0))
    return io_error("a descriptor table of its own (Linux 5.9 can)", errno);
  return {};
}

bool send_answer(int socket, std::uint32_t number, const UniqueFd& fd) {
  Answer answer{number, fd ? 1U : 0U};
  iovec part{&answer, sizeof answer};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    const int number = fd.get();
    std::memcpy(CMSG_DATA(header), &number, sizeof number);
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof answer);
}

struct Connection {
  Answer answer;
  UniqueFd fd;
};

/// The next answer; kDeadlineExceeded where none comes until `end`.
Result<Connection> receive_one(int socket, std::chrono::steady_clock::time_point end) {
  Connection received;
  Answer& answer = received.answer;
  iovec part{&answer, sizeof answer};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  pollfd readable{socket, POLLIN, 0};
  int ready = 0;
  do {  // the process's signals have handlers of its own
    const auto left =
        std::chrono::ceil<milliseconds>(end - std::chrono::steady_clock::now()).count();
    ready = ::poll(&readable, 1, std::max(0, static_cast<int>(left)));
  } while (ready < 0 && errno == EINTR);
  if (ready == 0)
    return make_error(Errc::kDeadlineExceeded, "the engine gave no connection in time");
  ssize_t count = -1;
  if (ready > 0) {
    do
      count = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (count < 0 && errno == EINTR);
  }
  if (count < 0) return io_error("asking the engine for a connection", errno);
  if (const cmsghdr* header = CMSG_FIRSTHDR(&message);
      header != nullptr && header->cmsg_type == SCM_RIGHTS) {
    int number = -1;
    std::memcpy(&number, CMSG_DATA(header), sizeof number);
    received.fd = UniqueFd(number);
  }
  if (count != static_cast<ssize_t>(sizeof answer))
    return make_error(Errc::kUnavailable, "the engine has ended");
  return received;
}

/// The answer to that ask. Those to earlier ones, which nobody waited for any longer, are dropped.
Result<UniqueFd> receive_answer(int socket, std::uint32_t number) {
  const auto end = std::chrono::steady_clock::now() + kConnectDeadline;
  while (true) {
    auto received = receive_one(socket, end);
    if (!received) return std::move(received).error();
    if (received->answer.number != number) continue;
    if (received->answer.connected == 0 || !received->fd)
      return make_error(Errc::kUnavailable, "the engine has ended");
    return std::move(received->fd);
  }
}

/// Answers the process until it asks to stop, or is gone.
void answer_asks(ServeHost& host, int control) {
  for (;;) {
    Ask ask;
    const ssize_t count = ::recv(control, &ask, sizeof ask, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count != static_cast<ssize_t>(sizeof ask)) return host.stop(milliseconds{0});
    if (ask.kind == Ask::Kind::kStop) return host.stop(milliseconds{ask.drain_ms});
    auto connection = host.connect();
    if (!connection)
      logger("serve")->error("event=connect error=\"{}\"", connection.error().message);
    const UniqueFd none;
    send_answer(control, ask.number, connection ? *connection : none);
  }
}

using Started = Result<std::string>;

/// All of the host's life, on its own thread.
void live(ServeSettings settings, const ModelPaths& paths, ServeHostOptions options,
          int control_number, std::promise<Started> started) {
  if (auto left = leave_descriptor_table(control_number); !left)
    return started.set_value(left.error());
  const UniqueFd control(control_number);  // of this table: the process closes its own
  const auto deadline = seconds_to<milliseconds>(settings.boot_timeout_s);
  auto host = ServeHost::start(std::move(settings), paths, std::move(options));
  if (!host) return started.set_value(host.error());
  std::thread serving([&host] { (*host)->run(); });
  if (auto ready = (*host)->wait_ready(deadline); ready) {
    started.set_value((*host)->model_names().front());
    answer_asks(**host, control.get());
  } else {
    (*host)->stop(milliseconds{0});
    started.set_value(ready.error());
  }
  serving.join();
}

}  // namespace

struct EmbeddedHost::Impl {
  std::string model_name;
  std::mutex mutex;  // one ask at a time
  std::uint32_t num_asks = 0;  // guarded by mutex
  UniqueFd control;  // the same; none once it was closed
  std::thread thread;  // the same
};

EmbeddedHost::EmbeddedHost(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

EmbeddedHost::~EmbeddedHost() {
  if (impl_ != nullptr) close(milliseconds{0});
}

Result<std::unique_ptr<EmbeddedHost>> EmbeddedHost::start(ServeSettings settings,
                                                          const ModelPaths& paths,
                                                          std::string worker_binary) {
  settings.api_keys.clear();
  settings.api_key_file.clear();
  settings.admin_tenants.clear();
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return io_error("socketpair", errno);
  auto impl = std::make_unique<Impl>();
  impl->control = UniqueFd(ends[0]);
  const UniqueFd theirs(ends[1]);
  ServeHostOptions options;
  options.worker_binary = std::move(worker_binary);
  options.listens = false;
  options.say = [](const std::string& line) { logger("serve")->info("{}", line); };
  std::promise<Started> started;
  auto outcome = started.get_future();
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  impl->thread = std::thread([&] {
    live(std::move(settings), paths, std::move(options), theirs.get(), std::move(started));
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  auto name = outcome.get();
  if (!name) {
    impl->thread.join();
    return std::move(name).error();
  }
  impl->model_name = *std::move(name);
  return std::unique_ptr<EmbeddedHost>(new EmbeddedHost(std::move(impl)));
}

const std::string& EmbeddedHost::model_name() const {
  return impl_->model_name;
}

Result<UniqueFd> EmbeddedHost::connect() {
  const std::scoped_lock lock(impl_->mutex);
  if (!impl_->control) return make_error(Errc::kUnavailable, "the engine was closed");
  const Ask ask{.number = ++impl_->num_asks};
  if (::send(impl_->control.get(), &ask, sizeof ask, MSG_NOSIGNAL) < 0)
    return make_error(Errc::kUnavailable, "the engine has ended");
  return receive_answer(impl_->control.get(), ask.number);
}

void EmbeddedHost::close(milliseconds drain_timeout) {
  const std::scoped_lock lock(impl_->mutex);
  if (!impl_->control) return;
  Ask ask;
  ask.kind = Ask::Kind::kStop;
  ask.drain_ms = drain_timeout.count();
  ::send(impl_->control.get(), &ask, sizeof ask, MSG_NOSIGNAL);
  impl_->control.reset();
  impl_->thread.join();
}

void EmbeddedHost::abandon(std::unique_ptr<EmbeddedHost> host) {
  if (host == nullptr) return;
  host->impl_->control.reset();
  // The thread is not in this process, so nobody can join it, nor destroy its handle.
  [[maybe_unused]] const Impl* left = host->impl_.release();
}

}  // namespace thaw::cli

#include "forkpool/worker_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "engine/base/log.h"
#include "forkpool/protocol.h"

extern char** environ;

namespace thaw::forkpool {
namespace {

constexpr int kFirstFreeFd = 16;  // copies of ours lie above what the child gets
constexpr int kKillWaitMs = 10000;

/// posix_spawn's two attribute objects, freed on every path.
struct Attributes {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  Attributes() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  ~Attributes() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
};

// By number: in glibc 2.36 <sys/pidfd.h> declares them without C linkage.
int open_pidfd(pid_t pid) {
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
}

}  // namespace

Result<WorkerProcess> WorkerProcess::spawn(const SpawnOptions& options) {
  // Copied out of the way first: one of ours might be numbered like a target that is filled before
  // it is read.
  const std::array<std::pair<int, int>, 4> wanted = {{{options.channel_fd, kChannelFd},
                                                      {options.weights_fd, kWeightsFd},
                                                      {options.kv_pool_fd, kKvPoolFd},
                                                      {options.arena_fd, kArenaFd}}};
  std::array<UniqueFd, 4> copies;
  Attributes spawn;
  posix_spawn_file_actions_addopen(&spawn.actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&spawn.actions, 2, 1);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    copies[i] = UniqueFd(::fcntl(wanted[i].first, F_DUPFD_CLOEXEC, kFirstFreeFd));
    if (!copies[i]) return io_error("copying a descriptor for a worker", errno);
    posix_spawn_file_actions_adddup2(&spawn.actions, copies[i].get(), wanted[i].second);
  }
  posix_spawn_file_actions_addclosefrom_np(&spawn.actions, kArenaFd + 1);

  // A group of its own: Ctrl-C in a terminal is for the pool, which then drains the workers.
  sigset_t none;
  sigset_t all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&spawn.attributes, &none);
  posix_spawnattr_setsigdefault(&spawn.attributes, &all);
  posix_spawnattr_setpgroup(&spawn.attributes, 0);
  posix_spawnattr_setflags(&spawn.attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);

  std::string name = "thaw";
  std::string command = "worker";
  char* arguments[] = {name.data(), command.data(), nullptr};
  pid_t pid = -1;
  const int error = posix_spawn(&pid, options.binary.c_str(), &spawn.actions, &spawn.attributes,
                                arguments, environ);
  if (error != 0) return io_error("starting worker process " + options.binary, error);
  UniqueFd pidfd(open_pidfd(pid));
  if (!pidfd) {
    const Error failed = io_error("pidfd_open", errno);
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return failed;
  }
  return WorkerProcess(pid, std::move(pidfd));
}

WorkerProcess::~WorkerProcess() {
  if (!pidfd_ || try_wait()) return;
  kill();
  pollfd ended{pidfd_.get(), POLLIN, 0};
  while (::poll(&ended, 1, kKillWaitMs) < 0 && errno == EINTR) {
  }
  if (!try_wait()) logger("pool")->error("pid={} does not end after SIGKILL", pid_);
}

void WorkerProcess::kill() {
  if (!exit_) ::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
}

const std::optional<WorkerProcess::Exit>& WorkerProcess::try_wait() {
  if (exit_) return exit_;
  siginfo_t info{};
  int result = 0;
  do {
    result = ::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED | WNOHANG);
  } while (result < 0 && errno == EINTR);
  if (result < 0) {  // SIGCHLD ignored: the kernel reaped it, the pidfd says so
    if (errno == ECHILD) exit_ = Exit{false, true, "ended (its status was not kept)"};
    return exit_;
  }
  if (info.si_pid == 0) return exit_;
  if (info.si_code == CLD_EXITED) {
    exit_ =
        Exit{info.si_status == 0, false, "exited with status " + std::to_string(info.si_status)};
  } else {
    exit_ = Exit{false, info.si_status == SIGKILL,
                 "was killed by signal " + std::to_string(info.si_status) + " (" +
                     ::strsignal(info.si_status) + ")"};
  }
  return exit_;
}

}  // namespace thaw::forkpool

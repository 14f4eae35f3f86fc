#include "cli/serve.h"

#include <pthread.h>
#include <sys/resource.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "cli/serve_host.h"
#include "cli/serve_options.h"
#include "engine/base/log.h"

namespace thaw::cli {
namespace {

// Blocks SIGTERM and SIGINT in this thread and those it starts, so that one thread can wait for
// them.
sigset_t block_stop_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signals;
}

// Serves until a stop signal has come and everything that ran has ended or was cut.
void serve_until_signal(ServeHost& host, const sigset_t& signals,
                        std::chrono::milliseconds drain_timeout) {
  std::jthread waiter([&](const std::stop_token& stop) {
    const timespec tick{0, 200'000'000};
    while (!stop.stop_requested()) {
      const int signal = ::sigtimedwait(&signals, nullptr, &tick);
      if (signal < 0) continue;
      logger("serve")->info("signal={} draining timeout_ms={}", signal, drain_timeout.count());
      host.stop(drain_timeout);
      return;
    }
  });
  host.run();
}

// Each connection takes a descriptor, and the soft limit is 1,024 on most systems. Nothing here
// uses select(), which is what that is for.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0)
    logger("serve")->warn("the limit of open files stays as it is: {}", std::strerror(errno));
}

void print_line(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

}  // namespace

Result<void> run_serve(ServeSettings settings, const ModelPaths& paths) {
  const sigset_t signals = block_stop_signals();
  raise_descriptor_limit();
  const std::string address = settings.host;
  const auto drain_timeout = seconds_to<std::chrono::milliseconds>(settings.drain_timeout_s);
  ServeHostOptions options;
  options.say = print_line;
  auto host = ServeHost::start(std::move(settings), paths, std::move(options));
  if (!host) return std::move(host).error();
  // On stdout, because scripts that asked for a free port read it there.
  std::string names = (*host)->model_names().front();
  for (std::size_t i = 1; i < (*host)->model_names().size(); ++i)
    names += ", " + (*host)->model_names()[i];
  print_line("serving " + names + " at http://" + address + ":" + std::to_string((*host)->port()) +
             "/v1");
  serve_until_signal(**host, signals, drain_timeout);
  return {};
}

}  // namespace thaw::cli

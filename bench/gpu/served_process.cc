#include "bench/gpu/served_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <thread>

#include <nlohmann/json.hpp>

#include "bench/gpu/timing.h"
#include "engine/base/unique_fd.h"

extern char** environ;  // NOLINT: POSIX's

namespace thaw::bench {
namespace {

constexpr std::chrono::milliseconds kStartDeadline{300000};  ///< packing 16 GB takes a while
constexpr std::chrono::milliseconds kAnswerDeadline{120000};
constexpr std::chrono::milliseconds kStopDeadline{60000};

/// What is there, waited for; empty at the end. Throws where nothing comes before `end`.
std::string read_some(int fd, ServedProcess::Clock::time_point end) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(end - ServedProcess::Clock::now())
          .count();
  pollfd ready{fd, POLLIN, 0};
  if (left <= 0 || ::poll(&ready, 1, static_cast<int>(left)) <= 0)
    throw std::runtime_error("nothing came in time");
  std::string buffer(65536, '\0');
  const ssize_t count = ::read(fd, buffer.data(), buffer.size());
  if (count < 0) throw std::runtime_error(std::strerror(errno));
  buffer.resize(static_cast<std::size_t>(count));
  return buffer;
}

UniqueFd connect_to(std::uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int on = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    throw std::runtime_error(std::string("connect: ") + std::strerror(errno));
  return fd;
}

void send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) throw std::runtime_error(std::string("send: ") + std::strerror(errno));
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
}

/// Whether a chunk with some text is among these.
bool has_text(std::string_view chunks) {
  constexpr std::string_view kMark = "\"text\":\"";
  for (auto at = chunks.find(kMark); at != chunks.npos; at = chunks.find(kMark, at + 1)) {
    const auto next = at + kMark.size();
    if (next < chunks.size() && chunks[next] != '"') return true;
  }
  return false;
}

}  // namespace

ServedProcess::ServedProcess(const std::string& binary, const std::vector<std::string>& arguments,
                             const Environment& environment, const std::string& log_path)
    : log_path_(log_path) {
  std::vector<std::string> words{binary, "serve"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  words.insert(words.end(), {"--host", "127.0.0.1", "--port", "0"});
  std::vector<char*> argv;
  for (std::string& word : words)
    argv.push_back(word.data());
  argv.push_back(nullptr);
  std::vector<std::string> variables;
  for (const auto& [name, value] : environment)
    variables.push_back(name + "=" + value);
  std::vector<char*> envp;
  for (std::string& variable : variables)
    envp.push_back(variable.data());
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string name(*variable, std::strcspn(*variable, "="));
    if (!environment.contains(name)) envp.push_back(*variable);
  }
  envp.push_back(nullptr);

  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const UniqueFd log(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!log) throw std::runtime_error(log_path + ": " + std::strerror(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, log.get(), 2);
  started_ = Clock::now();
  const int error =
      ::posix_spawn(&pid_, binary.c_str(), &actions, nullptr, argv.data(), envp.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) throw std::runtime_error(binary + ": " + std::strerror(error));
  write_end.reset();
  std::string text;
  const std::string mark = "http://127.0.0.1:";
  for (;;) {
    if (const auto at = text.find(mark);
        at != std::string::npos && text.find('\n', at) != text.npos)
      break;
    std::string more;
    try {
      more = read_some(read_end.get(), started_ + kStartDeadline);
    } catch (const std::runtime_error& failure) {
      fail(failure.what());
    }
    if (more.empty()) fail("it ended before it served: " + text);
    text += more;
  }
  port_ = static_cast<std::uint16_t>(std::stoul(text.substr(text.find(mark) + mark.size())));
}

ServedProcess::~ServedProcess() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void ServedProcess::stop() {
  ::kill(pid_, SIGTERM);
  const auto end = Clock::now() + kStopDeadline;
  while (::waitpid(pid_, nullptr, WNOHANG) == 0) {
    if (Clock::now() > end) fail("it does not stop");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  pid_ = -1;
}

Streamed ServedProcess::complete(const std::vector<TokenId>& prompt,
                                 std::uint32_t max_tokens) const {
  const std::string body =
      nlohmann::json{{"prompt", prompt}, {"max_tokens", max_tokens},
                     {"temperature", 0}, {"ignore_eos", true},
                     {"stream", true},   {"stream_options", {{"include_usage", true}}}}
          .dump();
  const std::string request =
      "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
      "Content-Type: application/json\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body;
  const auto start = Clock::now();
  const auto end = start + kAnswerDeadline;
  Streamed result;
  std::string text;
  do {  // while no worker is ready, it is told to come again
    if (!text.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    text.clear();
    const UniqueFd fd = connect_to(port_);
    send_all(fd.get(), request);
    for (std::string more = read_some(fd.get(), end); !more.empty();
         more = read_some(fd.get(), end)) {
      text += more;
      if (result.first_token_ms == 0 && has_text(text))
        result.first_token_ms = milliseconds_since(start);
    }
  } while (text.starts_with("HTTP/1.1 503") && Clock::now() < end);
  result.total_ms = milliseconds_since(start);
  const auto number_after = [&](const std::string& name) -> std::uint64_t {
    const std::string mark = "\"" + name + "\":";
    const auto at = text.rfind(mark);
    if (at == std::string::npos) fail("an answer without " + name + ": " + text.substr(0, 500));
    return std::stoull(text.substr(at + mark.size(), 20));
  };
  result.completion_tokens = number_after("completion_tokens");
  result.cached_tokens = number_after("cached_tokens");
  if (result.completion_tokens != max_tokens) fail("an answer was cut: " + text.substr(0, 500));
  return result;
}

std::string ServedProcess::log() const {
  std::ifstream file(log_path_, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string ServedProcess::logged(const std::string& label) const {
  const auto end = Clock::now() + kAnswerDeadline;
  while (Clock::now() < end) {
    const std::string text = log();
    if (const auto at = text.rfind(label); at != std::string::npos) {
      const auto first = at + label.size();
      const auto last = text.find_first_of(" \n", first);
      if (last != std::string::npos) return text.substr(first, last - first);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  fail("its log does not say " + label);
}

void ServedProcess::kill_worker() const {
  ::kill(static_cast<pid_t>(std::stol(logged(" pid="))), SIGKILL);
}

void ServedProcess::fail(const std::string& what) const {
  const std::string text = log();
  throw std::runtime_error("thaw serve: " + what + "\n" +
                           text.substr(text.size() - std::min<std::size_t>(text.size(), 2000)));
}

}  // namespace thaw::bench

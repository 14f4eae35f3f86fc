#include "tests/coalescer/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <stdexcept>
#include <utility>

namespace thaw::coalescer {

RawClient::RawClient(std::uint16_t port, int receive_buffer_bytes) {
  fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (receive_buffer_bytes > 0)
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof(receive_buffer_bytes));
  be_patient();
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    close();
    throw std::runtime_error("cannot connect");
  }
}

RawClient::RawClient(UniqueFd socket) : fd_(socket.release()) {
  be_patient();
}

void RawClient::be_patient() const {
  const timeval patience{10, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
}

RawClient::~RawClient() {
  close();
}

void RawClient::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

bool RawClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(count));
  }
  return true;
}

bool RawClient::fill() {
  char bytes[16384];
  const ssize_t count = ::recv(fd_, bytes, sizeof(bytes), 0);
  if (count <= 0) return false;
  buffer_.append(bytes, static_cast<std::size_t>(count));
  return true;
}

std::optional<std::string> RawClient::read_until(std::string_view end) {
  std::size_t at = 0;
  while ((at = buffer_.find(end)) == std::string::npos)
    if (!fill()) return std::nullopt;
  std::string out = buffer_.substr(0, at + end.size());
  buffer_.erase(0, out.size());
  return out;
}

bool RawClient::read_end() {
  char bytes[16384];
  ssize_t count = 0;
  while ((count = ::recv(fd_, bytes, sizeof(bytes), 0)) > 0) {
  }
  return count == 0 || errno == ECONNRESET;
}

std::optional<ClientReply> RawClient::read_reply() {
  const auto head = read_until("\r\n\r\n");
  if (!head) return std::nullopt;
  ClientReply reply;
  reply.status = std::stoi(head->substr(9, 3));
  std::size_t at = head->find("\r\n") + 2;
  while (at + 2 < head->size()) {
    const std::size_t colon = head->find(": ", at);
    const std::size_t end = head->find("\r\n", at);
    std::string name = head->substr(at, colon - at);
    for (char& c : name)
      c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    reply.headers[name] = head->substr(colon + 2, end - colon - 2);
    at = end + 2;
  }
  if (reply.status == 100) return read_reply();
  if (reply.headers.count("transfer-encoding") > 0) {
    for (;;) {
      const auto line = read_until("\r\n");
      if (!line) return std::nullopt;
      const std::size_t size = std::stoul(*line, nullptr, 16);
      while (buffer_.size() < size + 2)
        if (!fill()) return std::nullopt;
      reply.body += buffer_.substr(0, size);
      buffer_.erase(0, size + 2);
      if (size == 0) return reply;
    }
  }
  if (reply.headers.count("content-length") == 0) {
    while (fill()) {
    }
    reply.body = std::exchange(buffer_, {});
    return reply;
  }
  const std::size_t size = std::stoul(reply.headers.at("content-length"));
  while (buffer_.size() < size)
    if (!fill()) return std::nullopt;
  reply.body = buffer_.substr(0, size);
  buffer_.erase(0, size);
  return reply;
}

std::string post_bytes(std::string_view path, std::string_view body,
                       std::string_view extra_headers) {
  return "POST " + std::string(path) +
         " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + std::string(extra_headers) + "\r\n" +
         std::string(body);
}

std::string get_bytes(std::string_view path, std::string_view extra_headers) {
  return "GET " + std::string(path) + " HTTP/1.1\r\nHost: test\r\n" + std::string(extra_headers) +
         "\r\n";
}

std::vector<std::string> sse_data(const std::string& body) {
  std::vector<std::string> out;
  std::size_t at = 0;
  while (at < body.size()) {
    const std::size_t end = body.find("\n\n", at);
    if (end == std::string::npos || body.compare(at, 6, "data: ") != 0)
      throw std::runtime_error("not a stream of events: " + body.substr(at, 200));
    out.push_back(body.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  return out;
}

std::string chat_body(std::string_view rest) {
  std::string body = R"({"messages": [{"role": "user", "content": "Hi"}])";
  if (!rest.empty()) body += ", " + std::string(rest);
  return body + "}";
}

RunningServer::RunningServer(Backend* backend, ServerOptions options) {
  options.port = 0;
  if (options.served_model_names.empty()) options.served_model_names = {"fake-model", "alias"};
  if (options.max_model_len == 0) options.max_model_len = 1024;
  if (options.version.empty()) options.version = "1.2.3";
  server_ = Server::create(options, backend, std::make_shared<ByteCodec>()).value();
  thread_ = std::thread([this] { server_->run(); });
}

RunningServer::RunningServer(Backend* backend, std::shared_ptr<ServedModels> models,
                             ServerOptions options) {
  options.port = 0;
  server_ = Server::create(options, backend, std::shared_ptr<const ServedModels>(std::move(models)))
                .value();
  thread_ = std::thread([this] { server_->run(); });
}

RunningServer::~RunningServer() {
  stop_and_join(std::chrono::milliseconds(0));
}

void RunningServer::stop_and_join(std::chrono::milliseconds drain_timeout) {
  if (!thread_.joinable()) return;
  server_->stop(drain_timeout);
  thread_.join();
}

ClientReply RunningServer::ask(const std::string& request_bytes) {
  RawClient client(port());
  if (!client.send(request_bytes)) throw std::runtime_error("the server closed the connection");
  auto reply = client.read_reply();
  if (!reply) throw std::runtime_error("the server gave no answer");
  return *reply;
}

ClientReply RunningServer::post(std::string_view path, std::string_view body,
                                std::string_view extra_headers) {
  return ask(post_bytes(path, body, extra_headers));
}

ClientReply RunningServer::get(std::string_view path, std::string_view extra_headers) {
  return ask(get_bytes(path, extra_headers));
}

double metric(RunningServer& server, const std::string& name) {
  const std::string text = "\n" + server.get("/metrics").body;
  const std::size_t at = text.find("\n" + name + " ");
  return at == std::string::npos ? -1 : std::stod(text.substr(at + name.size() + 2));
}

}  // namespace thaw::coalescer

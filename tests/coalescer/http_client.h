#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "coalescer/http/server.h"
#include "engine/base/unique_fd.h"
#include "tests/coalescer/http_fakes.h"

namespace thaw::coalescer {

inline constexpr const char* kChatPath = "/v1/chat/completions";
inline constexpr const char* kTextPath = "/v1/completions";
inline constexpr const char* kSessionsPath = "/v1/sessions";
/// Of a session; 64 bytes when rendered: four whole blocks.
inline const std::string kSessionStart =
    R"({"messages": [{"role": "user", "content": ")" + std::string(57, 'h') + "\"}]}";

struct ClientReply {
  int status = 0;
  std::map<std::string, std::string> headers;  ///< names in lower case
  std::string body;  ///< chunks joined
};

/// A plain socket that can send anything. Waits at most ten seconds for bytes.
class RawClient {
 public:
  /// To 127.0.0.1.
  explicit RawClient(std::uint16_t port, int receive_buffer_bytes = 0);
  /// A connected one.
  explicit RawClient(UniqueFd socket);
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  /// False where the server has closed the connection.
  bool send(std::string_view bytes);
  /// The next whole answer; nullopt where the connection ended before.
  std::optional<ClientReply> read_reply();
  /// Bytes up to and with `end`; nullopt where the connection ended before.
  std::optional<std::string> read_until(std::string_view end);
  /// True once the server has closed the connection; bytes before that are dropped.
  bool read_end();
  void close();

 private:
  bool fill();
  void be_patient() const;

  int fd_ = -1;
  std::string buffer_;
};

std::string post_bytes(std::string_view path, std::string_view body,
                       std::string_view extra_headers = "");
std::string get_bytes(std::string_view path, std::string_view extra_headers = "");
/// The JSON texts of the data frames of a stream, "[DONE]" included.
std::vector<std::string> sse_data(const std::string& body);
/// `{"messages": [{"role": "user", "content": "Hi"}]` and then `rest` and `}`.
std::string chat_body(std::string_view rest = "");

/// A server on a free port with its own thread; stopped and joined at the end.
class RunningServer {
 public:
  explicit RunningServer(Backend* backend, ServerOptions options = {});
  /// With a table of models.
  RunningServer(Backend* backend, std::shared_ptr<ServedModels> models, ServerOptions options = {});
  ~RunningServer();

  std::uint16_t port() const { return server_->port(); }
  Server& server() { return *server_; }
  /// stop() and wait for run() to return.
  void stop_and_join(std::chrono::milliseconds drain_timeout);
  /// One request on a connection of its own.
  ClientReply ask(const std::string& request_bytes);
  ClientReply post(std::string_view path, std::string_view body,
                   std::string_view extra_headers = "");
  ClientReply get(std::string_view path, std::string_view extra_headers = "");

 private:
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

/// A number of /metrics; -1: it is not there.
double metric(RunningServer& server, const std::string& name);

}  // namespace thaw::coalescer

#include "coalescer/http/request_reader.h"

#include <iterator>
#include <utility>

#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

namespace thaw::coalescer {
namespace {

namespace http = boost::beast::http;

/// Bytes of a body that may wait unparsed: a chunk's header or trailer that does not end.
constexpr std::size_t kMaxPendingBytes = 128U << 10;

std::string to_string(boost::beast::string_view text) {
  return {text.data(), text.size()};
}

}  // namespace

struct RequestReader::Parser {
  http::request_parser<http::string_body> parser;
};

RequestReader::RequestReader(const RequestLimits& limits)
    : limits_(limits), parser_(std::make_unique<Parser>()) {
  parser_->parser.header_limit(limits.max_header_bytes);
  parser_->parser.body_limit(limits.max_body_bytes);
}

RequestReader::~RequestReader() = default;

void RequestReader::fail(int status, std::string message) {
  // How it is said depends on who asks.
  if (state_ == State::kHead) read_fields();
  error_ = invalid_field("", std::move(message));
  error_.status = status;
  state_ = State::kFailed;
}

RequestReader::State RequestReader::feed(std::string& bytes) {
  auto& parser = parser_->parser;
  const State before = state_;
  while (state_ == before && (state_ == State::kHead || state_ == State::kBody)) {
    if (parser.is_done()) {
      state_ = State::kDone;
      break;
    }
    if (bytes.empty()) break;
    boost::beast::error_code error;
    const std::size_t taken =
        parser.put(boost::asio::const_buffer(bytes.data(), bytes.size()), error);
    bytes.erase(0, taken);
    if (error == http::error::need_more) {
      if (bytes.size() > kMaxPendingBytes) fail(400, "a chunk header or trailer does not end");
      break;
    }
    if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      fail(431, "the request's headers are larger than " +
                    std::to_string(limits_.max_header_bytes) + " bytes");
    } else if (error == http::error::body_limit) {
      fail(413, "the body is larger than " + std::to_string(limits_.max_body_bytes) +
                    " bytes, the most that is accepted");
    } else if (error) {
      fail(400, "the request is not valid HTTP/1.1: " + error.message());
    } else if (state_ == State::kHead && parser.is_header_done()) {
      read_head();
    }
  }
  if (state_ == State::kBody && parser.is_done()) state_ = State::kDone;
  return state_;
}

void RequestReader::read_head() {
  auto& parser = parser_->parser;
  const auto& message = parser.get();
  const auto num_headers = static_cast<std::size_t>(std::distance(message.begin(), message.end()));
  if (num_headers > limits_.max_headers) {
    return fail(431, "the request has " + std::to_string(num_headers) + " headers; at most " +
                         std::to_string(limits_.max_headers) + " are accepted");
  }
  read_fields();
  head_.keep_alive = parser.keep_alive();
  if (const auto length = parser.content_length()) head_.content_length = *length;
  head_.has_body = !parser.is_done();
  parser.eager(true);
  state_ = State::kBody;
}

void RequestReader::read_fields() {
  const auto& message = parser_->parser.get();
  head_.method = to_string(message.method_string());
  const std::string target = to_string(message.target());
  head_.path = target.substr(0, target.find('?'));
  if (head_.path.size() < target.size()) head_.query = target.substr(head_.path.size() + 1);
  head_.authorization = to_string(message[http::field::authorization]);
  head_.api_key = to_string(message["x-api-key"]);
  head_.has_anthropic_version = message.count("anthropic-version") > 0;
  head_.origin = to_string(message[http::field::origin]);
  head_.preflight_method = to_string(message[http::field::access_control_request_method]);
  head_.preflight_headers = to_string(message[http::field::access_control_request_headers]);
  head_.content_encoding = to_string(message[http::field::content_encoding]);
  head_.expect = to_string(message[http::field::expect]);
  if (boost::beast::iequals(head_.expect, "100-continue")) head_.expect = "100-continue";
  head_.http_1_0 = message.version() < 11;
}

std::uint64_t RequestReader::body_size() const {
  return parser_->parser.get().body().size();
}

std::string RequestReader::take_body() {
  return std::move(parser_->parser.get().body());
}

}  // namespace thaw::coalescer

#include "kvsnap/store/s3_exchange.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>

#include <aws/common/byte_buf.h>
#include <aws/common/string.h>
#include <aws/http/request_response.h>
#include <aws/io/uri.h>
#include <aws/s3/s3.h>
#include <aws/s3/s3_client.h>

#include "kvsnap/store/s3_errors.h"
#include "kvsnap/store/s3_live.h"
#include "kvsnap/store/s3_tls_watch.h"

namespace thaw::kvsnap {
namespace {

constexpr std::uint64_t kSlowestBytesPerSecond = std::uint64_t{256} << 10;
constexpr std::chrono::seconds kCancelDeadline{10};
constexpr std::chrono::seconds kStopDeadline{2};  // of one whose caller is leaving
constexpr std::chrono::milliseconds kLook{100};
constexpr std::size_t kMaxErrorBytes = std::size_t{64} << 10;
constexpr std::size_t kMaxTextBytes = std::size_t{16} << 20;
constexpr std::uint64_t kMinRangeBytes = std::uint64_t{1} << 20;
constexpr int kOk = 200;
constexpr int kPartial = 206;
constexpr int kRangeNotSatisfiable = 416;

aws_byte_cursor cursor_of(std::string_view text) {
  return aws_byte_cursor_from_array(text.data(), text.size());
}

std::string text_of(const aws_byte_cursor& cursor) {
  return {reinterpret_cast<const char*>(cursor.ptr), cursor.len};
}

std::string header_of(const aws_http_headers* headers, const char* name) {
  aws_byte_cursor value{};
  if (headers == nullptr ||
      aws_http_headers_get(headers, aws_byte_cursor_from_c_str(name), &value) != 0) {
    return {};
  }
  return text_of(value);
}

std::optional<std::uint64_t> number_of(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// The size behind the slash of "bytes 0-0/1234".
std::optional<std::uint64_t> total_of(const std::string& content_range) {
  const std::size_t slash = content_range.rfind('/');
  if (slash == std::string::npos) return std::nullopt;
  return number_of(std::string_view(content_range).substr(slash + 1));
}

/// One operation, as the library's threads and the waiting one see it.
struct Exchange {
  std::string url;
  bool is_probe = false;
  bool is_text = false;
  S3Object expected;  // of a get

  std::mutex mutex;
  std::condition_variable changed;
  const ByteSink* sink = nullptr;  // guarded by mutex; null when nobody waits any more
  std::uint64_t next = 0;  // byte of the object; guarded by mutex
  std::uint64_t end = 0;
  std::optional<Error> error;  // the first of ours; guarded by mutex
  bool is_finished = false;  // guarded by mutex
  S3Failure failure;  // guarded by mutex
  S3Object found;  // of a probe; guarded by mutex
  std::string text;  // guarded by mutex

  int fail(Error made) {
    if (!error) error = std::move(made);
    return aws_raise_error(AWS_ERROR_S3_CANCELED);
  }
};

int on_headers(aws_s3_meta_request*, const aws_http_headers* headers, int status, void* key) {
  const auto exchange = find_live<Exchange>(key);
  if (!exchange) return aws_raise_error(AWS_ERROR_S3_CANCELED);
  const std::lock_guard lock(exchange->mutex);
  if (!exchange->is_probe || (status != kOk && status != kPartial)) return AWS_OP_SUCCESS;
  exchange->found.etag = header_of(headers, "ETag");
  const auto total = total_of(header_of(headers, "Content-Range"));
  const auto length = number_of(header_of(headers, "Content-Length"));
  if (exchange->found.etag.empty())
    return exchange->fail(make_error(Errc::kDataLoss, exchange->url + ": the answer has no ETag"));
  if (status == kPartial && total) {
    exchange->found.size_bytes = *total;
    return AWS_OP_SUCCESS;
  }
  if (status == kOk && length && *length <= 1) {
    exchange->found.size_bytes = *length;
    return AWS_OP_SUCCESS;
  }
  return exchange->fail(make_error(
      Errc::kUnsupported,
      exchange->url + ": the endpoint answers a request for one byte with something else"));
}

int on_body(aws_s3_meta_request*, const aws_byte_cursor* body, std::uint64_t start, void* key) {
  const auto exchange = find_live<Exchange>(key);
  if (!exchange) return aws_raise_error(AWS_ERROR_S3_CANCELED);
  const std::lock_guard lock(exchange->mutex);
  if (exchange->is_probe) return AWS_OP_SUCCESS;
  if (exchange->is_text) {
    if (body->len > kMaxTextBytes - exchange->text.size())
      return exchange->fail(make_error(Errc::kDataLoss, exchange->url + ": the answer never ends"));
    exchange->text.append(reinterpret_cast<const char*>(body->ptr), body->len);
    return AWS_OP_SUCCESS;
  }
  if (exchange->sink == nullptr || exchange->error) return aws_raise_error(AWS_ERROR_S3_CANCELED);
  if (start != exchange->next || body->len > exchange->end - exchange->next) {
    return exchange->fail(make_error(
        Errc::kDataLoss, exchange->url + ": " + std::to_string(body->len) + " bytes came from " +
                             std::to_string(start) + " on where byte " +
                             std::to_string(exchange->next) + " was next"));
  }
  auto taken = (*exchange->sink)({reinterpret_cast<const std::byte*>(body->ptr), body->len});
  if (!taken) return exchange->fail(std::move(taken).error());
  exchange->next += body->len;
  return AWS_OP_SUCCESS;
}

/// Every answer of a get must be of the object that was opened, also where the server does not
/// know If-Match.
void on_answer(aws_s3_meta_request*, aws_s3_request_metrics* metrics, void* key) {
  const auto exchange = find_live<Exchange>(key);
  int status = 0;
  aws_http_headers* headers = nullptr;
  if (!exchange || exchange->expected.etag.empty() ||
      aws_s3_request_metrics_get_response_status_code(metrics, &status) != 0 ||
      (status != kOk && status != kPartial) ||
      aws_s3_request_metrics_get_response_headers(metrics, &headers) != 0) {
    return;
  }
  const std::string etag = header_of(headers, "ETag");
  const auto total = total_of(header_of(headers, "Content-Range"));
  const std::lock_guard lock(exchange->mutex);
  if (exchange->error) return;
  if (!etag.empty() && etag != exchange->expected.etag) {
    exchange->error = make_error(
        Errc::kDataLoss, exchange->url + ": the object was replaced while it was read; try again");
  } else if (total && *total != exchange->expected.size_bytes) {
    exchange->error = make_error(
        Errc::kDataLoss, exchange->url + ": the object has " + std::to_string(*total) +
                             " bytes now, it had " + std::to_string(exchange->expected.size_bytes));
  }
}

void on_finish(aws_s3_meta_request*, const aws_s3_meta_request_result* result, void* key) {
  const auto exchange = find_live<Exchange>(key);
  if (!exchange) return;
  const std::lock_guard lock(exchange->mutex);
  S3Failure& failure = exchange->failure;
  failure.code = result->error_code;
  if (result->error_code != 0) failure.status = result->response_status;
  if (result->error_response_operation_name != nullptr)
    failure.operation = aws_string_c_str(result->error_response_operation_name);
  failure.bucket_region = header_of(result->error_response_headers, "x-amz-bucket-region");
  if (result->error_response_body != nullptr) {
    const std::size_t size = std::min(result->error_response_body->len, kMaxErrorBytes);
    failure.body.assign(reinterpret_cast<const char*>(result->error_response_body->buffer), size);
  }
  exchange->is_finished = true;
  exchange->changed.notify_all();
}

void on_shutdown(void* key) {
  end_live(key);
}

struct ReleaseMessage {
  void operator()(aws_http_message* message) const { aws_http_message_release(message); }
};
struct ReleaseRequest {
  void operator()(aws_s3_meta_request* request) const { aws_s3_meta_request_release(request); }
};
using Message = std::unique_ptr<aws_http_message, ReleaseMessage>;

Message make_message(const S3Runtime& runtime, const S3Url& object, const aws_byte_cursor& method,
                     const std::string& query = "") {
  Message message(aws_http_message_new_request(runtime.allocator()));
  const std::string path = runtime.path_of(object) + query;
  const std::string host = runtime.host_of(object);
  aws_http_message_set_request_method(message.get(), method);
  aws_http_message_set_request_path(message.get(), cursor_of(path));
  const aws_http_header header{cursor_of("Host"), cursor_of(host),
                               AWS_HTTP_HEADER_COMPRESSION_USE_CACHE};
  aws_http_message_add_header(message.get(), header);
  return message;
}

void add_header(const Message& message, const std::string& name, const std::string& value) {
  const aws_http_header header{cursor_of(name), cursor_of(value),
                               AWS_HTTP_HEADER_COMPRESSION_USE_CACHE};
  aws_http_message_add_header(message.get(), header);
}

/// Sends it and waits. Returns what failed; the exchange has the rest.
Result<void> run(const S3Caller& caller, const std::shared_ptr<Exchange>& exchange,
                 aws_s3_meta_request_options& options, std::uint64_t bytes, const char* operation) {
  const S3Runtime& runtime = *caller.runtime;
  options.endpoint = runtime.endpoint();
  options.user_data = exchange.get();
  options.headers_callback = &on_headers;
  options.finish_callback = &on_finish;
  options.shutdown_callback = &on_shutdown;
  const auto allowed =
      runtime.options().timeout + std::chrono::seconds(bytes / kSlowestBytesPerSecond);
  const auto deadline = std::chrono::steady_clock::now() + allowed;
  const std::uint64_t tls_before = tls_failures().count;
  const std::unique_ptr<aws_s3_meta_request, ReleaseRequest> request(
      aws_s3_client_make_meta_request(runtime.client(), &options));
  if (!request) {
    const int code = aws_last_error();
    end_live(exchange.get());
    return s3_error({code, 0, operation, "", ""}, exchange->url, runtime.shown_endpoint(),
                    runtime.options().region);
  }
  std::unique_lock lock(exchange->mutex);
  const auto finished = [&] { return exchange->is_finished; };
  bool in_time = false;
  while (!in_time && !caller.is_stopped && std::chrono::steady_clock::now() < deadline) {
    in_time = exchange->changed.wait_for(lock, kLook, finished);
    // Before anything has worked, one refused handshake is as good as six.
    if (in_time || !exchange->is_probe || tls_failures().count == tls_before) continue;
    lock.unlock();
    aws_s3_meta_request_cancel(request.get());
    return s3_tls_error(tls_failures().last, exchange->url, runtime.shown_endpoint());
  }
  if (!in_time) {
    exchange->sink = nullptr;
    lock.unlock();
    aws_s3_meta_request_cancel(request.get());
    lock.lock();
    exchange->changed.wait_for(lock, caller.is_stopped ? kStopDeadline : kCancelDeadline, finished);
  }
  exchange->sink = nullptr;
  const std::optional<Error>& error = exchange->error;
  if (error) return *error;
  if (!in_time && caller.is_stopped)
    return make_error(Errc::kCancelled, exchange->url + ": " + operation + " was stopped");
  if (!in_time) {
    return make_error(Errc::kDeadlineExceeded,
                      exchange->url + ": " + operation + " took longer than " +
                          std::to_string(std::chrono::ceil<std::chrono::seconds>(allowed).count()) +
                          " s (THAW_S3_TIMEOUT)");
  }
  if (exchange->failure.code == 0) return {};
  if (exchange->failure.operation.empty()) exchange->failure.operation = operation;
  return s3_error(exchange->failure, exchange->url, runtime.shown_endpoint(),
                  runtime.options().region);
}

}  // namespace

Result<S3Object> s3_probe(const S3Caller& caller, const std::string& url, const S3Url& object) {
  const Message message = make_message(*caller.runtime, object, aws_http_method_get);
  add_header(message, "Range", "bytes=0-0");
  const auto exchange = make_live<Exchange>();
  exchange->url = url;
  exchange->is_probe = true;
  aws_s3_meta_request_options options{};
  options.type = AWS_S3_META_REQUEST_TYPE_DEFAULT;
  options.operation_name = cursor_of("GetObject");
  options.message = message.get();
  options.body_callback = &on_body;
  const auto done = run(caller, exchange, options, 0, "GetObject");
  const std::lock_guard lock(exchange->mutex);
  // A range of an object without bytes.
  if (!done && exchange->failure.status == kRangeNotSatisfiable) return S3Object{};
  if (!done) return done.error();
  return exchange->found;
}

Result<void> s3_get(const S3Caller& caller, const std::string& url, const S3Url& object,
                    const S3Object& expected, std::uint64_t offset, std::uint64_t size_bytes,
                    const ByteSink& sink) {
  if (size_bytes == 0) return {};
  const Message message = make_message(*caller.runtime, object, aws_http_method_get);
  add_header(message, "Range",
             "bytes=" + std::to_string(offset) + "-" + std::to_string(offset + size_bytes - 1));
  add_header(message, "If-Match", expected.etag);
  const auto exchange = make_live<Exchange>();
  exchange->url = url;
  exchange->expected = expected;
  exchange->sink = &sink;
  exchange->next = offset;
  exchange->end = offset + size_bytes;
  aws_s3_meta_request_options options{};
  options.type = AWS_S3_META_REQUEST_TYPE_GET_OBJECT;
  options.message = message.get();
  options.body_callback = &on_body;
  options.telemetry_callback = &on_answer;
  // Small enough that all connections have something to do.
  const std::uint64_t share = size_bytes / std::max(1U, caller.runtime->options().concurrency) + 1;
  options.part_size = std::clamp((share + kMinRangeBytes - 1) / kMinRangeBytes * kMinRangeBytes,
                                 std::min(kMinRangeBytes, caller.runtime->options().part_bytes),
                                 caller.runtime->options().part_bytes);
  if (auto done = run(caller, exchange, options, size_bytes, "GetObject"); !done) return done;
  const std::lock_guard lock(exchange->mutex);
  if (exchange->next == exchange->end) return {};
  return make_error(Errc::kDataLoss, url + ": " + std::to_string(exchange->next - offset) +
                                         " bytes came of " + std::to_string(size_bytes));
}

Result<void> s3_put(const S3Caller& caller, const std::string& url, const S3Url& object,
                    const std::string& path, std::uint64_t size_bytes) {
  const Message message = make_message(*caller.runtime, object, aws_http_method_put);
  add_header(message, "Content-Length", std::to_string(size_bytes));
  add_header(message, "Content-Type", "application/octet-stream");
  const auto exchange = make_live<Exchange>();
  exchange->url = url;
  aws_s3_checksum_config checksums{};
  checksums.location = AWS_SCL_HEADER;
  checksums.checksum_algorithm = AWS_SCA_CRC32C;
  aws_s3_meta_request_options options{};
  options.type = AWS_S3_META_REQUEST_TYPE_PUT_OBJECT;
  options.message = message.get();
  options.send_filepath = cursor_of(path);
  if (caller.runtime->options().upload_checksums) options.checksum_config = &checksums;
  return run(caller, exchange, options, size_bytes, "PutObject");
}

Result<std::string> s3_call(const S3Caller& caller, const std::string& url,
                            const S3Request& request) {
  const Message message =
      make_message(*caller.runtime, request.object, cursor_of(request.method), request.query);
  const auto exchange = make_live<Exchange>();
  exchange->url = url;
  exchange->is_text = true;
  aws_s3_meta_request_options options{};
  options.type = AWS_S3_META_REQUEST_TYPE_DEFAULT;
  options.operation_name = cursor_of(request.operation);
  options.message = message.get();
  options.body_callback = &on_body;
  if (auto done = run(caller, exchange, options, 0, request.operation); !done)
    return std::move(done).error();
  const std::lock_guard lock(exchange->mutex);
  return exchange->text;
}

}  // namespace thaw::kvsnap

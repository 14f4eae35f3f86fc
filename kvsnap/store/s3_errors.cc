#include "kvsnap/store/s3_errors.h"

#include <algorithm>
#include <string_view>

#include <aws/auth/auth.h>
#include <aws/common/error.h>
#include <aws/http/http.h>
#include <aws/io/io.h>
#include <aws/s3/s3.h>

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kMaxShownBytes = 200;

/// A server's words: printable, and not too many.
std::string shown(std::string text) {
  if (text.size() > kMaxShownBytes) text = text.substr(0, kMaxShownBytes) + "...";
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return text;
}

bool is_tls(int code) {
  // The library's codes for TLS have grown in several places.
  return std::string_view(aws_error_name(code)).starts_with("AWS_IO_TLS_") ||
         std::string_view(aws_error_name(code)) == "AWS_ERROR_IO_TLS_ERROR_NEGOTIATION_FAILURE";
}

/// The answer was an error.
Error of_status(const S3Failure& failure, const std::string& url, const std::string& region) {
  const std::string code = xml_text(failure.body, "Code");
  const std::string message = shown(xml_text(failure.body, "Message"));
  const std::string theirs =
      shown(code.empty() ? "HTTP " + std::to_string(failure.status)
                         : "HTTP " + std::to_string(failure.status) + " " + code) +
      (message.empty() ? "" : ": " + message);
  std::string other = failure.bucket_region;
  if (other.empty()) other = xml_text(failure.body, "Region");
  const auto made = [&](Errc errc, const std::string& what) {
    return make_error(errc, url + ": " + what + " (" + theirs + ")");
  };
  if (failure.status == 301 || failure.status == 307 || code == "PermanentRedirect" ||
      code == "AuthorizationHeaderMalformed" || code == "IllegalLocationConstraintException") {
    return made(Errc::kInvalidArgument,
                other.empty() || other == region
                    ? "the bucket is in another region than " + region + "; name it by AWS_REGION"
                    : "the bucket is in region " + shown(other) + ", not " + region +
                          "; set AWS_REGION=" + shown(other));
  }
  if (code == "NoSuchBucket") return made(Errc::kInvalidArgument, "there is no such bucket");
  if (code == "NoSuchKey" || failure.status == 404)
    return made(Errc::kNotFound, "there is no such object");
  if (failure.status == 412)
    return made(Errc::kDataLoss, "the object was replaced while it was read; try again");
  if (failure.status == 401 || failure.status == 403)
    return made(Errc::kUnauthenticated, "access was denied; these credentials may not");
  if (failure.status == 416)
    return made(Errc::kDataLoss, "the object has become shorter while it was read; try again");
  if (failure.status == 507 || code == "QuotaExceeded" || code == "EntityTooLarge")
    return made(Errc::kResourceExhausted, "the store takes no more");
  if (failure.status >= 500 || failure.status == 429)
    return made(Errc::kUnavailable, "the store failed, each time of several");
  return made(Errc::kIo, failure.operation + " was refused");
}

}  // namespace

std::string xml_text(const std::string& document, const std::string& element) {
  const std::string open = "<" + element + ">";
  const std::size_t start = document.find(open);
  if (start == std::string::npos) return {};
  const std::size_t end = document.find("</" + element + ">", start);
  if (end == std::string::npos) return {};
  return document.substr(start + open.size(), end - start - open.size());
}

Error s3_tls_error(const std::string& why, const std::string& url, const std::string& endpoint) {
  return make_error(Errc::kUnavailable,
                    url + ": no trusted TLS connection to " + endpoint + " (" + shown(why) +
                        "); AWS_CA_BUNDLE names certificates to trust, http:// goes without");
}

Error s3_error(const S3Failure& failure, const std::string& url, const std::string& endpoint,
               const std::string& region) {
  if (failure.status != 0) return of_status(failure, url, region);
  const auto made = [&](Errc errc, const std::string& what) {
    return make_error(errc, url + ": " + what);
  };
  if (is_tls(failure.code)) return s3_tls_error(aws_error_str(failure.code), url, endpoint);
  const std::string theirs = std::string(" (") + aws_error_str(failure.code) + ")";
  switch (failure.code) {
    case AWS_IO_SOCKET_CONNECTION_REFUSED:
      return made(Errc::kUnavailable, endpoint + " refuses connections");
    case AWS_IO_SOCKET_TIMEOUT:
    case AWS_IO_SOCKET_NO_ROUTE_TO_HOST:
    case AWS_IO_SOCKET_NETWORK_DOWN:
      return made(Errc::kUnavailable, endpoint + " cannot be reached" + theirs);
    case AWS_IO_SOCKET_CLOSED:
    case AWS_ERROR_HTTP_CONNECTION_CLOSED:
      return made(Errc::kUnavailable,
                  endpoint +
                      " closed the connection, each time of several; is http:// or https:// "
                      "right?");
    case AWS_IO_DNS_QUERY_FAILED:
    case AWS_IO_DNS_INVALID_NAME:
    case AWS_IO_DNS_NO_ADDRESS_FOR_HOST:
    case AWS_IO_DNS_QUERY_AGAIN:
      return made(Errc::kUnavailable, "the name of " + endpoint + " has no address");
    case AWS_ERROR_S3_OBJECT_MODIFIED:
      return made(Errc::kDataLoss, "the object was replaced while it was read; try again");
    case AWS_ERROR_S3_FILE_MODIFIED:
      return made(Errc::kDataLoss, "the file was written to while it was uploaded");
    case AWS_ERROR_S3_INTERNAL_ERROR:
    case AWS_ERROR_S3_SLOW_DOWN:
    case AWS_ERROR_S3_REQUEST_TIMEOUT:
      return made(Errc::kUnavailable, "the store failed, each time of several" + theirs);
    case AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED:
      return made(Errc::kUnauthenticated, "this machine's clock is wrong" + theirs);
    case AWS_ERROR_S3_RESPONSE_CHECKSUM_MISMATCH:
    case AWS_ERROR_S3_MISSING_CONTENT_RANGE_HEADER:
    case AWS_ERROR_S3_INVALID_CONTENT_RANGE_HEADER:
    case AWS_ERROR_S3_MISSING_CONTENT_LENGTH_HEADER:
    case AWS_ERROR_S3_INVALID_CONTENT_LENGTH_HEADER:
    case AWS_ERROR_S3_MISSING_ETAG:
    case AWS_ERROR_S3_INTERNAL_PART_SIZE_MISMATCH_RETRYING_WITH_RANGE:
    case AWS_ERROR_SHORT_BUFFER:
      return made(Errc::kDataLoss, "the answer is not what was asked for" + theirs);
    default:
      break;
  }
  const std::string name = aws_error_name(failure.code);
  if (name.starts_with("AWS_AUTH_")) {
    return made(Errc::kUnauthenticated, "no usable credentials" + theirs);
  }
  return made(Errc::kUnavailable, failure.operation + " failed, each time of several" + theirs);
}

}  // namespace thaw::kvsnap

#include "engine/base/error.h"

#include <system_error>

namespace thaw {

const char* errc_name(Errc code) {
  switch (code) {
    case Errc::kInvalidArgument:
      return "invalid_argument";
    case Errc::kUnauthenticated:
      return "unauthenticated";
    case Errc::kNotFound:
      return "not_found";
    case Errc::kUnsupported:
      return "unsupported";
    case Errc::kResourceExhausted:
      return "resource_exhausted";
    case Errc::kUnavailable:
      return "unavailable";
    case Errc::kDeadlineExceeded:
      return "deadline_exceeded";
    case Errc::kCancelled:
      return "cancelled";
    case Errc::kDataLoss:
      return "data_loss";
    case Errc::kIo:
      return "io";
    case Errc::kProtocol:
      return "protocol";
    case Errc::kCuda:
      return "cuda";
    case Errc::kInternal:
      return "internal";
  }
  return "unknown";
}

std::string Error::to_string() const {
  return std::string(errc_name(code)) + ": " + message;
}

Error io_error(const std::string& what, int error_number, const char* file, int line) {
  return make_error(Errc::kIo, what + ": " + std::generic_category().message(error_number), file,
                    line);
}

Exception::Exception(Error error)
    : std::runtime_error(error.to_string()), error_(std::move(error)) {}

}  // namespace thaw

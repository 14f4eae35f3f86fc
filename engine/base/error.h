#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace thaw {

/// What went wrong, by meaning. The HTTP and Python layers each map these in one table.
enum class Errc {
  kInvalidArgument,  ///< the caller's value is wrong; the message names it and what is right
  kUnauthenticated,  ///< no key, or a wrong one
  kNotFound,  ///< the named thing does not exist
  kUnsupported,  ///< well-formed, but this build cannot serve it
  kResourceExhausted,  ///< no capacity now; trying later can help
  kUnavailable,  ///< loading, draining, or the worker is gone
  kDeadlineExceeded,
  kCancelled,
  kDataLoss,  ///< bytes are damaged or incomplete
  kIo,  ///< the operating system refused; the message holds errno's text
  kProtocol,  ///< a peer process sent what it must not
  kCuda,
  kInternal,  ///< a defect of ours
};

/// The code's name as written in logs and JSON, such as "invalid_argument".
const char* errc_name(Errc code);

/// A failure: code, a message for people, and where it was made.
struct Error {
  Errc code = Errc::kInternal;
  std::string message;
  const char* file = "";
  int line = 0;

  /// "invalid_argument: temperature is -1 ..." without the source position.
  std::string to_string() const;
};

/// `Error` with the caller's position. The message says what was wrong, which value, what would be
/// right.
inline Error make_error(Errc code, std::string message, const char* file = __builtin_FILE(),
                        int line = __builtin_LINE()) {
  return Error{code, std::move(message), file, line};
}

/// `kIo` with `what` and the text of `error_number` (an errno value).
Error io_error(const std::string& what, int error_number, const char* file = __builtin_FILE(),
               int line = __builtin_LINE());

/// Thrown by constructors that acquire resources and by `Result::value()` on an error.
class Exception : public std::runtime_error {
 public:
  explicit Exception(Error error);
  const Error& error() const noexcept { return error_; }

 private:
  Error error_;
};

}  // namespace thaw

#include "kvsnap/store/s3_tls_watch.h"

#include <array>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <mutex>

#include <aws/common/logging.h>
#include <aws/io/logging.h>

namespace thaw::kvsnap {
namespace {

constexpr std::string_view kFailed = "negotiation failed with error ";
constexpr std::size_t kMaxLineBytes = 512;

struct Watch {
  std::mutex mutex;
  TlsFailures failures;  // guarded by mutex
};

/// Outlives the library's threads, which may be there when the process ends.
Watch& watch() {
  static Watch* const watch = std::make_unique<Watch>().release();
  return *watch;
}

void note(std::string_view line) {
  const std::size_t start = line.find(kFailed);
  if (start == std::string_view::npos) return;
  line.remove_prefix(start + kFailed.size());
  // A connection that was cut says nothing of trust, and the next attempt may do better.
  if (line.find("closed") != line.npos || line.find("I/O") != line.npos) return;
  line = line.substr(0, line.find(" ("));  // the place in its source follows
  const std::lock_guard lock(watch().mutex);
  ++watch().failures.count;
  watch().failures.last = line;
}

[[gnu::format(printf, 4, 5)]] int log_line(aws_logger*, aws_log_level, aws_log_subject_t,
                                           const char* format, ...) {
  std::array<char, kMaxLineBytes> line{};
  std::va_list arguments;
  va_start(arguments, format);
  const int size = std::vsnprintf(line.data(), line.size(), format, arguments);
  va_end(arguments);
  if (size > 0) note(line.data());
  return AWS_OP_SUCCESS;
}

aws_log_level level_of(aws_logger*, aws_log_subject_t subject) {
  return subject == AWS_LS_IO_TLS ? AWS_LL_WARN : AWS_LL_NONE;
}

void clean_up(aws_logger*) {}

int set_level(aws_logger*, aws_log_level) {
  return AWS_OP_SUCCESS;
}

}  // namespace

void watch_tls() {
  static aws_logger_vtable calls{&log_line, &level_of, &clean_up, &set_level};
  static aws_logger logger{&calls, nullptr, nullptr};
  watch();
  aws_logger_set(&logger);
}

TlsFailures tls_failures() {
  const std::lock_guard lock(watch().mutex);
  return watch().failures;
}

}  // namespace thaw::kvsnap

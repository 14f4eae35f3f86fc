#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/types.h"

namespace thaw::bench {

/// One streamed completion, by the client's clock.
struct Streamed {
  double first_token_ms = 0;  ///< from the call to the first text
  double total_ms = 0;
  std::uint64_t completion_tokens = 0;
  std::uint64_t cached_tokens = 0;
};

/// `thaw serve` as a process of its own, its log in a file. Ends it on destruction. Every wait has
/// a deadline; throws std::runtime_error with the end of the log.
class ServedProcess {
 public:
  using Clock = std::chrono::steady_clock;
  using Environment = std::map<std::string, std::string>;  ///< added to this process's

  /// Starts it and waits until it has named its address.
  ServedProcess(const std::string& binary, const std::vector<std::string>& arguments,
                const Environment& environment, const std::string& log_path);
  ~ServedProcess();
  ServedProcess(const ServedProcess&) = delete;
  ServedProcess& operator=(const ServedProcess&) = delete;

  Clock::time_point started() const { return started_; }
  /// Greedy, to the full length. Thread-safe.
  Streamed complete(const std::vector<TokenId>& prompt, std::uint32_t max_tokens) const;
  /// What comes after the last `label` in the log, up to a space or the end of the line; waits for
  /// it.
  std::string logged(const std::string& label) const;
  /// The same as a number.
  double logged_number(const std::string& label) const { return std::stod(logged(label)); }
  /// kill -9 for the worker of now.
  void kill_worker() const;
  /// SIGTERM; waits for the end.
  void stop();

 private:
  std::string log() const;
  [[noreturn]] void fail(const std::string& what) const;

  std::string log_path_;
  Clock::time_point started_;
  pid_t pid_ = -1;
  std::uint16_t port_ = 0;
};

}  // namespace thaw::bench

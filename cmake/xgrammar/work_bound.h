#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <stdexcept>

namespace xgrammar {

/// What one thread may do inside the library: processor time, and parts of grammars and automata
/// that it makes. Past either, the work ends with WorkBoundExceeded. scripts/get_xgrammar.py puts
/// the calls of step() and make() into the loops that the size of a grammar drives.
class WorkBound {
 public:
  WorkBound(std::chrono::nanoseconds cpu_time, std::int64_t parts);
  ~WorkBound();
  WorkBound(const WorkBound&) = delete;
  WorkBound& operator=(const WorkBound&) = delete;

  static void step() {
    if (--steps_ <= 0) look();
  }
  static void make() {
    if (--parts_ <= 0) too_large();
    step();
  }

 private:
  static void look();
  [[noreturn]] static void too_large();

  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  static inline thread_local std::int64_t steps_ = kNone;  ///< until the clock is read
  static inline thread_local std::int64_t parts_ = kNone;
  static inline thread_local std::int64_t end_ns_ = kNone;  ///< of this thread's processor time
};

struct WorkBoundExceeded : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace xgrammar

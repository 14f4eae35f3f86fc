#include "xgrammar/work_bound.h"

#include <ctime>

namespace xgrammar {
namespace {

constexpr std::int64_t kStepsBetweenLooks = 256;

std::int64_t cpu_time_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

}  // namespace

WorkBound::WorkBound(std::chrono::nanoseconds cpu_time, std::int64_t parts) {
  steps_ = kStepsBetweenLooks;
  parts_ = parts;
  end_ns_ = cpu_time_ns() + cpu_time.count();
}

WorkBound::~WorkBound() {
  steps_ = kNone;
  parts_ = kNone;
  end_ns_ = kNone;
}

void WorkBound::look() {
  steps_ = kStepsBetweenLooks;
  if (cpu_time_ns() > end_ns_) throw WorkBoundExceeded("it takes too long");
}

void WorkBound::too_large() {
  parts_ = 1;
  throw WorkBoundExceeded("it becomes too large");
}

}  // namespace xgrammar

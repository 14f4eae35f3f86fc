#include "coalescer/core/window.h"

#include <algorithm>
#include <utility>

namespace thaw::coalescer {

void Window::add(GenerateRequest request, Clock::TimePoint now, bool pool_idle) {
  if (!deadline_) deadline_ = pool_idle ? now : now + length_;
  requests_.push_back(std::move(request));
}

bool Window::remove(RequestId request) {
  const auto found =
      std::find_if(requests_.begin(), requests_.end(),
                   [&](const GenerateRequest& candidate) { return candidate.id == request; });
  if (found == requests_.end()) return false;
  requests_.erase(found);
  if (requests_.empty()) deadline_.reset();
  return true;
}

std::vector<GenerateRequest> Window::take() {
  deadline_.reset();
  return std::exchange(requests_, {});
}

}  // namespace thaw::coalescer

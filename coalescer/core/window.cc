#include "coalescer/core/window.h"

#include <algorithm>
#include <utility>

namespace thaw::coalescer {

void Window::add(GenerateRequest request, Clock::TimePoint now, bool is_lone) {
  if (!deadline_) {
    opened_ = now;
    deadline_ = is_lone ? now : now + length_;
  }
  requests_.push_back(std::move(request));
}

bool Window::extend() {
  if (!deadline_ || *deadline_ == opened_ ||
      *deadline_ + kExtension > opened_ + length_ + kMostExtension)
    return false;
  *deadline_ += kExtension;
  return true;
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

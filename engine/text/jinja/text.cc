#include "engine/text/jinja/text.h"

#include <algorithm>

#include "engine/text/jinja/error.h"

namespace thaw::text::jinja {

void Text::append(std::string_view bytes, Origin origin) {
  if (bytes.empty()) return;
  if (bytes.size() > kMaxTextBytes - bytes_.size()) {
    throw TemplateError("a string grew past " + std::to_string(kMaxTextBytes) + " bytes");
  }
  if (bytes_.empty()) {
    first_ = origin;
  } else if (origin_of_run(flips_.size()) != origin) {
    flips_.push_back(bytes_.size());
  }
  bytes_.append(bytes);
}

void Text::append_range(const Text& other, std::size_t begin, std::size_t end) {
  other.for_each_run(begin, end,
                     [this](std::string_view bytes, Origin origin) { append(bytes, origin); });
}

Text Text::range(std::size_t begin, std::size_t end) const {
  Text result;
  result.append_range(*this, begin, end);
  return result;
}

Origin Text::origin_at(std::size_t position) const {
  return origin_of_run(first_run_past(position));
}

std::size_t Text::first_run_past(std::size_t position) const {
  return static_cast<std::size_t>(std::upper_bound(flips_.begin(), flips_.end(), position) -
                                  flips_.begin());
}

}  // namespace thaw::text::jinja

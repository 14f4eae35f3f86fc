#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace thaw::text::jinja {

/// Who wrote a stretch of text: the template's author, or whoever sent the messages.
enum class Origin : bool { kUser = false, kTemplate = true };

/// No single string of a render may grow past this.
inline constexpr std::size_t kMaxTextBytes = std::size_t{64} << 20;

/// UTF-8 bytes with the origin of each: runs of alternating origin, of which only the ends are
/// kept.
class Text {
 public:
  Text() = default;
  Text(std::string bytes, Origin origin) : bytes_(std::move(bytes)), first_(origin) {}

  const std::string& bytes() const { return bytes_; }
  std::size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }

  /// Errors: TemplateError when the text would exceed kMaxTextBytes.
  void append(std::string_view bytes, Origin origin);
  void append(const Text& other) { append_range(other, 0, other.size()); }
  /// Bytes [begin, end) of `other` with their origins.
  void append_range(const Text& other, std::size_t begin, std::size_t end);
  Text range(std::size_t begin, std::size_t end) const;
  Origin origin_at(std::size_t position) const;

  /// Calls `visit(std::string_view, Origin)` for each run of [begin, end), in order.
  template <typename Visit>
  void for_each_run(std::size_t begin, std::size_t end, Visit&& visit) const {
    std::size_t run = first_run_past(begin);
    while (begin < end) {
      const std::size_t stop = run < flips_.size() && flips_[run] < end ? flips_[run] : end;
      visit(std::string_view(bytes_).substr(begin, stop - begin), origin_of_run(run));
      begin = stop;
      ++run;
    }
  }
  template <typename Visit>
  void for_each_run(Visit&& visit) const {
    for_each_run(0, size(), std::forward<Visit>(visit));
  }

 private:
  std::size_t first_run_past(std::size_t position) const;
  Origin origin_of_run(std::size_t run) const {
    return static_cast<Origin>(static_cast<bool>(first_) != (run % 2 == 1));
  }

  std::string bytes_;
  Origin first_ = Origin::kTemplate;
  std::vector<std::size_t> flips_;  ///< positions where the origin changes, each inside the text
};

}  // namespace thaw::text::jinja

#pragma once

#include <stdexcept>
#include <string>

namespace thaw::text::jinja {

/// Thrown while a template is parsed or rendered; never leaves ChatTemplate. `raised` marks
/// raise_exception, whose message is the template's own and goes to the user unchanged.
class TemplateError : public std::runtime_error {
 public:
  explicit TemplateError(const std::string& message, int line = 0, bool raised = false)
      : std::runtime_error(message), line_(line), raised_(raised) {}

  int line() const { return line_; }
  bool raised() const { return raised_; }

 private:
  int line_;
  bool raised_;
};

}  // namespace thaw::text::jinja

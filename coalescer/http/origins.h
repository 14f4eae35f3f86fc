#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coalescer/http/http_reply.h"
#include "coalescer/http/request_reader.h"

namespace thaw::coalescer {

/// Which web pages may ask, by the `Origin` that a browser sends with what they ask (Fetch
/// standard, CORS protocol). Whatever is no browser sends none.
class Origins {
 public:
  /// Besides pages of this machine and of programs on it: such as "https://chat.example.com", or
  /// "*" for every page there is.
  explicit Origins(std::vector<std::string> allowed) : allowed_(std::move(allowed)) {}

  bool allows(std::string_view origin) const;

  /// The answer to a browser that asks what a page may do, ahead of doing it. REQUIRES:
  /// is_preflight(head), allows(head.origin).
  static HttpReply preflight(const RequestHead& head);
  static bool is_preflight(const RequestHead& head) {
    return head.method == "OPTIONS" && !head.origin.empty() && !head.preflight_method.empty();
  }

 private:
  std::vector<std::string> allowed_;
};

}  // namespace thaw::coalescer

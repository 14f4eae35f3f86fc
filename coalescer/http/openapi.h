#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "coalescer/openai/shape.h"

namespace thaw::coalescer {

/// What the document says of this server beside what every server has.
struct OpenApiFacts {
  ShapeLimits limits;
  std::string version;
  bool needs_keys = false;

  bool operator==(const OpenApiFacts&) const = default;
};

/// The OpenAPI 3.1 document of all endpoints(), as JSON text. Bodies and answers are described by
/// the shapes that requests are checked with. A few milliseconds.
std::string openapi_document(const OpenApiFacts& facts);

/// The same, written once for a server's facts: anybody may ask for it. Thread-safe.
class OpenApiCache {
 public:
  std::shared_ptr<const std::string> document(const OpenApiFacts& facts);

 private:
  std::mutex mutex_;
  OpenApiFacts facts_;
  std::shared_ptr<const std::string> document_;  // of `facts_`
};

}  // namespace thaw::coalescer

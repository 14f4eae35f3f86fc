#pragma once

#include <string>

#include "coalescer/openai/shape.h"

namespace thaw::coalescer {

/// What the document says of this server beside what every server has.
struct OpenApiFacts {
  ShapeLimits limits;
  std::string version;
  bool needs_keys = false;
};

/// The OpenAPI 3.1 document of all endpoints(), as JSON text. Bodies and answers are described by
/// the shapes that requests are checked with. A few milliseconds.
std::string openapi_document(const OpenApiFacts& facts);

}  // namespace thaw::coalescer

#pragma once

#include <nlohmann/json.hpp>

#include "coalescer/http/route.h"

namespace thaw::coalescer {

/// A body that the endpoint takes, for the document; null where none is shown.
nlohmann::ordered_json example_of(Endpoint endpoint);

/// How calls follow from the endpoint's answer: OpenAPI's links by name, an empty object where none
/// do.
nlohmann::ordered_json links_of(Endpoint endpoint);

}  // namespace thaw::coalescer

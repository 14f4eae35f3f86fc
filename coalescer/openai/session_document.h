#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "coalescer/core/session_store.h"
#include "coalescer/openai/api_error.h"

namespace thaw::coalescer {

/// A session written down (docs/sessions.md): everything but its KV.
struct SessionDocument {
  StoredSession session;
  std::int64_t expires_at = 0;  ///< seconds since the epoch
  std::string system_fingerprint;  ///< of the server that wrote it
};

/// What the ids of a document must fit: its model.
struct DocumentLimits {
  int vocab_size = 0;
  std::uint32_t max_model_len = 0;
};

/// The limits of the model that a document names, by its weights or by its name.
using LimitsOf =
    std::function<DocumentLimits(const std::string& weights, const std::string& model)>;

/// JSON text. States that begin alike are written with what they differ in.
std::string write_session_document(const SessionDocument& document);

/// Reads what write_session_document gave, and trusts none of it. Errors name the field.
ApiResult<SessionDocument> read_session_document(std::string_view text, const LimitsOf& limits_of);

}  // namespace thaw::coalescer

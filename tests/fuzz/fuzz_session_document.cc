// A session's document, as it comes from a directory or from a client.

#include <cstdio>
#include <cstdlib>
#include <variant>

#include "coalescer/openai/session_document.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw::coalescer;
  const DocumentLimits limits{300, 64};
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const LimitsOf limits_of = [&](const std::string&, const std::string&) { return limits; };
  const auto read = read_session_document(text, limits_of);
  if (const auto* error = std::get_if<ApiError>(&read)) {
    if (error->message.empty() || error->status < 400) std::abort();
    return 0;
  }
  const auto& document = std::get<SessionDocument>(read);
  const SessionState& state = *document.session.state;
  if (state.tokens.size() > limits.max_model_len || state.tokens.size() > size) std::abort();
  for (std::uint32_t cut = 1; cut <= state.tokens.size(); ++cut)
    if (cut_at_token(state, cut).state.tokens.size() != cut) std::abort();
  // What was accepted is written as it would be accepted again.
  const std::string written = write_session_document(document);
  const auto again = read_session_document(written, limits_of);
  if (const auto* error = std::get_if<ApiError>(&again)) {
    // Arguments of tool calls that were text are objects now, which may be too deep.
    if (error->message.find("nests deeper") == std::string::npos) {
      std::fprintf(stderr, "what was written is refused: %s\n%s\n", error->message.c_str(),
                   written.c_str());
      std::abort();
    }
    return 0;
  }
  if (std::get<SessionDocument>(again).session.state->tokens != state.tokens) std::abort();
  return 0;
}

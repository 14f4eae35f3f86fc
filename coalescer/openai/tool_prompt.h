#pragma once

#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

/// Tools, calls or their results are in it.
bool speaks_of_tools(const ChatPrompt& prompt);

/// The same chat for a template that knows no tools: they are described in the system message, and
/// earlier calls and their results are text. The number and order of the client's messages stay; a
/// system message comes in front where there is none.
ChatPrompt tools_as_text(const ChatPrompt& prompt);

}  // namespace thaw::coalescer

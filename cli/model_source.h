#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "engine/base/result.h"
#include "engine/checkpoint/gguf.h"
#include "engine/text/tokenizer.h"

namespace thaw::cli {

/// SHA-256 of the default model, SmolLM2-135M-Instruct Q4_1 (Apache-2.0).
inline constexpr std::string_view kDefaultModelSha256 =
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The tokenizer that a GGUF file describes. Errors name the file and the key that is missing,
/// misshapen or not supported (tokenizer.ggml.model other than "gpt2").
Result<text::TokenizerSpec> tokenizer_spec_from_gguf(const checkpoint::GgufFile& file);

/// The file's chat template; nothing where it has none. A view into the file.
std::optional<std::string_view> chat_template_from_gguf(const checkpoint::GgufFile& file);

}  // namespace thaw::cli

#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "cli/model_paths.h"
#include "engine/base/result.h"
#include "engine/base/types.h"
#include "engine/text/tokenizer.h"
#include "kvsnap/handle_directory.h"

namespace thaw::cli {

/// The tokenizer of `model` (as `thaw serve` takes it, or a directory with a tokenizer.json); its
/// weights are not read. Errors name the file.
Result<std::unique_ptr<text::Tokenizer>> open_tokenizer(const std::string& model,
                                                        const ModelPaths& paths);

/// A tokenizer for a handle's tokens, where one is to be had without asking: in the weights that
/// travel with it, or in the local Hugging Face cache under the name of its model. Null otherwise.
std::unique_ptr<text::Tokenizer> find_tokenizer(const kvsnap::HandleDirectory& directory,
                                                const ModelPaths& paths);

/// Text of tokens that go on others, special ones as they are written.
std::string decode_inside(const text::Tokenizer& tokenizer, std::span<const TokenId> tokens);

}  // namespace thaw::cli

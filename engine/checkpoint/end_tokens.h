#pragma once

#include <vector>

#include "engine/base/types.h"
#include "engine/checkpoint/gguf.h"

namespace thaw::checkpoint {

/// Tokens that end a generation, ascending: the file's eos, eot and eom ids, and its control tokens
/// that well-known chat formats end a turn or a text with (`<|im_end|>`, `<|eot_id|>`, ...),
/// because many files name only one of theirs. Ids outside the vocabulary are left out.
std::vector<TokenId> end_tokens(const GgufFile& file);

}  // namespace thaw::checkpoint

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/model/model.h"

namespace thaw::model {

/// A batch as words, for ranks that run the same steps. Replaces what `words` holds.
void encode_batch(const Batch& batch, std::vector<std::int32_t>& words);

/// The batch that encode_batch() made words of. Its spans lie in `words`, which must outlive it.
/// Errors: kProtocol where the words are not those of a batch; what the batch says is the model's
/// to check.
Result<Batch> decode_batch(std::span<const std::int32_t> words);

}  // namespace thaw::model

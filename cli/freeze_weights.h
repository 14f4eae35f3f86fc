#pragma once

#include <cstdint>
#include <string>

#include "cli/weights_document.h"
#include "engine/base/result.h"
#include "engine/model/source.h"
#include "engine/text/tokenizer_spec.h"
#include "kvsnap/file_io.h"

namespace thaw::cli {

/// What one freeze wrote, over all shards.
struct FrozenWeights {
  std::uint64_t num_regions = 0;  ///< with the metadata
  std::uint64_t total_bytes = 0;  ///< of the payloads
  std::string fingerprint;
};

/// Writes the weights of `source` as .thaw files, `document.num_ranks` shards beside `path`
/// (kvsnap/FORMAT.md). `document` says where the model comes from; tensors, digests and fingerprint
/// are filled in here. Rank 0 appears last. Errors: those of layout_regions() and ContainerWriter.
Result<FrozenWeights> freeze_weights(kvsnap::FileIo& io, const model::ModelSource& source,
                                     const WeightsDocument& document, const std::string& path);

/// Names a tokenizer by everything that it is made of, whichever file that came from.
std::string hash_tokenizer(const text::TokenizerSpec& spec);

}  // namespace thaw::cli

#pragma once

#include <string>

#include "cli/weights_file.h"
#include "engine/base/result.h"
#include "engine/model/config.h"
#include "kvsnap/container_reader.h"

namespace thaw::cli {

/// Whether a container holds weights and nothing that says which: as files of the public project.
bool is_public_weights(const kvsnap::ContainerReader& reader);

/// Opens such a file as the weights of the model with `config`, taking its regions as the
/// parameters of vLLM's module, in their order. `document` says what else there is to say of the
/// model. The type follows from the sizes; of two types of 16 bits it is the one in which the
/// embeddings are numbers as embeddings are. Errors name file and region: kUnsupported where
/// regions and model do not fit each other, or where the weights are one of several shards.
Result<WeightsFile> open_public_weights(kvsnap::ContainerReader reader, WeightsDocument document,
                                        const model::ModelConfig& config, kvsnap::Verify checks);

}  // namespace thaw::cli

#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "engine/base/result.h"
#include "kvsnap/file_io.h"

namespace thaw::cli {

/// Whether a file begins as a container (.thaw, .thawkv) does.
bool is_container(const std::string& path);

/// What can be said of a container without a model, as `thaw info FILE --json` prints it
/// (docs/snapshots.md): regions, what its metadata says, and for KV the description beside it.
/// `verify`: reads every payload and compares it with its checksum, and the weights with their
/// digest, `num_threads` at once. Errors: those of ContainerReader and of the metadata; kDataLoss
/// where a payload is damaged.
Result<nlohmann::ordered_json> report_container(kvsnap::FileIo& io, const std::string& path,
                                                bool verify, int num_threads);

/// The same as lines for people.
std::string format_container_report(const nlohmann::ordered_json& report);

}  // namespace thaw::cli

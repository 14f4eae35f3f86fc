#pragma once

#include <cstdint>
#include <string>

namespace thaw::kvsnap {

/// The file of one tensor-parallel rank: "weights.thaw" for rank 0, "weights.rank3.thaw" for rank
/// 3; "weights" becomes "weights.rank3". Of a path or URI only the last name changes.
std::string shard_path(const std::string& path, std::uint32_t rank);

}  // namespace thaw::kvsnap

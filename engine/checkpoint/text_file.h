#pragma once

#include <cstddef>
#include <string>

#include "engine/base/result.h"

namespace thaw::checkpoint {

/// Largest JSON or template file that is read: tokenizers of 256k tokens take some 30 MB.
inline constexpr std::size_t kMaxTextFileBytes = std::size_t{128} << 20;

/// The whole of a regular file of at most `max_bytes`. Errors name the path: kNotFound where there
/// is none (a link that leads nowhere counts as none), kDataLoss where it is larger, kIo.
Result<std::string> read_text_file(const std::string& path,
                                   std::size_t max_bytes = kMaxTextFileBytes);

}  // namespace thaw::checkpoint

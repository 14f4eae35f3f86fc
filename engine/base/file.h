#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace thaw {

/// Writes all of `data` at `offset`. Errors: kIo, with the system's text.
Result<void> write_at(int fd, std::span<const std::byte> data, std::uint64_t offset);

/// Makes names that were created, renamed or removed in `directory` survive a crash.
Result<void> sync_directory(const std::string& directory);

/// Replaces the file at `path`: whoever reads it, and whatever crashes, sees the old text or the
/// new. Errors: kIo; the old file is untouched then.
Result<void> replace_file(const std::string& path, std::string_view text);

}  // namespace thaw

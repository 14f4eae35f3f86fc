#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "engine/base/result.h"
#include "kvsnap/file_io.h"

namespace thaw::kvsnap {

/// The whole of a file of at most `max_bytes`. Errors: FileIo::open()'s; kDataLoss where it is
/// larger or ended while it was read.
Result<std::string> read_whole_file(FileIo& io, const std::string& path, std::size_t max_bytes);

/// Writes NAME.thaw-incomplete, syncs, renames it to NAME, syncs the directory: NAME is the old
/// file or the new one, whole, whatever crashes. An error leaves the old one and removes what is
/// incomplete.
Result<void> write_whole_file(FileIo& io, const std::string& path, std::string_view bytes);

/// The same with the bytes of the file `from`; where the file system can, both share their place on
/// the disk and nothing is copied. Memory: one chunk.
Result<void> copy_whole_file(FileIo& io, const std::string& from, const std::string& to);

}  // namespace thaw::kvsnap

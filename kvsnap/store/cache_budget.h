#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

namespace thaw::kvsnap {

/// Suffixes of what ObjectCache puts beside a copy, or in its place.
inline constexpr std::string_view kCacheStampSuffix = ".version";
inline constexpr std::string_view kCachePartialSuffix = ".partial";

/// A copy is being used now: it goes after all others.
void note_cache_use(const std::string& path);

/// Removes copies of `directory`, and what fetches that broke off left, until `more_bytes` fit into
/// `max_bytes` with the rest; those that were not used for longest go first. What is in `keep`, was
/// used in the last minute, or is being filled, stays, even where that is too much. Whoever has a
/// copy open goes on reading it. The bytes that went.
std::uint64_t keep_cache_within(const std::string& directory, std::uint64_t max_bytes,
                                std::uint64_t more_bytes, const std::set<std::string>& keep);

}  // namespace thaw::kvsnap

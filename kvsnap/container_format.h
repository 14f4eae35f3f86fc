#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"

namespace thaw::kvsnap {

/// What a region of a container holds. Values are the format's (FORMAT.md).
enum class RegionKind : std::uint32_t { kWeights = 0, kKvBlock = 1, kMetadata = 2 };

/// "weights", "kv_live_block", "metadata".
const char* region_kind_name(RegionKind kind);

/// One payload of a container.
struct Region {
  RegionKind kind = RegionKind::kWeights;
  std::uint32_t logical_id = 0;
  std::uint64_t size_bytes = 0;
  std::uint64_t offset = 0;  ///< in the file
  std::uint32_t crc32c = 0;  ///< of the payload; 0 in version 1, which has none

  bool operator==(const Region&) const = default;
};

/// Everything before the payloads.
struct ContainerHeader {
  std::uint32_t version = 2;
  std::string engine_commit;  ///< 40 characters, or empty
  std::vector<Region> regions;

  /// Of the file: where the last payload ends.
  std::uint64_t end_bytes() const;
};

inline constexpr std::size_t kCommitBytes = 40;
inline constexpr std::size_t kContainerHeaderBytes = 4096;
inline constexpr std::size_t kRegionEntryBytes = 32;
/// Where our writer starts payloads: what O_DIRECT and a page table ask for.
inline constexpr std::uint64_t kPayloadAlignment = 4096;
/// Tables beyond this are refused: 32 MiB of them.
inline constexpr std::uint64_t kMaxRegions = 1 << 20;

/// Where the first payload goes behind a table of `num_regions`.
std::uint64_t first_payload_offset(std::uint64_t num_regions);

/// Header page and table in version 2. REQUIRES: engine_commit is empty or of 40 characters.
std::vector<std::byte> encode_container(const ContainerHeader& header);

/// What the header page says about the table; nothing in it is believed yet.
struct ContainerTable {
  std::uint32_t version = 0;
  std::string engine_commit;
  std::uint64_t num_regions = 0;
  std::uint64_t offset = 0;
};

/// Reads the first page of a file of `file_bytes`. The table lies inside the file then. Errors:
/// kInvalidArgument where it is no container, kUnsupported, kDataLoss; none names the file.
Result<ContainerTable> decode_container_page(std::span<const std::byte> page,
                                             std::uint64_t file_bytes);

/// Reads the table and checks every region: a known kind, inside the file, over nothing else,
/// named once. Errors: kDataLoss, kUnsupported. REQUIRES: `entries` are table.num_regions whole
/// entries.
Result<ContainerHeader> decode_container_table(const ContainerTable& table,
                                               std::span<const std::byte> entries,
                                               std::uint64_t file_bytes);

}  // namespace thaw::kvsnap

#include "kvsnap/container_format.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

namespace thaw::kvsnap {
namespace {

constexpr std::string_view kContainerMagic = "THAW";
constexpr std::uint32_t kWrittenVersion = 2;
constexpr std::size_t kCommitOffset = 24;

template <typename T>
void put(std::span<std::byte> out, std::size_t offset, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    out[offset + i] = static_cast<std::byte>(value >> (8 * i));
}

template <typename T>
T get(std::span<const std::byte> bytes, std::size_t offset) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value |= static_cast<T>(std::to_integer<T>(bytes[offset + i]) << (8 * i));
  return value;
}

Error damaged(const std::string& what) {
  return make_error(Errc::kDataLoss, what);
}

std::string region_name(std::size_t index, const Region& region) {
  return "region " + std::to_string(index) + " (" + region_kind_name(region.kind) + " " +
         std::to_string(region.logical_id) + ")";
}

std::string range(std::uint64_t offset, std::uint64_t size_bytes) {
  return std::to_string(size_bytes) + " bytes at byte " + std::to_string(offset);
}

Result<std::string> read_commit(std::span<const std::byte> page) {
  std::string commit;
  for (const std::byte byte : page.subspan(kCommitOffset, kCommitBytes))
    commit += static_cast<char>(byte);
  if (std::ranges::all_of(commit, [](char c) { return c == '\0'; })) return std::string();
  const bool is_text = std::ranges::all_of(commit, [](char c) { return c > ' ' && c < '\x7f'; });
  if (!is_text) return damaged("its engine commit is no text");
  return commit;
}

/// One entry, checked against the file alone.
Result<Region> read_entry(const ContainerTable& table, std::size_t index,
                          std::span<const std::byte> entry, std::uint64_t file_bytes) {
  const auto kind = get<std::uint32_t>(entry, 0);
  if (kind > static_cast<std::uint32_t>(RegionKind::kMetadata)) {
    return make_error(Errc::kUnsupported, "region " + std::to_string(index) + " is of kind " +
                                              std::to_string(kind) +
                                              "; known are 0 weights, 1 KV, 2 metadata");
  }
  Region region{static_cast<RegionKind>(kind), get<std::uint32_t>(entry, 4),
                get<std::uint64_t>(entry, 8), get<std::uint64_t>(entry, 16),
                get<std::uint32_t>(entry, 24)};
  if (table.version == 1 && get<std::uint64_t>(entry, 24) != 0) {
    return damaged(region_name(index, region) +
                   " has a checksum, which version 1 does not know: the version is damaged");
  }
  if (region.offset > file_bytes || region.size_bytes > file_bytes - region.offset) {
    return damaged(region_name(index, region) + " should have " +
                   range(region.offset, region.size_bytes) + ", but the file has " +
                   std::to_string(file_bytes) + ": it is truncated, or its table is damaged");
  }
  return region;
}

/// No payload over another, the table or the header.
Result<void> check_places(const ContainerTable& table, const std::vector<Region>& regions) {
  struct Place {
    std::uint64_t begin;
    std::uint64_t end;
    std::string name;
  };
  const std::uint64_t table_end = table.offset + table.num_regions * kRegionEntryBytes;
  std::vector<const Region*> sorted;
  for (const Region& region : regions)
    if (region.size_bytes > 0) sorted.push_back(&region);
  std::ranges::sort(sorted, {}, [](const Region* region) { return region->offset; });
  std::uint64_t end = kContainerHeaderBytes;
  for (const Region* region : sorted) {
    const auto index = static_cast<std::size_t>(region - regions.data());
    const std::uint64_t region_end = region->offset + region->size_bytes;
    if (region->offset < end || (region->offset < table_end && region_end > table.offset)) {
      return damaged(region_name(index, *region) + ", " +
                     range(region->offset, region->size_bytes) +
                     ", lies over what comes before it");
    }
    end = region_end;
  }
  return {};
}

}  // namespace

const char* region_kind_name(RegionKind kind) {
  constexpr std::array<const char*, 3> kNames{"weights", "kv_live_block", "metadata"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::uint64_t ContainerHeader::end_bytes() const {
  std::uint64_t end = kContainerHeaderBytes + regions.size() * kRegionEntryBytes;
  for (const Region& region : regions)
    end = std::max(end, region.offset + region.size_bytes);
  return end;
}

std::uint64_t first_payload_offset(std::uint64_t num_regions) {
  const std::uint64_t table_end = kContainerHeaderBytes + num_regions * kRegionEntryBytes;
  return (table_end + kPayloadAlignment - 1) / kPayloadAlignment * kPayloadAlignment;
}

std::vector<std::byte> encode_container(const ContainerHeader& header) {
  std::vector<std::byte> bytes(kContainerHeaderBytes + header.regions.size() * kRegionEntryBytes);
  const std::span<std::byte> out(bytes);
  for (std::size_t i = 0; i < kContainerMagic.size(); ++i)
    out[i] = static_cast<std::byte>(kContainerMagic[i]);
  put(out, 4, kWrittenVersion);
  put(out, 8, std::uint64_t{header.regions.size()});
  put(out, 16, std::uint64_t{kContainerHeaderBytes});
  for (std::size_t i = 0; i < std::min(kCommitBytes, header.engine_commit.size()); ++i)
    out[kCommitOffset + i] = static_cast<std::byte>(header.engine_commit[i]);
  for (std::size_t i = 0; i < header.regions.size(); ++i) {
    const Region& region = header.regions[i];
    const auto entry =
        out.subspan(kContainerHeaderBytes + i * kRegionEntryBytes, kRegionEntryBytes);
    put(entry, 0, static_cast<std::uint32_t>(region.kind));
    put(entry, 4, region.logical_id);
    put(entry, 8, region.size_bytes);
    put(entry, 16, region.offset);
    put(entry, 24, region.crc32c);
  }
  return bytes;
}

Result<ContainerTable> decode_container_page(std::span<const std::byte> page,
                                             std::uint64_t file_bytes) {
  const bool has_magic = page.size() >= kContainerMagic.size() &&
                         std::ranges::equal(kContainerMagic, page.first(kContainerMagic.size()), {},
                                            [](char c) { return std::byte(c); });
  if (!has_magic)
    return make_error(Errc::kInvalidArgument, "not a thaw container: it does not start with THAW");
  if (page.size() < kContainerHeaderBytes || file_bytes < kContainerHeaderBytes) {
    return damaged("truncated: it has " +
                   std::to_string(std::min<std::uint64_t>(page.size(), file_bytes)) +
                   " bytes, less than the header of " + std::to_string(kContainerHeaderBytes));
  }
  ContainerTable table;
  table.version = get<std::uint32_t>(page, 4);
  if (table.version != 1 && table.version != kWrittenVersion) {
    return make_error(Errc::kUnsupported, "container version " + std::to_string(table.version) +
                                              "; supported are 1 and 2");
  }
  table.num_regions = get<std::uint64_t>(page, 8);
  table.offset = get<std::uint64_t>(page, 16);
  if (table.num_regions > kMaxRegions) {
    return damaged("it claims " + std::to_string(table.num_regions) + " regions; at most " +
                   std::to_string(kMaxRegions) + " are right");
  }
  const std::uint64_t table_bytes = table.num_regions * kRegionEntryBytes;
  if (table.offset < kContainerHeaderBytes || table.offset > file_bytes ||
      table_bytes > file_bytes - table.offset) {
    return damaged("its table should have " + range(table.offset, table_bytes) +
                   ", but the file has " + std::to_string(file_bytes) +
                   ": it is truncated, or its header is damaged");
  }
  auto commit = read_commit(page);
  if (!commit) return std::move(commit).error();
  table.engine_commit = *std::move(commit);
  return table;
}

Result<ContainerHeader> decode_container_table(const ContainerTable& table,
                                               std::span<const std::byte> entries,
                                               std::uint64_t file_bytes) {
  ContainerHeader header{table.version, table.engine_commit, {}};
  std::set<std::pair<RegionKind, std::uint32_t>> names;
  for (std::size_t i = 0; i < table.num_regions; ++i) {
    const auto region =
        read_entry(table, i, entries.subspan(i * kRegionEntryBytes, kRegionEntryBytes), file_bytes);
    if (!region) return region.error();
    if (!names.emplace(region->kind, region->logical_id).second)
      return damaged(region_name(i, *region) + " occurs twice");
    header.regions.push_back(*region);
  }
  if (const auto placed = check_places(table, header.regions); !placed) return placed.error();
  return header;
}

}  // namespace thaw::kvsnap

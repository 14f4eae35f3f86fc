#pragma once

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kvsnap/container_reader.h"
#include "kvsnap/container_writer.h"
#include "tests/kvsnap/crash_io.h"

namespace thaw::kvsnap {

struct TestRegion {
  RegionKind kind = RegionKind::kWeights;
  std::uint32_t logical_id = 0;
  Bytes payload;

  bool operator==(const TestRegion&) const = default;
};

inline Bytes random_payload(std::size_t size_bytes, unsigned seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(size_bytes);
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>(random());
  return bytes;
}

inline Bytes text_payload(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

/// Writes and commits; payloads are given in pieces where they are long.
inline Result<void> write_regions(FileIo& io, const std::string& path,
                                  const std::vector<TestRegion>& regions,
                                  ContainerWriterOptions options = {}) {
  options.num_regions = regions.size();
  for (const TestRegion& region : regions)
    options.payload_bytes += region.payload.size();
  auto writer = ContainerWriter::create(io, path, options);
  if (!writer) return std::move(writer).error();
  for (const TestRegion& region : regions) {
    const std::span<const std::byte> payload(region.payload);
    const std::size_t cut = payload.size() / 3;
    auto added =
        (*writer)->add(region.kind, region.logical_id, {payload.first(cut), payload.subspan(cut)});
    if (!added) return added;
  }
  return (*writer)->commit();
}

/// Every region, or why not.
inline Result<std::vector<TestRegion>> read_regions(FileIo& io, const std::string& path,
                                                    ThreadPool& threads) {
  const auto reader = ContainerReader::open(io, path);
  if (!reader) return reader.error();
  std::vector<TestRegion> regions;
  for (const Region& region : reader->regions()) {
    TestRegion read{region.kind, region.logical_id,
                    Bytes(static_cast<std::size_t>(region.size_bytes))};
    if (auto done = reader->read(region, read.payload, threads); !done) return done.error();
    regions.push_back(std::move(read));
  }
  return regions;
}

}  // namespace thaw::kvsnap

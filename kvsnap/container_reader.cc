#include "kvsnap/container_reader.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>

#include "engine/base/crc32c.h"
#include "kvsnap/aligned_buffer.h"

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kReadBytes = std::size_t{4} << 20;

Error with_path(const std::string& path, Error error) {
  error.message = path + ": " + error.message;
  return error;
}

std::string hex(std::uint32_t value) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string text = "0x";
  for (int shift = 28; shift >= 0; shift -= 4)
    text += kDigits[value >> shift & 15];
  return text;
}

/// A part of a region that one thread reads at a time.
struct RegionPart {
  std::size_t region;
  std::uint64_t begin;  ///< in the region
  std::size_t size_bytes;
  std::uint32_t crc32c = 0;
};

}  // namespace

Result<ContainerReader> ContainerReader::open(FileIo& io, const std::string& path) {
  auto file = io.open(path);
  if (!file) return std::move(file).error();
  ContainerReader reader;
  reader.path_ = path;
  reader.file_ = *std::move(file);
  const auto size = reader.file_->size_bytes();
  if (!size) return size.error();
  reader.file_bytes_ = *size;

  const AlignedBuffer page(kContainerHeaderBytes);
  const auto page_bytes = reader.file_->read(page.bytes(), 0);
  if (!page_bytes) return page_bytes.error();
  const auto table = decode_container_page(page.bytes().first(*page_bytes), reader.file_bytes_);
  if (!table) return with_path(path, table.error());
  // No more than the file has: that was checked.
  std::vector<std::byte> entries(table->num_regions * kRegionEntryBytes);
  const AlignedBuffer buffer(reader.file_->alignment() == 1 ? 0 : kReadBytes);
  if (auto read = reader.read_range(table->offset, entries, buffer.bytes()); !read)
    return std::move(read).error();
  auto header = decode_container_table(*table, entries, reader.file_bytes_);
  if (!header) return with_path(path, std::move(header).error());
  reader.header_ = *std::move(header);
  return reader;
}

const Region* ContainerReader::find(RegionKind kind, std::uint32_t logical_id) const {
  const auto found = std::ranges::find_if(header_.regions, [&](const Region& region) {
    return region.kind == kind && region.logical_id == logical_id;
  });
  return found == header_.regions.end() ? nullptr : &*found;
}

/// Through `buffer` where the file takes aligned reads only and these are none.
Result<void> ContainerReader::read_range(std::uint64_t offset, std::span<std::byte> out,
                                         std::span<std::byte> buffer) const {
  const auto ended = [&] {
    return make_error(Errc::kDataLoss, path_ + ": the file ended while it was read");
  };
  const std::uint64_t alignment = file_->alignment();
  const bool is_aligned = offset % alignment == 0 && out.size() % alignment == 0 &&
                          reinterpret_cast<std::uintptr_t>(out.data()) % alignment == 0;
  if (is_aligned) {
    const auto read = file_->read(out, offset);
    if (!read) return read.error();
    return *read == out.size() ? Result<void>() : ended();
  }
  while (!out.empty()) {
    const std::uint64_t start = offset / alignment * alignment;
    const auto skip = static_cast<std::size_t>(offset - start);
    const std::size_t wanted = (skip + out.size() + alignment - 1) / alignment * alignment;
    const auto window = buffer.first(std::min(buffer.size(), wanted));
    const auto read = file_->read(window, start);
    if (!read) return read.error();
    if (*read <= skip) return ended();
    const std::size_t size = std::min(out.size(), *read - skip);
    std::memcpy(out.data(), window.data() + skip, size);
    out = out.subspan(size);
    offset += size;
  }
  return {};
}

/// Of each region. What is read goes to the spans of `out`, where there are any.
Result<std::vector<std::uint32_t>> ContainerReader::checksums(
    std::span<const Region> regions, std::span<const std::span<std::byte>> out,
    ThreadPool& threads) const {
  std::vector<RegionPart> chunks;
  for (std::size_t i = 0; i < regions.size(); ++i) {
    for (std::uint64_t begin = 0; begin < regions[i].size_bytes; begin += kReadBytes) {
      const std::uint64_t left = regions[i].size_bytes - begin;
      chunks.push_back(
          {i, begin, static_cast<std::size_t>(std::min<std::uint64_t>(left, kReadBytes))});
    }
  }
  std::size_t largest = 0;
  for (const RegionPart& chunk : chunks)
    largest = std::max(largest, chunk.size_bytes);
  // Half for the chunk, half (which may need a page more) for reads that are not aligned.
  const std::size_t half = (largest + 2 * AlignedBuffer::kAlignment - 1) /
                           AlignedBuffer::kAlignment * AlignedBuffer::kAlignment;
  std::mutex mutex;
  std::optional<Error> error;  // the first; guarded by mutex
  std::vector<AlignedBuffer> idle;  // guarded by mutex
  const auto take_buffer = [&] {
    const std::lock_guard lock(mutex);
    if (idle.empty()) return AlignedBuffer(2 * half);
    AlignedBuffer buffer = std::move(idle.back());
    idle.pop_back();
    return buffer;
  };
  threads.parallel_for(static_cast<int>(chunks.size()), [&](int task) {
    RegionPart& chunk = chunks[static_cast<std::size_t>(task)];
    AlignedBuffer buffer = take_buffer();
    const auto bytes = out.empty() ? buffer.bytes().first(chunk.size_bytes)
                                   : out[chunk.region].subspan(chunk.begin, chunk.size_bytes);
    auto read =
        read_range(regions[chunk.region].offset + chunk.begin, bytes, buffer.bytes().subspan(half));
    if (read) chunk.crc32c = crc32c(bytes);
    const std::lock_guard lock(mutex);
    if (!read && !error) error = std::move(read).error();
    idle.push_back(std::move(buffer));
  });
  if (error) return *error;
  std::vector<std::uint32_t> found(regions.size());
  for (const RegionPart& chunk : chunks)
    found[chunk.region] = crc32c_combine(found[chunk.region], chunk.crc32c, chunk.size_bytes);
  return found;
}

Result<void> ContainerReader::compare(std::span<const Region> regions,
                                      const std::vector<std::uint32_t>& found) const {
  for (std::size_t i = 0; i < regions.size() && has_checksums(); ++i) {
    const Region& region = regions[i];
    if (region.crc32c == found[i]) continue;
    return make_error(
        Errc::kDataLoss,
        path_ + ": " + region_kind_name(region.kind) + " " + std::to_string(region.logical_id) +
            " is damaged: the checksum of its " + std::to_string(region.size_bytes) + " bytes is " +
            hex(found[i]) + ", not " + hex(region.crc32c) +
            (region.crc32c == 0 ? ", which some writers put for none (THAW_VERIFY=0 skips checks)"
                                : ""));
  }
  return {};
}

Result<void> ContainerReader::read(const Region& region, std::span<std::byte> out,
                                   ThreadPool& threads, Verify verify) const {
  const std::span<const Region> one(&region, 1);
  const std::span<const std::span<std::byte>> outs(&out, 1);
  const auto found = checksums(one, outs, threads);
  if (!found) return found.error();
  return verify == Verify::kChecksums ? compare(one, *found) : Result<void>();
}

Result<void> ContainerReader::read_all(std::span<const Region> regions,
                                       std::span<const std::span<std::byte>> out,
                                       ThreadPool& threads) const {
  // Neighbours in the file that are neighbours in memory too are read in one go.
  struct Run {
    std::size_t first;
    std::size_t end;
    std::uint64_t size_bytes;
  };
  std::vector<Run> runs;
  for (std::size_t i = 0; i < regions.size(); ++i) {
    const std::uint64_t size = regions[i].size_bytes;
    const bool goes_on = !runs.empty() && runs.back().size_bytes + size <= kReadBytes &&
                         regions[i - 1].offset + regions[i - 1].size_bytes == regions[i].offset &&
                         out[i - 1].data() + out[i - 1].size() == out[i].data();
    if (!goes_on) runs.push_back({i, i, 0});
    runs.back().end = i + 1;
    runs.back().size_bytes += size;
  }
  std::vector<std::uint32_t> found(regions.size());
  std::mutex mutex;
  std::optional<Error> error;  // the first; guarded by mutex
  threads.parallel_for(static_cast<int>(runs.size()), [&](int task) {
    const Run& run = runs[static_cast<std::size_t>(task)];
    const AlignedBuffer buffer(file_->alignment() == 1 ? 0 : kReadBytes);
    const std::span<std::byte> bytes(out[run.first].data(),
                                     static_cast<std::size_t>(run.size_bytes));
    auto read = read_range(regions[run.first].offset, bytes, buffer.bytes());
    for (std::size_t i = run.first; i < run.end && read; ++i)
      found[i] = crc32c(out[i]);
    const std::lock_guard lock(mutex);
    if (!read && !error) error = std::move(read).error();
  });
  if (error) return *error;
  return compare(regions, found);
}

Result<std::string> ContainerReader::read_text(const Region& region, std::size_t max_bytes,
                                               ThreadPool& threads) const {
  if (region.size_bytes > max_bytes) {
    return make_error(Errc::kDataLoss, path_ + ": " + region_kind_name(region.kind) + " " +
                                           std::to_string(region.logical_id) + " has " +
                                           std::to_string(region.size_bytes) + " bytes; at most " +
                                           std::to_string(max_bytes) + " are right");
  }
  std::string text(static_cast<std::size_t>(region.size_bytes), '\0');
  auto read =
      this->read(region, std::as_writable_bytes(std::span(text.data(), text.size())), threads);
  if (!read) return std::move(read).error();
  return text;
}

Result<void> ContainerReader::verify(ThreadPool& threads) const {
  const auto found = checksums(header_.regions, {}, threads);
  if (!found) return found.error();
  return compare(header_.regions, *found);
}

}  // namespace thaw::kvsnap

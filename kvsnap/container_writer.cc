#include "kvsnap/container_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/base/crc32c.h"
#include "kvsnap/aligned_buffer.h"

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kWaitingPerThread = 2;

std::uint64_t aligned_up(std::uint64_t value) {
  return (value + kPayloadAlignment - 1) / kPayloadAlignment * kPayloadAlignment;
}

/// Calls `take` with the parts of `pieces` that lie in bytes `begin` to `end` of their sequence.
template <typename Take>
Result<void> for_range(const ContainerWriter::Pieces& pieces, std::uint64_t begin,
                       std::uint64_t end, const Take& take) {
  std::uint64_t start = 0;
  for (const std::span<const std::byte> piece : pieces) {
    const std::uint64_t first = std::max(begin, start);
    const std::uint64_t last = std::min(end, start + piece.size());
    if (first < last) {
      if (auto taken = take(piece.subspan(first - start, last - first)); !taken) return taken;
    }
    start += piece.size();
    if (start >= end) break;
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<ContainerWriter>> ContainerWriter::create(FileIo& io,
                                                                 const std::string& path,
                                                                 ContainerWriterOptions options) {
  if (!options.engine_commit.empty() && options.engine_commit.size() != kCommitBytes) {
    return make_error(Errc::kInvalidArgument, path + ": an engine commit has 40 hex digits, not " +
                                                  std::to_string(options.engine_commit.size()) +
                                                  " characters");
  }
  if (options.num_regions > kMaxRegions) {
    return make_error(Errc::kInvalidArgument, path + ": " + std::to_string(options.num_regions) +
                                                  " regions do not fit; at most " +
                                                  std::to_string(kMaxRegions) + " do");
  }
  options.num_threads = std::max(1, options.num_threads);
  options.chunk_bytes = static_cast<std::size_t>(
      aligned_up(std::max<std::uint64_t>(options.chunk_bytes, kPayloadAlignment)));
  const std::uint64_t reserve =
      first_payload_offset(options.num_regions) +
      aligned_up(options.payload_bytes + options.num_regions * (kPayloadAlignment / 2));
  auto file = io.create(path + kIncompleteSuffix, options.payload_bytes == 0 ? 0 : reserve);
  if (!file) return std::move(file).error();
  return std::unique_ptr<ContainerWriter>(
      new ContainerWriter(io, path, std::move(options), *std::move(file)));
}

ContainerWriter::ContainerWriter(FileIo& io, std::string path, ContainerWriterOptions options,
                                 std::unique_ptr<IoFile> file)
    : io_(&io),
      path_(std::move(path)),
      options_(std::move(options)),
      file_(std::move(file)),
      next_offset_(first_payload_offset(options_.num_regions)) {
  for (int i = 0; i < options_.num_threads; ++i)
    threads_.emplace_back([this] { run(); });
}

ContainerWriter::~ContainerWriter() {
  stop_threads();
  if (is_renamed_) return;
  // Removed while it is still locked, so that nobody else's file goes.
  static_cast<void>(io_->remove(incomplete_path()));
}

void ContainerWriter::stop_threads() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    waiting_.clear();
  }
  changed_.notify_all();
  threads_.clear();
}

Result<void> ContainerWriter::add(RegionKind kind, std::uint32_t logical_id, Pieces pieces) {
  std::uint64_t size = 0;
  for (const auto& piece : pieces)
    size += piece.size();
  const std::size_t num_chunks = (size + options_.chunk_bytes - 1) / options_.chunk_bytes;
  std::unique_lock lock(mutex_);
  if (regions_.size() == options_.num_regions) {
    return make_error(Errc::kInvalidArgument, path_ + ": more regions than the " +
                                                  std::to_string(options_.num_regions) +
                                                  " that were announced");
  }
  regions_.push_back({{kind, logical_id, size, next_offset_, 0},
                      std::move(pieces),
                      std::vector<std::uint32_t>(num_chunks)});
  next_offset_ = aligned_up(next_offset_ + size);
  const std::size_t most = kWaitingPerThread * static_cast<std::size_t>(options_.num_threads);
  for (std::size_t i = 0; i < num_chunks; ++i) {
    changed_.wait(lock, [&] { return waiting_.size() < most || error_.has_value(); });
    if (error_) return *error_;
    waiting_.push_back({regions_.size() - 1, i});
    changed_.notify_all();
  }
  return {};
}

void ContainerWriter::run() {
  AlignedBuffer buffer(file_->alignment() == 1 ? 0 : options_.chunk_bytes);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    const Chunk chunk = waiting_.front();
    waiting_.pop_front();
    Pending& pending = regions_[chunk.region];
    ++writing_;
    lock.unlock();
    changed_.notify_all();
    auto written = write_chunk(pending, chunk.index, buffer.bytes());
    lock.lock();
    --writing_;
    if (!written && !error_) {
      error_ = std::move(written).error();
      waiting_.clear();
    }
    changed_.notify_all();
  }
}

Result<void> ContainerWriter::write_chunk(Pending& pending, std::size_t index,
                                          std::span<std::byte> buffer) {
  const std::uint64_t begin = index * options_.chunk_bytes;
  const std::uint64_t end =
      std::min<std::uint64_t>(begin + options_.chunk_bytes, pending.region.size_bytes);
  std::uint64_t offset = pending.region.offset + begin;
  std::uint32_t& checksum = pending.chunk_checksums[index];
  if (file_->alignment() == 1) {
    return for_range(pending.pieces, begin, end,
                     [&](std::span<const std::byte> part) -> Result<void> {
                       checksum = crc32c(part, checksum);
                       auto written = file_->write(part, offset);
                       offset += part.size();
                       return written;
                     });
  }
  std::size_t filled = 0;
  static_cast<void>(
      for_range(pending.pieces, begin, end, [&](std::span<const std::byte> part) -> Result<void> {
        std::memcpy(buffer.data() + filled, part.data(), part.size());
        filled += part.size();
        return {};
      }));
  checksum = crc32c(buffer.first(filled));
  const auto whole = static_cast<std::size_t>(aligned_up(filled));
  std::memset(buffer.data() + filled, 0, whole - filled);
  return file_->write(buffer.first(whole), offset);
}

Result<void> ContainerWriter::write_header() {
  ContainerHeader header;
  header.engine_commit = options_.engine_commit;
  for (Pending& pending : regions_) {
    std::uint64_t left = pending.region.size_bytes;
    for (const std::uint32_t checksum : pending.chunk_checksums) {
      const std::uint64_t size = std::min<std::uint64_t>(left, options_.chunk_bytes);
      pending.region.crc32c = crc32c_combine(pending.region.crc32c, checksum, size);
      left -= size;
    }
    header.regions.push_back(pending.region);
  }
  const std::vector<std::byte> bytes = encode_container(header);
  const AlignedBuffer page(bytes.size());
  std::memset(page.bytes().data(), 0, page.bytes().size());
  std::memcpy(page.bytes().data(), bytes.data(), bytes.size());
  if (auto written = file_->write(page.bytes(), 0); !written) return written;
  return file_->set_size(header.end_bytes());
}

Result<void> ContainerWriter::commit() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return error_ || (waiting_.empty() && writing_ == 0); });
    if (error_) return *error_;
    if (regions_.size() != options_.num_regions) {
      return make_error(Errc::kInvalidArgument,
                        path_ + ": " + std::to_string(regions_.size()) + " regions of the " +
                            std::to_string(options_.num_regions) + " that were announced");
    }
  }
  stop_threads();
  if (auto written = write_header(); !written) return written;
  if (auto synced = file_->sync(); !synced) return synced;
  if (auto renamed = io_->rename(incomplete_path(), path_); !renamed) return renamed;
  is_renamed_ = true;
  return io_->sync_directory_of(path_);
}

}  // namespace thaw::kvsnap

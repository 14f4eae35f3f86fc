#include "kvsnap/kv_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kvsnap/aligned_buffer.h"
#include "kvsnap/container_writer.h"
#include "kvsnap/kv_description.h"

namespace thaw::kvsnap {
namespace {

constexpr int kWriterThreads = 4;

/// Replaces a small file so that the old or the new one is there, whatever crashes.
Result<void> write_text(FileIo& io, const std::string& path, const std::string& text) {
  const std::string incomplete = path + kIncompleteSuffix;
  auto file = io.create(incomplete, 0);
  if (!file) return std::move(file).error();
  const auto written = [&]() -> Result<void> {
    AlignedBuffer buffer(text.size());
    std::fill(buffer.bytes().begin(), buffer.bytes().end(), std::byte{0});
    std::memcpy(buffer.bytes().data(), text.data(), text.size());
    if (auto done = (*file)->write(buffer.bytes(), 0); !done) return done;
    if (auto done = (*file)->set_size(text.size()); !done) return done;
    if (auto done = (*file)->sync(); !done) return done;
    return io.rename(incomplete, path);
  }();
  // While it is still locked, so that nobody else's file goes.
  if (!written) static_cast<void>(io.remove(incomplete));
  return written;
}

}  // namespace

Result<void> write_kv_file(FileIo& io, const std::string& path, const KvDocument& document,
                           std::span<const std::span<const std::byte>> blocks) {
  if (blocks.size() != document.num_blocks()) {
    return make_error(Errc::kInvalidArgument, path + ": " + std::to_string(blocks.size()) +
                                                  " blocks for a document of " +
                                                  std::to_string(document.num_blocks()));
  }
  auto metadata = document.to_json();
  if (!metadata) return std::move(metadata).error();
  ContainerWriterOptions options;
  options.num_regions = blocks.size() + 1;
  options.payload_bytes = document.payload_bytes() + metadata->size();
  options.num_threads = kWriterThreads;
  auto writer = ContainerWriter::create(io, path, options);
  if (!writer) return std::move(writer).error();
  for (std::size_t block = 0; block < blocks.size(); ++block) {
    auto added =
        (*writer)->add(RegionKind::kKvBlock, static_cast<std::uint32_t>(block), {blocks[block]});
    if (!added) return added;
  }
  const std::span<const char> text(*metadata);
  if (auto added = (*writer)->add(RegionKind::kMetadata, 0, {std::as_bytes(text)}); !added)
    return added;
  // First: whoever sees the file finds its description beside it.
  const std::string sidecar = path + kKvDescriptionSuffix;
  if (auto written = write_text(io, sidecar, document.to_sidecar()); !written) return written;
  auto committed = (*writer)->commit();
  // It would describe nothing.
  if (!committed && !io.open(path)) static_cast<void>(io.remove(sidecar));
  return committed;
}

Result<KvFile> KvFile::open(FileIo& io, const std::string& path, ThreadPool& threads) {
  auto reader = ContainerReader::open(io, path);
  if (!reader) return std::move(reader).error();
  const auto refuse = [&](Errc code, const std::string& what) {
    return make_error(code, path + ": " + what);
  };
  const Region* metadata = reader->find(RegionKind::kMetadata, 0);
  if (metadata == nullptr) {
    return refuse(Errc::kUnsupported,
                  "it says neither tokens nor weights, as files of the public project do not");
  }
  const auto text = reader->read_text(*metadata, kMaxKvDocumentBytes, threads);
  if (!text) return text.error();
  auto document = KvDocument::parse(*text);
  if (!document) return refuse(document.error().code, document.error().message);
  std::vector<Region> blocks;
  blocks.reserve(reader->regions().size());
  for (const Region& region : reader->regions()) {
    if (region.kind != RegionKind::kKvBlock) continue;
    if (region.logical_id != blocks.size() || region.size_bytes != document->block_bytes) {
      return refuse(Errc::kDataLoss, "block " + std::to_string(blocks.size()) +
                                         " is not where the metadata says, or of another size");
    }
    blocks.push_back(region);
  }
  if (blocks.size() != document->num_blocks()) {
    return refuse(Errc::kDataLoss, "it holds " + std::to_string(blocks.size()) +
                                       " blocks; its tokens have " +
                                       std::to_string(document->num_blocks()));
  }
  return KvFile(*std::move(reader), *std::move(document), std::move(blocks));
}

Result<void> KvFile::read(std::span<const std::span<std::byte>> blocks, ThreadPool& threads) const {
  return reader_.read_all(std::span(blocks_).first(blocks.size()), blocks, threads);
}

}  // namespace thaw::kvsnap

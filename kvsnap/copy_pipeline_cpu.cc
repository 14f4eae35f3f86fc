#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <utility>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "engine/base/crc32c.h"
#include "kvsnap/copy_pipeline.h"

namespace thaw::kvsnap {
namespace {

// A task: enough work to share out evenly, and few enough checksums to combine.
constexpr std::size_t kTaskBytes = std::size_t{512} << 10;
// Sequences that decode wait no longer than a copy of so many chunks takes.
constexpr std::size_t kStepChunks = 32;
// Copied, then checksummed while it is still in the first-level cache.
constexpr std::size_t kSliceBytes = std::size_t{16} << 10;

// Destinations are next read much later, or by another core: stores that bypass the cache save
// reading each line before it is overwritten, a third of the memory traffic.
void copy_streaming(std::byte* destination, const std::byte* source, std::size_t size_bytes) {
#if defined(__x86_64__)
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(destination) % 64;
  const std::size_t head = std::min(size_bytes, misaligned == 0 ? 0 : 64 - misaligned);
  std::memcpy(destination, source, head);
  std::size_t at = head;
  for (; at + 64 <= size_bytes; at += 64) {
    const auto* from = reinterpret_cast<const __m128i*>(source + at);
    auto* to = reinterpret_cast<__m128i*>(destination + at);
    const __m128i a = _mm_loadu_si128(from);
    const __m128i b = _mm_loadu_si128(from + 1);
    const __m128i c = _mm_loadu_si128(from + 2);
    const __m128i d = _mm_loadu_si128(from + 3);
    _mm_stream_si128(to, a);
    _mm_stream_si128(to + 1, b);
    _mm_stream_si128(to + 2, c);
    _mm_stream_si128(to + 3, d);
  }
  std::memcpy(destination + at, source + at, size_bytes - at);
#else
  std::memcpy(destination, source, size_bytes);
#endif
}

// Streaming stores are ordered by nothing but a fence.
void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Up to kTaskBytes of one extent: the part of its pieces that one task copies.
struct Chunk {
  const ExtentCopy* extent = nullptr;
  std::size_t first_piece = 0;
  std::size_t offset = 0;  ///< into the first piece
  std::size_t size_bytes = 0;
  std::uint32_t crc = 0;
};

void run_chunk(Chunk& chunk, bool checked) {
  std::uint32_t crc = 0;
  std::size_t left = chunk.size_bytes;
  std::size_t offset = chunk.offset;
  for (std::size_t piece = chunk.first_piece; left > 0;) {
    const CopyPiece& copy = chunk.extent->pieces[piece];
    const std::size_t size = std::min({kSliceBytes, left, copy.size_bytes - offset});
    if (copy.destination != nullptr) {
      copy_streaming(copy.destination + offset, copy.source + offset, size);
    }
    if (checked) crc = crc32c({copy.source + offset, size}, crc);
    left -= size;
    offset += size;
    if (offset == copy.size_bytes) {
      offset = 0;
      ++piece;
    }
  }
  finish_streaming();
  chunk.crc = crc;
}

std::vector<Chunk> cut_into_chunks(const std::vector<ExtentCopy>& extents) {
  std::vector<Chunk> chunks;
  for (const ExtentCopy& extent : extents) {
    std::size_t room = 0;  // in the chunk being filled
    for (std::size_t piece = 0; piece < extent.pieces.size(); ++piece) {
      for (std::size_t offset = 0; offset < extent.pieces[piece].size_bytes;) {
        if (room == 0) {
          chunks.push_back({&extent, piece, offset, 0, 0});
          room = kTaskBytes;
        }
        const std::size_t size = std::min(room, extent.pieces[piece].size_bytes - offset);
        chunks.back().size_bytes += size;
        room -= size;
        offset += size;
      }
    }
  }
  return chunks;
}

/// A copy under way. Chunks point into `extents`.
struct Copy {
  bool checked = true;  ///< has checksums
  std::vector<ExtentCopy> extents;
  std::vector<Chunk> chunks;
  std::size_t next = 0;  ///< chunk

  bool done() const { return next == chunks.size(); }
  /// Of the extents whose chunks are all done.
  std::vector<std::uint32_t> checksums() const {
    std::vector<std::uint32_t> sums;
    for (std::size_t i = 0; checked && i < next; ++i) {
      const Chunk& chunk = chunks[i];
      sums.resize(static_cast<std::size_t>(chunk.extent - extents.data()) + 1, 0);
      sums.back() = crc32c_combine(sums.back(), chunk.crc, chunk.size_bytes);
    }
    const bool cut = !sums.empty() && !done() && chunks[next].extent == chunks[next - 1].extent;
    if (cut) sums.pop_back();
    return sums;
  }
};

class CpuCopyPipeline final : public CopyPipeline {
 public:
  explicit CpuCopyPipeline(ThreadPool& threads) : threads_(&threads) {}

  Result<CopyHandle> launch(CopyDirection direction, std::vector<ExtentCopy> extents) override {
    Copy& copy = copies_[++last_handle_];
    copy.checked = direction != CopyDirection::kFromPeer;
    copy.extents = std::move(extents);
    copy.chunks = cut_into_chunks(copy.extents);
    step(copy);
    return last_handle_;
  }

  void advance() override {
    for (auto& [handle, copy] : copies_) {
      if (copy.done()) continue;
      return step(copy);
    }
  }

  bool done(CopyHandle handle) const override {
    const auto found = copies_.find(handle);
    return found == copies_.end() || found->second.done();
  }

  std::vector<std::uint32_t> checked(CopyHandle handle) const override {
    const auto found = copies_.find(handle);
    return found == copies_.end() ? std::vector<std::uint32_t>{} : found->second.checksums();
  }

  Result<std::vector<std::uint32_t>> collect(CopyHandle handle) override {
    auto found = copies_.extract(handle);
    if (found.empty()) {
      return make_error(Errc::kInternal,
                        "copy " + std::to_string(handle) + " was never launched, or collected");
    }
    Copy& copy = found.mapped();
    while (!copy.done())
      step(copy);
    std::vector<std::uint32_t> sums = copy.checksums();
    if (copy.checked) sums.resize(copy.extents.size(), 0);  // one of no bytes has one too
    return sums;
  }

 private:
  void step(Copy& copy) {
    const std::size_t count = std::min(kStepChunks, copy.chunks.size() - copy.next);
    threads_->parallel_for(static_cast<int>(count), [&](int task) {
      run_chunk(copy.chunks[copy.next + static_cast<std::size_t>(task)], copy.checked);
    });
    copy.next += count;
  }

  ThreadPool* threads_;
  CopyHandle last_handle_ = 0;
  std::map<CopyHandle, Copy> copies_;
};

}  // namespace

std::unique_ptr<CopyPipeline> make_cpu_copy_pipeline(ThreadPool& threads) {
  return std::make_unique<CpuCopyPipeline>(threads);
}

}  // namespace thaw::kvsnap

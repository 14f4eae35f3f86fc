#include "engine/model/cuda/device_image.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "engine/base/error.h"
#include "engine/base/hash.h"
#include "engine/cuda/check.h"
#include "engine/cuda/pinned_pages.h"
#include "engine/cuda/wait.h"
#include "engine/model/cuda/digest.h"

namespace thaw::model {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxReaders = 64;
// On an H100 machine sixteen with pieces of 3 MiB bring 51 GB/s out of the page cache, where the
// copy engine takes 55. It rests 3 us between copies, which makes smaller pieces slower; a larger
// ring leaves the processor's cache.
constexpr int kMostReaders = 16;
constexpr std::size_t kMaxSlots = 16;

/// One upload: readers take pieces of the file in order and bring each to its place.
class Upload {
 public:
  Upload(int fd, cuda::DeviceSpan<std::byte> to, const UploadOptions& options, int readers)
      : fd_(fd),
        to_(to),
        slot_bytes_(options.slot_bytes),
        slots_(options.slots),
        deadline_(Clock::now() + options.timeout),
        ring_(slot_bytes_ * slots_ * static_cast<std::size_t>(readers)) {
    cuda::check(cudaGetDevice(&device_), "current device");
  }

  Result<void> run(int readers) {
    {
      std::vector<std::jthread> threads;
      for (int i = 1; i < readers; ++i)
        threads.emplace_back([this, i] { read(i); });
      read(0);
    }
    if (error_) return *error_;
    return {};
  }

 private:
  /// A reader's whole work, on its own stream.
  void read(int reader) {
    try {
      const cuda::DeviceScope scope(device_);
      const cuda::Stream stream;
      std::vector<cuda::Event> copied(slots_);
      try {
        copy_pieces(reader, stream, copied);
        for (const cuda::Event& event : copied)
          wait(event);  // one that was never recorded is done
      } catch (...) {
        cudaStreamSynchronize(stream.view().get());  // the ring may go only when no copy reads it
        throw;
      }
    } catch (const Exception& failure) {
      fail(failure.error());
    }
  }

  void copy_pieces(int reader, const cuda::Stream& stream, std::vector<cuda::Event>& copied) {
    std::byte* const ring = ring_.data() + static_cast<std::size_t>(reader) * slots_ * slot_bytes_;
    const std::size_t pieces = (to_.size() + slot_bytes_ - 1) / slot_bytes_;
    for (std::size_t turn = 0; !failed_; ++turn) {
      const std::size_t piece = next_piece_++;
      if (piece >= pieces) return;
      const std::size_t slot = turn % slots_;
      if (turn >= slots_) wait(copied[slot]);
      std::byte* const at = ring + slot * slot_bytes_;
      const std::size_t offset = piece * slot_bytes_;
      const std::size_t size = std::min(slot_bytes_, to_.size() - offset);
      read_at(at, size, offset);
      cuda::copy_to_device<std::byte>({at, size}, to_.subspan(offset, size), stream);
      copied[slot].record(stream);
    }
  }

  void wait(const cuda::Event& event) const {
    if (!cuda::wait_until(event, deadline_, std::chrono::milliseconds(2)))
      throw Exception(make_error(Errc::kDeadlineExceeded, "image upload: a copy is not done"));
  }

  void read_at(std::byte* to, std::size_t size, std::size_t offset) const {
    while (size != 0) {
      if (Clock::now() > deadline_) {
        throw Exception(make_error(
            Errc::kDeadlineExceeded,
            "image upload: " + std::to_string(offset) + " bytes of the file have been read"));
      }
      const ssize_t got = ::pread(fd_, to, size, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw Exception(io_error("image upload: cannot read the file", errno));
      if (got == 0) {
        throw Exception(make_error(Errc::kDataLoss,
                                   "image upload: the file ends at byte " + std::to_string(offset) +
                                       "; the image has " + std::to_string(to_.size())));
      }
      to += got;
      offset += static_cast<std::size_t>(got);
      size -= static_cast<std::size_t>(got);
    }
  }

  void fail(const Error& error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
    failed_ = true;
  }

  int fd_;
  cuda::DeviceSpan<std::byte> to_;
  std::size_t slot_bytes_;
  std::size_t slots_;
  Clock::time_point deadline_;
  cuda::PinnedPages ring_;
  int device_ = 0;
  std::atomic<std::size_t> next_piece_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::optional<Error> error_;  // guarded by mutex_ until the threads have been joined
};

Hash128 summarise(const std::vector<std::uint64_t>& chunks, std::size_t bytes) {
  Hasher hasher;
  hasher.update(std::as_bytes(std::span(&bytes, 1)));
  hasher.update(std::as_bytes(std::span(chunks)));
  return hasher.finish();
}

}  // namespace

Result<UploadReport> upload_image(int fd, cuda::DeviceSpan<std::byte> to,
                                  const UploadOptions& options) try {
  if (options.slot_bytes == 0 || options.slots == 0 || options.slots > kMaxSlots ||
      options.readers < 0 || options.readers > kMaxReaders) {
    return make_error(Errc::kInvalidArgument,
                      "image upload: " + std::to_string(options.readers) + " readers of " +
                          std::to_string(options.slots) + " slots of " +
                          std::to_string(options.slot_bytes) + " bytes; 0 to " +
                          std::to_string(kMaxReaders) + " readers, 1 to " +
                          std::to_string(kMaxSlots) + " slots, and some bytes, are right");
  }
  const auto started = Clock::now();
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const int readers = options.readers == 0 ? std::min(cores, kMostReaders) : options.readers;
  Upload upload(fd, to, options, readers);
  const auto pinned = Clock::now();
  if (auto done = upload.run(readers); !done) return done.error();
  return UploadReport{to.size(), Clock::now() - started, pinned - started};
} catch (const Exception& failure) {
  return failure.error();
}

Result<ChunkDigests> device_digests(cuda::DeviceSpan<const std::byte> bytes,
                                    cuda::StreamView stream) try {
  if (bytes.size() % digest::kUnitBytes != 0) {
    return make_error(Errc::kInvalidArgument, "image digest: " + std::to_string(bytes.size()) +
                                                  " bytes; a multiple of 16 is right");
  }
  ChunkDigests digests;
  digests.chunks.resize((bytes.size() + kDigestChunkBytes - 1) / kDigestChunkBytes);
  const cuda::DeviceBuffer<std::uint64_t> on_device(digests.chunks.size(), stream);
  digest::enqueue(bytes.data(), bytes.size(), kDigestChunkBytes, on_device.data(), stream);
  cuda::copy_to_host<std::uint64_t>(on_device, digests.chunks, stream);
  stream.synchronize();
  digests.summary = summarise(digests.chunks, bytes.size());
  return digests;
} catch (const Exception& failure) {
  return failure.error();
}

ChunkDigests host_digests(std::span<const std::byte> bytes) {
  ChunkDigests digests;
  for (std::size_t first = 0; first < bytes.size(); first += kDigestChunkBytes) {
    const auto chunk = bytes.subspan(first, std::min(kDigestChunkBytes, bytes.size() - first));
    std::vector<digest::Lane> lanes(digest::kLanes);
    for (std::size_t unit = 0; unit * digest::kUnitBytes < chunk.size(); ++unit) {
      std::uint32_t words[4];
      std::memcpy(words, chunk.data() + unit * digest::kUnitBytes, sizeof words);
      for (int i = 0; i < 4; ++i) {
        std::uint32_t& state = lanes[unit % digest::kLanes].words[i];
        state = digest::mix_word(state, words[i]);
      }
    }
    std::uint64_t sum = 0;
    for (int lane = 0; lane < digest::kLanes; ++lane)
      sum += digest::finish(lanes[static_cast<std::size_t>(lane)], lane);
    digests.chunks.push_back(sum);
  }
  digests.summary = summarise(digests.chunks, bytes.size());
  return digests;
}

Result<void> verify_device_image(cuda::DeviceSpan<const std::byte> bytes, const Hash128& expected,
                                 cuda::StreamView stream) {
  const auto digests = device_digests(bytes, stream);
  if (!digests) return digests.error();
  if (digests->summary == expected) return {};
  return make_error(Errc::kDataLoss, "image digest: the device holds " + digests->summary.to_hex() +
                                         ", not " + expected.to_hex());
}

}  // namespace thaw::model

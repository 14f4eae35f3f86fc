#include "engine/model/cuda/shard_upload.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/error.h"
#include "engine/cuda/check.h"
#include "engine/cuda/wait.h"

namespace thaw::model {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kSlotsPerReader = 2;  // one is filled while the other is copied

/// Copies cut into pieces of at most `slot_bytes`.
std::vector<ShardCopy> pieces_of(const ShardPlan& plan, std::size_t slot_bytes) {
  std::vector<ShardCopy> pieces;
  for (const ShardCopy& copy : plan.copies)
    for (std::uint64_t done = 0; done < copy.bytes; done += slot_bytes)
      pieces.push_back({copy.from + done, copy.to + done,
                        std::min<std::uint64_t>(slot_bytes, copy.bytes - done)});
  return pieces;
}

class ShardUpload {
 public:
  ShardUpload(int fd, std::vector<ShardCopy> pieces, cuda::DeviceSpan<std::byte> to,
              const UploadOptions& options, int readers)
      : fd_(fd),
        pieces_(std::move(pieces)),
        to_(to),
        slot_bytes_(options.slot_bytes),
        deadline_(Clock::now() + options.timeout),
        ring_(options.slot_bytes * kSlotsPerReader * static_cast<std::size_t>(readers)) {
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
  void read(int reader) {
    try {
      const cuda::DeviceScope scope(device_);
      const cuda::Stream stream;
      std::array<cuda::Event, kSlotsPerReader> copied;
      try {
        copy_pieces(reader, stream, copied);
        for (const cuda::Event& event : copied)
          wait(event);  // one that was never recorded is done
      } catch (...) {
        cudaStreamSynchronize(stream.view().get());  // the ring may go only when no copy reads it
        throw;
      }
    } catch (const Exception& failure) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = failure.error();
      failed_ = true;
    }
  }

  void copy_pieces(int reader, const cuda::Stream& stream,
                   std::array<cuda::Event, kSlotsPerReader>& copied) {
    for (std::size_t turn = 0; !failed_; ++turn) {
      const std::size_t index = next_piece_++;
      if (index >= pieces_.size()) return;
      const ShardCopy& piece = pieces_[index];
      const std::size_t slot = turn % kSlotsPerReader;
      if (turn >= kSlotsPerReader) wait(copied[slot]);
      std::byte* const at =
          ring_.data() + (static_cast<std::size_t>(reader) * kSlotsPerReader + slot) * slot_bytes_;
      read_at(at, piece);
      cuda::copy_to_device<std::byte>({at, piece.bytes}, to_.subspan(piece.to, piece.bytes),
                                      stream);
      copied[slot].record(stream);
    }
  }

  void wait(const cuda::Event& event) const {
    if (!cuda::wait_until(event, deadline_, std::chrono::microseconds(200)))
      throw Exception(make_error(Errc::kDeadlineExceeded, "shard upload: a copy is not done"));
  }

  void read_at(std::byte* to, const ShardCopy& piece) const {
    for (std::size_t done = 0; done < piece.bytes;) {
      if (Clock::now() > deadline_)
        throw Exception(make_error(Errc::kDeadlineExceeded, "shard upload: the file is slow"));
      const ssize_t got =
          ::pread(fd_, to + done, piece.bytes - done, static_cast<off_t>(piece.from + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw Exception(io_error("shard upload: cannot read the file", errno));
      if (got == 0)
        throw Exception(make_error(Errc::kDataLoss, "shard upload: the file ends at byte " +
                                                        std::to_string(piece.from + done)));
      done += static_cast<std::size_t>(got);
    }
  }

  int fd_;
  std::vector<ShardCopy> pieces_;
  cuda::DeviceSpan<std::byte> to_;
  std::size_t slot_bytes_;
  Clock::time_point deadline_;
  cuda::PinnedBuffer<std::byte> ring_;
  int device_ = 0;
  std::atomic<std::size_t> next_piece_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::optional<Error> error_;  // guarded by mutex_ until the threads have been joined
};

}  // namespace

Result<UploadReport> upload_shard(int fd, const ShardPlan& plan, cuda::DeviceSpan<std::byte> to,
                                  const UploadOptions& options) try {
  constexpr int kMostReaders = 16;
  if (options.slot_bytes == 0 || options.readers < 0 || options.readers > kMostReaders ||
      to.size() < plan.total_bytes) {
    return make_error(Errc::kInvalidArgument, "shard upload: " + std::to_string(options.readers) +
                                                  " readers of slots of " +
                                                  std::to_string(options.slot_bytes) +
                                                  " bytes to " + std::to_string(to.size()) +
                                                  "; 0 to 16 readers, some bytes, and room for " +
                                                  std::to_string(plan.total_bytes) + " are right");
  }
  const auto started = Clock::now();
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const int readers = options.readers == 0 ? std::min(cores, kMostReaders) : options.readers;
  ShardUpload upload(fd, pieces_of(plan, options.slot_bytes), to, options, readers);
  const auto pinned = Clock::now();
  if (auto done = upload.run(readers); !done) return done.error();
  UploadReport report;
  for (const ShardCopy& copy : plan.copies)
    report.bytes += copy.bytes;
  report.elapsed = Clock::now() - started;
  report.pinning = pinned - started;
  return report;
} catch (const Exception& failure) {
  return failure.error();
}

}  // namespace thaw::model

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"
#include "engine/cuda/buffer.h"

namespace thaw::model {

// Weight images in device memory: the way there from a file, and proof that they are still what was
// copied. An image on the device is the same bytes as on the host, from its first byte on.

struct UploadOptions {
  int readers = 0;  ///< threads that read ahead; 0: one for each core, at most 16
  std::size_t slot_bytes = std::size_t{3} << 20;  ///< of a read, a copy
  std::size_t slots = 2;  ///< a reader's: one is filled while the others are copied
  /// The whole upload must be done by then.
  std::chrono::milliseconds timeout = std::chrono::minutes(5);
};

struct UploadReport {
  std::size_t bytes = 0;
  std::chrono::nanoseconds elapsed{0};  ///< from the call to the last byte's arrival
  std::chrono::nanoseconds pinning{0};  ///< of that: making the ring
  double bytes_per_second() const {
    return static_cast<double>(bytes) / std::chrono::duration<double>(elapsed).count();
  }
};

/// Copies the first `to.size()` bytes of `fd` (an image file or memfd, as LoadedImage has it) to
/// `to` on the current device: readers fill a ring of pinned slots, and each slot's copy runs while
/// the next ones are read. Returns when all bytes have arrived. Makes streams, threads and the
/// ring, and frees them again. Thread-safe. Errors: kIo, kDataLoss where the file is shorter
/// than `to`, kDeadlineExceeded, kResourceExhausted, kCuda; what is in `to` is undefined then.
Result<UploadReport> upload_image(int fd, cuda::DeviceSpan<std::byte> to,
                                  const UploadOptions& options = {});

/// Bytes that one digest covers; the last chunk may be shorter.
inline constexpr std::size_t kDigestChunkBytes = std::size_t{2} << 20;

/// One 64-bit digest for every chunk of some bytes, and one that names all of them. Detects damage,
/// such as the writes of a dying process; it is no defence against an adversary. The same bytes
/// give the same digests on every device and on the host.
struct ChunkDigests {
  std::vector<std::uint64_t> chunks;
  /// Of the chunks and the number of bytes: short enough for a frame.
  Hash128 summary;
};

/// Digests of device memory, at the rate of the memory (16 GiB in about 6 ms on an H100). The work
/// is ordered after what `stream` holds; waits for it. REQUIRES: bytes.size() a multiple of 16.
/// Errors: kInvalidArgument, kResourceExhausted, kCuda.
Result<ChunkDigests> device_digests(cuda::DeviceSpan<const std::byte> bytes,
                                    cuda::StreamView stream);

/// The same of host memory, one thread, some GB/s: for tests and small images. REQUIRES: as above.
ChunkDigests host_digests(std::span<const std::byte> bytes);

/// Compares device memory with a summary that was taken before. Errors: kDataLoss where it is not
/// the same; those of device_digests.
Result<void> verify_device_image(cuda::DeviceSpan<const std::byte> bytes, const Hash128& expected,
                                 cuda::StreamView stream);

}  // namespace thaw::model

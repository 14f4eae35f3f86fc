#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"
#include "engine/cuda/buffer.h"

namespace thaw::cuda {

/// One range of device memory that can outlive its process: whoever holds the exported descriptor
/// keeps the bytes, even a process without a CUDA context, even after a kill -9 of the maker.
/// Mapped for reading and writing by its device. Move-only.
///
/// The destructor unmaps and drops this process's reference; it does not wait for device work, so
/// synchronise what uses the range first.
class VmmAllocation {
 public:
  /// Bytes come in multiples of this (2 MiB on Hopper).
  static Result<std::size_t> granularity(int device);

  /// Allocates at least `bytes`, rounded up to the granularity, on `device`. The content is
  /// undefined. Errors: `kResourceExhausted` with what was asked for and what is free.
  static Result<VmmAllocation> create(int device, std::size_t bytes);

  /// Maps the allocation behind a descriptor that export_fd() made, in this process or another.
  /// `bytes` is the size() that its maker reported; importing a wrong size fails with `kCuda`. The
  /// descriptor stays the caller's.
  static Result<VmmAllocation> import(int device, int fd, std::size_t bytes);

  VmmAllocation(VmmAllocation&& other) noexcept
      : handle_(std::exchange(other.handle_, 0)),
        address_(std::exchange(other.address_, 0)),
        bytes_(std::exchange(other.bytes_, 0)),
        device_(other.device_) {}
  VmmAllocation& operator=(VmmAllocation&& other) noexcept;
  VmmAllocation(const VmmAllocation&) = delete;
  VmmAllocation& operator=(const VmmAllocation&) = delete;
  ~VmmAllocation();

  /// A new descriptor for the same bytes.
  Result<UniqueFd> export_fd() const;

  std::byte* data() const noexcept {
    return reinterpret_cast<std::byte*>(address_);  // NOLINT: the driver's addresses are integers
  }
  std::size_t size() const noexcept { return bytes_; }
  DeviceSpan<std::byte> span() const noexcept { return {data(), bytes_}; }
  int device() const noexcept { return device_; }

 private:
  VmmAllocation(std::uint64_t handle, std::size_t bytes, int device) noexcept
      : handle_(handle), bytes_(bytes), device_(device) {}
  void map();
  void reset() noexcept;

  std::uint64_t handle_ = 0;  // CUmemGenericAllocationHandle
  std::uint64_t address_ = 0;  // CUdeviceptr; 0 until mapped
  std::size_t bytes_ = 0;
  int device_ = 0;
};

}  // namespace thaw::cuda

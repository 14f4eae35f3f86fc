#pragma once

#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>

#include "engine/cuda/stream.h"

namespace thaw::cuda {

/// Elements in device memory that somebody else owns. Host code cannot dereference it: `data()` is
/// for kernels and copies.
template <typename T>
class DeviceSpan {
 public:
  DeviceSpan() = default;
  DeviceSpan(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
  /// DeviceSpan<T> converts to DeviceSpan<const T>.
  template <typename U>
  requires(std::is_same_v<const U, T> && !std::is_const_v<U>) DeviceSpan(DeviceSpan<U> other)
  noexcept  // NOLINT: implicit
      : data_(other.data()), size_(other.size()) {}

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
  bool empty() const noexcept { return size_ == 0; }
  /// REQUIRES: offset + count <= size().
  DeviceSpan subspan(std::size_t offset, std::size_t count) const noexcept {
    return DeviceSpan(data_ + offset, count);
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {
void* allocate_device(std::size_t bytes, cudaStream_t stream, int* device);
void free_device(void* data, cudaStream_t stream, int device) noexcept;
void* allocate_pinned(std::size_t bytes, unsigned flags);
void free_pinned(void* data) noexcept;
}  // namespace detail

/// Owns `size` uninitialised elements of device memory, allocated and freed in the order of a
/// stream: the one given, or the last one named by set_stream(). Move-only. The stream must outlive
/// it. Throws `kResourceExhausted` when the device is full.
template <typename T>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceBuffer() = default;
  DeviceBuffer(std::size_t size, StreamView stream)
      : data_(static_cast<T*>(detail::allocate_device(size * sizeof(T), stream.get(), &device_))),
        size_(size),
        stream_(stream.get()) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    DeviceBuffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() {
    if (data_ != nullptr) detail::free_device(data_, stream_, device_);
  }

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  DeviceSpan<T> span() const noexcept { return DeviceSpan<T>(data_, size_); }
  operator DeviceSpan<T>() const noexcept { return span(); }  // NOLINT: implicit, owner to view
  operator DeviceSpan<const T>() const noexcept { return span(); }  // NOLINT: the same
  /// Names the stream whose order the destructor frees in: the one that used the buffer last.
  void set_stream(StreamView stream) noexcept { stream_ = stream.get(); }

 private:
  void swap(DeviceBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(stream_, other.stream_);
    std::swap(device_, other.device_);
  }
  T* data_ = nullptr;
  std::size_t size_ = 0;
  cudaStream_t stream_ = nullptr;
  int device_ = 0;
};

/// `kWriteCombined` is only for memory that the CPU never reads: such a read is some 50 times
/// slower.
enum class PinnedKind : unsigned { kPlain = 0, kWriteCombined = 4 };

/// Owns `size` uninitialised elements of page-locked host memory. Move-only. A copy from or to it
/// may be in flight only while it lives: wait for the copy's event before the destructor.
template <typename T>
class PinnedBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t size, PinnedKind kind = PinnedKind::kPlain)
      : data_(static_cast<T*>(
            detail::allocate_pinned(size * sizeof(T), static_cast<unsigned>(kind)))),
        size_(size) {}
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() {
    if (data_ != nullptr) detail::free_pinned(data_);
  }

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::span<T> span() const noexcept { return std::span<T>(data_, size_); }
  T& operator[](std::size_t index) const noexcept { return data_[index]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Enqueues a copy of all of `from`. Nothing is synchronised: host memory must stay alive and,
/// unless it is pinned, the call may block. Throws `kInvalidArgument` where the sizes differ.
template <typename T>
void copy_to_device(std::span<const T> from, DeviceSpan<T> to, StreamView stream);
template <typename T>
void copy_to_host(DeviceSpan<const T> from, std::span<T> to, StreamView stream);

namespace detail {
void copy(void* to, std::size_t to_bytes, const void* from, std::size_t from_bytes,
          cudaMemcpyKind kind, cudaStream_t stream);
}

template <typename T>
void copy_to_device(std::span<const T> from, DeviceSpan<T> to, StreamView stream) {
  detail::copy(to.data(), to.size_bytes(), from.data(), from.size_bytes(), cudaMemcpyHostToDevice,
               stream.get());
}

template <typename T>
void copy_to_host(DeviceSpan<const T> from, std::span<T> to, StreamView stream) {
  detail::copy(to.data(), to.size_bytes(), from.data(), from.size_bytes(), cudaMemcpyDeviceToHost,
               stream.get());
}

}  // namespace thaw::cuda

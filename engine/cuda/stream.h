#pragma once

#include <cuda_runtime_api.h>

#include <utility>

namespace thaw::cuda {

/// A stream that somebody else owns; passed by value, last in every call that enqueues work.
class StreamView {
 public:
  explicit StreamView(cudaStream_t stream) noexcept : stream_(stream) {}
  cudaStream_t get() const noexcept { return stream_; }
  /// Blocks until all work enqueued so far is done. Throws what that work failed with.
  void synchronize() const;
  /// Whether all work enqueued so far is done. Throws what that work failed with.
  bool done() const;

 private:
  cudaStream_t stream_;
};

/// Owns a non-blocking stream of the current device. Move-only. A stream is used by one thread at a
/// time where order matters; enqueueing itself is thread-safe.
class Stream {
 public:
  /// Throws where the device has no more resources.
  Stream();
  Stream(Stream&& other) noexcept
      : stream_(std::exchange(other.stream_, nullptr)), device_(other.device_) {}
  Stream& operator=(Stream&& other) noexcept;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();

  StreamView view() const noexcept { return StreamView(stream_); }
  operator StreamView() const noexcept { return view(); }  // NOLINT: implicit, owner to view
  void synchronize() const { view().synchronize(); }
  int device() const noexcept { return device_; }

 private:
  void reset() noexcept;
  cudaStream_t stream_ = nullptr;
  int device_ = 0;
};

/// Owns an event of the current device. Move-only. Timing costs a little, so it is asked for.
class Event {
 public:
  enum class Timing { kOff, kOn };
  explicit Event(Timing timing = Timing::kOff);
  Event(Event&& other) noexcept
      : event_(std::exchange(other.event_, nullptr)), device_(other.device_) {}
  Event& operator=(Event&& other) noexcept;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event();

  cudaEvent_t get() const noexcept { return event_; }
  /// Marks the end of what `stream` holds now.
  void record(StreamView stream);
  /// Makes later work of `stream` wait for the mark; the host does not wait.
  void wait(StreamView stream) const;
  /// True once everything before the mark is done; never blocks.
  bool done() const;
  void synchronize() const;
  /// Milliseconds from `start`'s mark to this one's. REQUIRES: both have timing and are done.
  float milliseconds_since(const Event& start) const;

 private:
  void reset() noexcept;
  cudaEvent_t event_ = nullptr;
  int device_ = 0;
};

}  // namespace thaw::cuda

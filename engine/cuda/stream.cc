#include "engine/cuda/stream.h"

#include "engine/cuda/check.h"

namespace thaw::cuda {

namespace {

bool is_done(cudaError_t state, const char* what) {
  if (state == cudaErrorNotReady) {
    cudaGetLastError();  // not an error, but it is recorded as one
    return false;
  }
  check(state, what);
  return true;
}

}  // namespace

void StreamView::synchronize() const {
  check(cudaStreamSynchronize(stream_), "stream synchronize");
}

bool StreamView::done() const {
  return is_done(cudaStreamQuery(stream_), "query stream");
}

Stream::Stream() {
  check(cudaGetDevice(&device_), "current device");
  // Non-blocking: nothing waits on the legacy default stream.
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create stream");
}

Stream& Stream::operator=(Stream&& other) noexcept {
  if (this != &other) {
    reset();
    stream_ = std::exchange(other.stream_, nullptr);
    device_ = other.device_;
  }
  return *this;
}

Stream::~Stream() {
  reset();
}

void Stream::reset() noexcept {
  if (stream_ == nullptr) return;
  const DeviceScope scope(device_);
  check_noexcept(cudaStreamDestroy(std::exchange(stream_, nullptr)), "stream");
}

Event::Event(Timing timing) {
  check(cudaGetDevice(&device_), "current device");
  check(cudaEventCreateWithFlags(&event_,
                                 timing == Timing::kOn ? cudaEventDefault : cudaEventDisableTiming),
        "create event");
}

Event& Event::operator=(Event&& other) noexcept {
  if (this != &other) {
    reset();
    event_ = std::exchange(other.event_, nullptr);
    device_ = other.device_;
  }
  return *this;
}

Event::~Event() {
  reset();
}

void Event::reset() noexcept {
  if (event_ == nullptr) return;
  const DeviceScope scope(device_);
  check_noexcept(cudaEventDestroy(std::exchange(event_, nullptr)), "event");
}

void Event::record(StreamView stream) {
  check(cudaEventRecord(event_, stream.get()), "record event");
}

void Event::wait(StreamView stream) const {
  check(cudaStreamWaitEvent(stream.get(), event_, 0), "wait for event");
}

bool Event::done() const {
  return is_done(cudaEventQuery(event_), "query event");
}

void Event::synchronize() const {
  check(cudaEventSynchronize(event_), "event synchronize");
}

float Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "event times");
  return milliseconds;
}

}  // namespace thaw::cuda

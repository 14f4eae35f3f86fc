#pragma once

#include <functional>
#include <memory>

#include "engine/base/clock.h"

namespace thaw::forkpool {

/// One thread's event loop: tasks, timers and descriptor readiness over an Asio io_context, without
/// Asio's headers. Everything but post() and stop() belongs to the thread that calls run().
class Loop {
 public:
  using Task = std::function<void()>;
  struct Impl;

  Loop();
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  /// Runs tasks until stop().
  void run();
  /// Ends run() after the current task. Thread-safe.
  void stop();
  /// Runs `task` on the loop's thread, in the order of the calls. Thread-safe.
  void post(Task task);
  Clock::TimePoint now() const { return std::chrono::steady_clock::now(); }
  /// Until then run() looks for work instead of sleeping, since whoever waits for a millisecond
  /// is woken up tens of microseconds late. For a few milliseconds; a processor is busy with it.
  void stay_awake(Clock::TimePoint until) { awake_until_ = until; }

  /// A one-shot timer. After cancel() or destruction its task never runs.
  class Timer {
   public:
    explicit Timer(Loop& loop);
    ~Timer();
    /// Replaces what was started before.
    void start(Clock::TimePoint when, Task task);
    void cancel();

   private:
    struct State;
    std::shared_ptr<State> state_;
  };

  /// Readiness of a borrowed descriptor, one shot a call; the descriptor must outlive the watch.
  /// After destruction no task runs.
  class Watch {
   public:
    Watch(Loop& loop, int fd);
    ~Watch();
    void wait_readable(Task task);
    void wait_writable(Task task);

   private:
    struct State;
    std::shared_ptr<State> state_;
  };

 private:
  std::unique_ptr<Impl> impl_;
  Clock::TimePoint awake_until_{};
};

}  // namespace thaw::forkpool

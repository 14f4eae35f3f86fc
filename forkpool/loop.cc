#include "forkpool/loop.h"

#include <thread>
#include <utility>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>

namespace thaw::forkpool {

namespace asio = boost::asio;
using boost::system::error_code;

struct Loop::Impl {
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
};

Loop::Loop() : impl_(std::make_unique<Impl>()) {}
Loop::~Loop() = default;

void Loop::run() {
  asio::io_context& context = impl_->context;
  while (!context.stopped()) {
    if (now() >= awake_until_)
      context.run_one();
    else if (context.poll_one() == 0)
      std::this_thread::yield();
  }
}

void Loop::stop() {
  impl_->context.stop();
}

void Loop::post(Task task) {
  asio::post(impl_->context, std::move(task));
}

// A handler that is already queued cannot be called back by cancel(); the serial number tells it
// that it is late.
struct Loop::Timer::State {
  explicit State(asio::io_context& context) : timer(context) {}
  asio::steady_timer timer;
  std::uint64_t serial = 0;
};

Loop::Timer::Timer(Loop& loop) : state_(std::make_shared<State>(loop.impl_->context)) {}

Loop::Timer::~Timer() {
  cancel();
}

void Loop::Timer::start(Clock::TimePoint when, Task task) {
  const std::uint64_t serial = ++state_->serial;
  state_->timer.expires_at(when);
  state_->timer.async_wait(
      [state = state_, serial, task = std::move(task)](const error_code& error) {
        if (!error && state->serial == serial) task();
      });
}

void Loop::Timer::cancel() {
  ++state_->serial;
  state_->timer.cancel();
}

struct Loop::Watch::State {
  State(asio::io_context& context, int fd) : descriptor(context, fd) {}
  asio::posix::stream_descriptor descriptor;
  bool alive = true;

  static void wait(const std::shared_ptr<State>& state,
                   asio::posix::descriptor_base::wait_type type, Task task) {
    state->descriptor.async_wait(type, [state, task = std::move(task)](const error_code& error) {
      if (!error && state->alive) task();
    });
  }
};

Loop::Watch::Watch(Loop& loop, int fd) : state_(std::make_shared<State>(loop.impl_->context, fd)) {}

Loop::Watch::~Watch() {
  state_->alive = false;
  state_->descriptor.release();  // the descriptor is the caller's; pending waits end as aborted
}

void Loop::Watch::wait_readable(Task task) {
  State::wait(state_, asio::posix::descriptor_base::wait_read, std::move(task));
}

void Loop::Watch::wait_writable(Task task) {
  State::wait(state_, asio::posix::descriptor_base::wait_write, std::move(task));
}

}  // namespace thaw::forkpool

#include "forkpool/worker/worker.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "engine/base/log.h"
#include "forkpool/worker/boot.h"
#include "forkpool/worker/channel.h"
#include "forkpool/worker/outbox.h"

namespace thaw::forkpool {
namespace worker {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kBootDeadline{60000};
constexpr std::chrono::microseconds kExpectation{1000};  // of a frame that is about to come
constexpr milliseconds kIdleWait{10000};  // the channel wakes us; this only bounds the wait
constexpr milliseconds kFarewellDeadline{5000};
constexpr std::chrono::microseconds kRestWait{2000};

Error unexpected(const Frame& frame, const std::string& wanted) {
  return make_error(Errc::kProtocol, std::string("the pool sent a ") + frame_name(frame) +
                                         " frame; expected " + wanted);
}

// The next frame, or an error once the deadline is over. found == false: the pool has gone.
Result<FrameDecoder::Next> await_frame(Channel& channel, milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (true) {
    if (auto received = channel.read_some(); !received) return received.error();
    auto next = channel.next();
    if (!next || next->found || channel.ended()) return next;
    const auto left =
        std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      return make_error(Errc::kDeadlineExceeded, "the pool has not sent init and adopt within " +
                                                     std::to_string(deadline.count()) + " ms");
    }
    if (auto waited = channel.wait(left); !waited) return waited.error();
  }
}

// Exceptions end here: the process is the unit of recovery.
Result<void> run_without_throwing(const std::function<Result<void>()>& body) {
  try {
    return body();
  } catch (const Exception& exception) {
    return exception.error();
  } catch (const std::exception& exception) {
    return make_error(Errc::kInternal, exception.what());
  }
}

void report_fatal(Channel& channel, const Error& error) {
  logger("worker")->error("fatal error=\"{}\"", error.to_string());
  channel.queue(FatalFrame{error});
  if (auto flushed = channel.flush(kFarewellDeadline); !flushed) {
    logger("worker")->error("cannot report it error=\"{}\"", flushed.error().message);
  }
}

// From Ready to the end.
class Server {
 public:
  Server(Channel& channel, Outbox& outbox, Engine& engine)
      : channel_(&channel), outbox_(&outbox), engine_(&engine) {}

  Result<void> run() {
    // Or the kernel adds 50 microseconds to every nap of a wait for the device.
    (void)::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    outbox_->queue(engine_->ready());
    while (true) {
      if (auto flushed = outbox_->flush(engine_->stats()); !flushed) return flushed;
      if (auto waited = wait_unless_busy(); !waited) return waited;
      const Result<bool> going_on = take_frames();
      if (!going_on) return going_on.error();
      if (!*going_on) return {};
      if (engine_->scheduler().has_work()) {
        if (auto stepped = engine_->scheduler().step(); !stepped) return stepped;
      }
      if (auto polled = engine_->snapshots().poll(); !polled) return polled;
      if (auto offer = engine_->next_offer()) outbox_->queue(*std::move(offer));
    }
  }

 private:
  Result<void> wait_unless_busy() {
    if (engine_->scheduler().has_work()) return {};
    if (!engine_->snapshots().copying() && std::chrono::steady_clock::now() >= awake_until_)
      return channel_->wait(kIdleWait);
    // A copy engine at work does not wake us, and whoever sleeps for microseconds oversleeps by
    // more than these copies have to lose.
    std::this_thread::yield();
    return channel_->wait(std::chrono::microseconds(0));
  }

  // False: it is time to go. The branches of a fork come in one go, and more of them than the
  // socket holds: where nothing runs yet, they begin in one step.
  Result<bool> take_frames() {
    const bool was_idle = !engine_->scheduler().has_work();
    const auto end = std::chrono::steady_clock::now() + kRestWait;
    while (true) {
      Result<bool> going_on = take_what_came();
      if (!going_on || !*going_on || !channel_->has_part()) return going_on;
      if (!was_idle || engine_->snapshots().copying()) return going_on;
      const auto left = std::chrono::duration_cast<std::chrono::microseconds>(
          end - std::chrono::steady_clock::now());
      if (left.count() <= 0) return going_on;
      if (auto written = channel_->write_some(); !written) return written.error();
      if (auto waited = channel_->wait(left); !waited) return waited.error();
    }
  }

  Result<bool> take_what_came() {
    if (auto received = channel_->read_some(); !received) return received.error();
    while (true) {
      auto next = channel_->next();
      if (!next) return next.error();
      if (!next->found) return !channel_->ended();
      if (std::holds_alternative<ShutdownFrame>(next->frame)) {
        if (auto flushed = channel_->flush(kFarewellDeadline); !flushed) return flushed.error();
        return false;
      }
      if (auto handled = handle(std::move(next->frame)); !handled) return handled.error();
    }
  }

  Result<void> handle(Frame frame) {
    if (auto* submit = std::get_if<SubmitFrame>(&frame)) {
      const RequestId id = submit->request.id;
      if (auto added = engine_->scheduler().add(std::move(submit->request)); !added)
        outbox_->add(FailedEvent{id, added.error()});
    } else if (const auto* cancel = std::get_if<CancelFrame>(&frame)) {
      if (cancel->choice)
        engine_->scheduler().end_choice(cancel->request, *cancel->choice);
      else
        engine_->scheduler().cancel(cancel->request);
    } else if (auto* snapshot = std::get_if<SnapshotFrame>(&frame)) {
      return engine_->snapshots().snapshot(std::move(*snapshot));
    } else if (auto* restore = std::get_if<RestoreFrame>(&frame)) {
      return engine_->snapshots().restore(std::move(*restore));
    } else if (const auto* arrive = std::get_if<ArriveFrame>(&frame)) {
      return engine_->snapshots().arrive(*arrive);
    } else if (const auto* peer = std::get_if<PeerFrame>(&frame)) {
      engine_->snapshots().meet(*peer);
    } else if (const auto* lend = std::get_if<LendFrame>(&frame)) {
      engine_->snapshots().lend(*lend);
    } else if (const auto* expected = std::get_if<ExpectFrame>(&frame)) {
      awake_until_ = std::chrono::steady_clock::now() + kExpectation;
      engine_->snapshots().expect(expected->from);
    } else if (const auto* take_back = std::get_if<TakeBackFrame>(&frame)) {
      engine_->snapshots().take_back(*take_back);
    } else if (auto* borrow = std::get_if<BorrowFrame>(&frame)) {
      return engine_->snapshots().borrow(std::move(*borrow));
    } else if (const auto* lent = std::get_if<LentFrame>(&frame)) {
      return engine_->snapshots().lent(*lent);
    } else {
      return unexpected(frame, "a frame that only the pool sends, after init");
    }
    return {};
  }

  Channel* channel_;
  Outbox* outbox_;
  Engine* engine_;
  std::chrono::steady_clock::time_point awake_until_{};
};

Result<void> serve(Channel& channel, const WorkerFds& fds) {
  auto first = await_frame(channel, kBootDeadline);
  if (!first) return first.error();
  if (!first->found) return {};
  const auto* init = std::get_if<InitFrame>(&first->frame);
  if (init == nullptr) return unexpected(first->frame, "init");
  set_log_prefix("worker=" + std::to_string(init->worker));
  if (!set_log_level(init->log_level)) {
    return make_error(Errc::kInvalidArgument, "log level '" + init->log_level + "'");
  }
  if (init->tp_rank > 0) {
    set_log_prefix("worker=" + std::to_string(init->worker) + "." + std::to_string(init->tp_rank));
    // Always sent to one, if of nothing: what comes behind it is no frame.
    auto next = await_frame(channel, kBootDeadline);
    if (!next) return next.error();
    if (!next->found) return {};
    auto* inherit = std::get_if<InheritFrame>(&next->frame);
    if (inherit == nullptr) return unexpected(next->frame, "inherit");
    return run_follower(channel.release(), *init, std::move(inherit->memory), fds.weights);
  }
  BootFrames frames{*init, nullptr, {}, {}};
  frames.inherited.resize(std::max(init->tp_size, 1U));
  auto second = await_frame(channel, kBootDeadline);
  if (!second) return second.error();
  if (!second->found) return {};
  if (auto* vocabulary = std::get_if<VocabularyFrame>(&second->frame)) {
    frames.token_texts = std::move(vocabulary->texts);
    second = await_frame(channel, kBootDeadline);
    if (!second) return second.error();
    if (!second->found) return {};
  }
  std::vector<bool> has_come(frames.inherited.size(), false);
  while (auto* inherit = std::get_if<InheritFrame>(&second->frame)) {
    const std::uint32_t rank = inherit->memory.rank;
    if (rank >= has_come.size() || has_come[rank]) {
      return make_error(Errc::kProtocol, "the pool sent an inherit frame of rank " +
                                             std::to_string(rank) + " of " +
                                             std::to_string(has_come.size()) +
                                             "; expected adopt, or one of another rank");
    }
    has_come[rank] = true;
    frames.inherited[rank] = std::move(inherit->memory);
    second = await_frame(channel, kBootDeadline);
    if (!second) return second.error();
    if (!second->found) return {};
  }
  auto* adopt = std::get_if<AdoptFrame>(&second->frame);
  if (adopt == nullptr) return unexpected(second->frame, "vocabulary, inherit or adopt");
  frames.adopt = std::move(*adopt);

  Outbox outbox(channel);
  const auto started = std::chrono::steady_clock::now();
  auto engine = Engine::boot(fds, frames, outbox);
  if (!engine) return engine.error();
  frames.inherited.clear();  // what is used of it is imported; nothing else shall live on
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - started;
  const ReadyFrame& ready = (*engine)->ready();
  logger("worker")->info(
      "ready generation={} kernels={} threads={} blocks={} adopted={} weights_ms={:.2f} "
      "boot_ms={:.2f}",
      init->generation, ready.kernel_set, init->num_threads, ready.num_blocks, ready.adopted_blocks,
      (*engine)->weights_ms(), took.count());
  Result<void> ran = run_without_throwing([&] { return Server(channel, outbox, **engine).run(); });
  if (!ran && lost_device(ran.error())) {
    // Whoever frees what a lost device holds may wait for it for ever.
    report_fatal(channel, ran.error());
    std::_Exit(1);
  }
  return ran;
}

}  // namespace
}  // namespace worker

int run_worker(const WorkerFds& fds) {
  // It may have been started by a path that is not its name, /proc/self/exe.
  ::prctl(PR_SET_NAME, "thaw");
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGTERM, SIG_IGN);
  worker::Channel channel{UniqueFd(fds.channel)};
  const Result<void> served =
      worker::run_without_throwing([&] { return worker::serve(channel, fds); });
  if (served) return 0;
  worker::report_fatal(channel, served.error());
  return 1;
}

}  // namespace thaw::forkpool

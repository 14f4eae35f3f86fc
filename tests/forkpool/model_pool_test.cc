// Several models on few slots, with pools of which the tests are the workers.

#include "forkpool/model_pool.h"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include <gtest/gtest.h>

#include "engine/base/log.h"
#include "engine/base/memory_map.h"

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class TurnedClock final : public Clock {
 public:
  TimePoint now() const override { return TimePoint(Duration(ticks_.load())); }
  void pass(Duration time) { ticks_ += time.count(); }

 private:
  std::atomic<Duration::rep> ticks_{Duration(seconds(1000)).count()};
};

TokenId token_of(const std::string& model, const GenerateRequest& request, std::uint32_t index) {
  std::size_t value = std::hash<std::string>()(model) + 31 * index;
  for (const TokenId token : request.prompt)
    value = value * 131 + static_cast<std::size_t>(token);
  return static_cast<TokenId>(value % 5000);
}

/// What all fake pools are told, and what happened to them.
struct World {
  std::atomic<std::uint32_t> token_limit{1U << 30};  ///< indexes from here on are held back
  std::set<std::string> silent;  ///< models whose pools never become ready
  std::mutex mutex;
  std::map<std::string, std::string> broken;  ///< model -> why its pools do not start
  std::map<std::string, std::string> fatal;  ///< model -> why its pools give up after they started
  std::vector<std::string> started;  ///< models, in order
  std::vector<GenerateRequest> seen;  ///< as pools got them
  std::vector<std::string> released;  ///< "model pin"
  int alive = 0;
  int most_alive = 0;
};

/// A thread that gives each of its requests one token a turn.
class FakeSlotPool final : public SlotPool {
 public:
  FakeSlotPool(World& world, std::string model, Listener listener)
      : world_(world), model_(std::move(model)), listener_(std::move(listener)) {
    {
      const std::scoped_lock lock(world_.mutex);
      world_.started.push_back(model_);
      world_.most_alive = std::max(world_.most_alive, ++world_.alive);
    }
    thread_ = std::thread([this] { run(); });
  }
  ~FakeSlotPool() override {
    stop_ = true;
    thread_.join();
    const std::scoped_lock lock(world_.mutex);
    --world_.alive;
  }
  void submit(ForkPlan plan) override {
    const std::scoped_lock lock(mutex_);
    for (PlannedRequest& planned : plan.requests)
      fresh_.push_back(std::move(planned.request));
  }
  void cancel(RequestId request) override {
    const std::scoped_lock lock(mutex_);
    cancelled_.insert(request);
  }
  void end_choice(RequestId /*request*/, std::uint32_t /*choice*/) override {}
  PoolStatus status() const override {
    PoolStatus status;
    status.ready = true;
    WorkerStatus& worker = status.workers.emplace_back();
    worker.pid = 7;
    worker.stats.tokens_decoded = decoded_;
    worker.stats.running = 1;
    return status;
  }
  void keep(KeepTrunk, TrunkDone done) override { done(KeptTrunk{16, 1024, {}}); }
  void release(const PinId& pin) override {
    const std::scoped_lock lock(world_.mutex);
    world_.released.push_back(model_ + " " + pin);
  }
  void save(SaveTrunk, TrunkDone done) override { done(make_error(Errc::kIo, model_)); }
  void load(LoadTrunk, TrunkDone done) override { done(make_error(Errc::kDataLoss, model_)); }
  void shutdown(milliseconds) override { stop_ = true; }

 private:
  struct Running {
    GenerateRequest request;
    std::uint32_t next = 0;
  };
  void run() {
    PoolStatus status;
    {
      const std::scoped_lock lock(world_.mutex);
      if (world_.fatal.contains(model_)) status.failure = world_.fatal[model_];
      status.ready = status.failure.empty() && !world_.silent.contains(model_);
    }
    listener_.on_status(status);
    std::map<RequestId, Running> running;
    while (!stop_) {
      std::vector<GenerateRequest> fresh;
      std::set<RequestId> cancelled;
      {
        const std::scoped_lock lock(mutex_);
        fresh.swap(fresh_);
        cancelled.swap(cancelled_);
      }
      for (GenerateRequest& request : fresh) {
        {
          const std::scoped_lock lock(world_.mutex);
          world_.seen.push_back(request);
        }
        const auto done = request.resumed.empty() ? 0 : request.resumed[0].generated.size();
        listener_.on_event(AdmittedEvent{request.id, 0});
        const RequestId id = request.id;
        running[id] = {std::move(request), static_cast<std::uint32_t>(done)};
      }
      for (auto at = running.begin(); at != running.end();) {
        const bool ended = step(at->second, cancelled.contains(at->first));
        at = ended ? running.erase(at) : std::next(at);
      }
      std::this_thread::yield();
    }
    for (const auto& [id, one] : running)  // as a pool that is shut down does
      listener_.on_event(FailedEvent{id, make_error(Errc::kUnavailable, "shut down")});
  }
  bool step(Running& running, bool cancelled) {
    const RequestId id = running.request.id;
    const bool over = running.next == running.request.sampling.max_tokens;
    if (over || cancelled) {
      listener_.on_event(FinishedEvent{
          id, 0, cancelled ? FinishReason::kCancelled : FinishReason::kLength, std::nullopt});
      listener_.on_event(CompletedEvent{id, Usage{}});
      return true;
    }
    if (running.next >= world_.token_limit) return false;
    TokenEvent event;
    event.request = id;
    event.index = running.next;
    event.token = token_of(model_, running.request, running.next++);
    ++decoded_;
    listener_.on_event(std::move(event));
    return false;
  }

  World& world_;
  const std::string model_;
  const Listener listener_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> decoded_{0};
  std::mutex mutex_;
  std::vector<GenerateRequest> fresh_;  // guarded by mutex_
  std::set<RequestId> cancelled_;  // guarded by mutex_
  std::thread thread_;
};

struct Stream {
  std::vector<TokenId> tokens;
  bool in_order = true;
  int admitted = 0;
  int ends = 0;
  std::optional<Usage> usage;
  std::optional<Error> error;
};

struct Bed {
  explicit Bed(const std::vector<std::string>& models, std::size_t num_slots = 1,
               const Clock* other_clock = nullptr,
               ModelSchedule::Options schedule = ModelSchedule::Options()) {
    set_log_level(std::getenv("THAW_TEST_LOG") == nullptr ? "off" : "debug");
    ModelPoolOptions options;
    options.schedule = schedule;
    options.schedule.num_slots = num_slots;
    std::vector<ModelSpec> specs;
    for (const std::string& model : models)
      specs.push_back(spec(model));
    pool = std::make_unique<ModelPool>(
        options, std::move(specs),
        [this](const ModelSpec& model,
               SlotPool::Listener listener) -> Result<std::unique_ptr<SlotPool>> {
          {
            const std::scoped_lock lock(world.mutex);
            if (world.broken.contains(model.name))
              return make_error(Errc::kResourceExhausted, world.broken[model.name]);
          }
          return std::unique_ptr<SlotPool>(
              std::make_unique<FakeSlotPool>(world, model.name, std::move(listener)));
        },
        [this](GenerateEvent event) { on_event(std::move(event)); },
        other_clock != nullptr ? other_clock : &clock);
  }
  ~Bed() { pool.reset(); }

  static ModelSpec spec(const std::string& name) {
    ModelSpec model;
    model.name = name;
    model.weights = {create_memfd("weights", 4096).value(), 4096, nullptr};
    return model;
  }
  static GenerateRequest request(RequestId id, const std::string& model, std::uint32_t max_tokens) {
    GenerateRequest request;
    request.id = id;
    request.model = model;
    request.prompt = {static_cast<TokenId>(id), 1, 2};
    request.sampling.max_tokens = max_tokens;
    return request;
  }
  static std::vector<TokenId> expected(const GenerateRequest& request) {
    std::vector<TokenId> tokens;
    for (std::uint32_t i = 0; i < request.sampling.max_tokens; ++i)
      tokens.push_back(token_of(request.model, request, i));
    return tokens;
  }
  void submit(GenerateRequest request) {
    ForkPlan plan;
    plan.requests.push_back({std::move(request), -1});
    pool->submit(std::move(plan));
  }
  void on_event(GenerateEvent event) {
    const std::scoped_lock lock(mutex);
    Stream& stream = streams[event_request(event)];
    if (std::holds_alternative<AdmittedEvent>(event)) ++stream.admitted;
    if (const auto* token = std::get_if<TokenEvent>(&event)) {
      stream.in_order = stream.in_order && token->index == stream.tokens.size() && stream.ends == 0;
      stream.tokens.push_back(token->token);
    }
    if (const auto* completed = std::get_if<CompletedEvent>(&event)) {
      stream.usage = completed->usage;
      ++stream.ends;
    }
    if (auto* failed = std::get_if<FailedEvent>(&event)) {
      stream.error = failed->error;
      ++stream.ends;
    }
    changed.notify_all();
  }
  Stream stream(RequestId id) {
    const std::scoped_lock lock(mutex);
    return streams[id];
  }
  /// Polls, since pools work on threads of their own. False after 30 s.
  bool wait(const std::function<bool()>& condition) {
    const auto until = std::chrono::steady_clock::now() + seconds(30);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::unique_lock lock(mutex);
      changed.wait_for(lock, milliseconds(1));
    }
    return true;
  }
  bool wait_end(RequestId id) {
    return wait([&] { return stream(id).ends > 0; });
  }
  bool wait_tokens(RequestId id, std::size_t count) {
    return wait([&] { return stream(id).tokens.size() >= count; });
  }
  std::string state(std::size_t slot = 0) {
    const SlotStatus status = pool->status().slots[slot];
    return status.state + " " + status.model;
  }
  bool wait_state(const std::string& wanted, std::size_t slot = 0) {
    return wait([&] { return state(slot) == wanted; });
  }
  void pass(Clock::Duration time) {
    clock.pass(time);
    pool->replan();
  }

  World world;
  TurnedClock clock;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<RequestId, Stream> streams;  // guarded by mutex
  std::unique_ptr<ModelPool> pool;
};

TEST(ModelPool, RequestsFindTheSlotOfTheirModel) {
  Bed bed({"a", "b"}, 2);
  for (RequestId id = 1; id <= 8; ++id)
    bed.submit(Bed::request(id, id % 2 == 0 ? "a" : "b", 5));
  for (RequestId id = 1; id <= 8; ++id) {
    ASSERT_TRUE(bed.wait_end(id));
    const Stream stream = bed.stream(id);
    EXPECT_EQ(stream.tokens, Bed::expected(Bed::request(id, id % 2 == 0 ? "a" : "b", 5)));
    EXPECT_EQ(stream.admitted, 1);
    EXPECT_EQ(stream.usage->generated_tokens, 5U);
  }
  const PoolStatus status = bed.pool->status();
  EXPECT_TRUE(status.ready);
  ASSERT_EQ(status.models.size(), 2U);
  EXPECT_EQ(status.models[0].requests, 4U);
  EXPECT_EQ(status.models[0].loads, 1U);
  EXPECT_EQ(status.workers[1].worker, 1U);
  EXPECT_EQ(status.workers[1].model, "b");
}

TEST(ModelPool, AnUnknownModelIsRefused) {
  Bed bed({"a"});
  bed.submit(Bed::request(1, "z", 5));
  ASSERT_TRUE(bed.wait_end(1));
  EXPECT_EQ(bed.stream(1).error->code, Errc::kNotFound);
}

TEST(ModelPool, AWaitingModelGetsTheIdleSlot) {
  Bed bed({"a", "b"});
  ASSERT_TRUE(bed.wait_state("serving a"));
  bed.submit(Bed::request(1, "b", 5));
  EXPECT_EQ(bed.pool->status().models[1].waiting, 1U);
  bed.pass(milliseconds(50));
  ASSERT_TRUE(bed.wait_end(1));
  EXPECT_EQ(bed.stream(1).tokens, Bed::expected(Bed::request(1, "b", 5)));
  EXPECT_EQ(bed.state(), "serving b");
  EXPECT_EQ(bed.pool->status().slots[0].swaps, 2U) << "the first start counts";
  EXPECT_EQ(bed.world.most_alive, 1) << "one after the other: memory is for one";
}

TEST(ModelPool, AStreamThatGivesWayGoesOnFromItsLastToken) {
  Bed bed({"a", "b"});
  ASSERT_TRUE(bed.wait_state("serving a"));
  bed.world.token_limit = 3;
  bed.submit(Bed::request(1, "a", 10));
  ASSERT_TRUE(bed.wait_tokens(1, 3));
  bed.submit(Bed::request(2, "b", 2));
  bed.pass(seconds(5));
  EXPECT_EQ(bed.state(), "closing a");
  bed.submit(Bed::request(3, "a", 2));  // too late: waits
  bed.pass(seconds(2));
  ASSERT_TRUE(bed.wait_end(2));
  EXPECT_EQ(bed.stream(2).tokens, Bed::expected(Bed::request(2, "b", 2)));
  EXPECT_EQ(bed.pool->status().requests_suspended, 1U);
  EXPECT_EQ(bed.stream(1).ends, 0);
  EXPECT_EQ(bed.stream(1).tokens.size(), 3U);

  bed.world.token_limit = 1U << 30;
  bed.pass(milliseconds(50));  // b is idle: a comes back
  for (const RequestId id : {1U, 3U}) {
    ASSERT_TRUE(bed.wait_end(id));
    const Stream stream = bed.stream(id);
    EXPECT_EQ(stream.tokens, Bed::expected(Bed::request(id, "a", id == 1 ? 10 : 2)));
    EXPECT_TRUE(stream.in_order);
    EXPECT_EQ(stream.admitted, 1) << "the client hears it once";
    EXPECT_EQ(stream.ends, 1);
  }
  EXPECT_EQ(bed.stream(1).usage->generated_tokens, 10U);
  const std::scoped_lock lock(bed.world.mutex);
  const GenerateRequest& again = bed.world.seen[2];
  EXPECT_EQ(again.id, 1U) << "ahead of what came later";
  ASSERT_EQ(again.resumed.size(), 1U);
  EXPECT_EQ(again.resumed[0].generated.size(), 3U);
}

TEST(ModelPool, ASlotServesWhoWaitedForItBeforeItGoesOn) {
  // Whoever has the slot can be asked for it at once, be it in use or not.
  ModelSchedule::Options schedule;
  schedule.quantum = schedule.linger = milliseconds(0);
  Bed bed({"a", "b", "c"}, 1, nullptr, schedule);
  ForkPlan plan;
  for (RequestId id = 1; id <= 4; ++id)
    plan.requests.push_back({Bed::request(id, id % 2 == 0 ? "b" : "c", 5), -1});
  bed.pool->submit(std::move(plan));
  for (RequestId id = 1; id <= 4; ++id) {
    ASSERT_TRUE(bed.wait_end(id));
    EXPECT_EQ(bed.stream(id).tokens, Bed::expected(Bed::request(id, id % 2 == 0 ? "b" : "c", 5)));
  }
  EXPECT_EQ(bed.pool->status().slots[0].swaps, 3U) << "one for each model";
}

TEST(ModelPool, ModelsThatDoNotLoadLeaveTheOthersAlone) {
  for (const bool at_once : {true, false}) {
    Bed bed({"a", "b"});
    ASSERT_TRUE(bed.wait_state("serving a"));
    {
      const std::scoped_lock lock(bed.world.mutex);
      (at_once ? bed.world.broken : bed.world.fatal)["b"] = "no memory for it";
    }
    bed.submit(Bed::request(1, "b", 5));
    bed.pass(seconds(1));
    ASSERT_TRUE(bed.wait_end(1));
    EXPECT_EQ(bed.stream(1).error->code, Errc::kUnavailable);
    EXPECT_EQ(bed.stream(1).error->message, "the model `b` cannot be loaded: no memory for it");
    ASSERT_TRUE(bed.wait_state("serving a")) << "it comes back by itself";
    bed.submit(Bed::request(2, "a", 5));
    ASSERT_TRUE(bed.wait_end(2));
    EXPECT_EQ(bed.stream(2).tokens, Bed::expected(Bed::request(2, "a", 5)));

    // Refused without a swap for a while.
    bed.submit(Bed::request(3, "b", 5));
    ASSERT_TRUE(bed.wait_end(3));
    EXPECT_EQ(bed.stream(3).error->message, bed.stream(1).error->message);
    EXPECT_EQ(bed.pool->status().models[1].load_failures, 1U);
    EXPECT_NE(bed.pool->status().models[1].failure, "");

    {
      const std::scoped_lock lock(bed.world.mutex);
      bed.world.broken.clear();
      bed.world.fatal.clear();
    }
    bed.pass(seconds(5));
    bed.submit(Bed::request(4, "b", 5));
    bed.pass(milliseconds(50));
    ASSERT_TRUE(bed.wait_end(4));
    EXPECT_EQ(bed.stream(4).tokens, Bed::expected(Bed::request(4, "b", 5)));
    EXPECT_EQ(bed.pool->status().models[1].failure, "");
  }
}

TEST(ModelPool, TheOthersAreServedWhereTheFirstDoesNotLoad) {
  TurnedClock clock;
  World world;
  world.broken["a"] = "damaged";
  ModelPoolOptions options;
  std::vector<ModelSpec> specs;
  specs.push_back(Bed::spec("a"));
  specs.push_back(Bed::spec("b"));
  std::mutex mutex;
  std::vector<TokenId> tokens;
  const auto start = [&](const ModelSpec& model,
                         SlotPool::Listener listener) -> Result<std::unique_ptr<SlotPool>> {
    if (world.broken.contains(model.name))
      return make_error(Errc::kDataLoss, world.broken[model.name]);
    return std::unique_ptr<SlotPool>(
        std::make_unique<FakeSlotPool>(world, model.name, std::move(listener)));
  };
  ModelPool pool(
      options, std::move(specs), start,
      [&](const GenerateEvent& event) {
        const std::scoped_lock lock(mutex);
        if (const auto* token = std::get_if<TokenEvent>(&event)) tokens.push_back(token->token);
      },
      &clock);
  const auto until = std::chrono::steady_clock::now() + seconds(30);
  while (!pool.status().ready && std::chrono::steady_clock::now() < until)
    std::this_thread::yield();
  ASSERT_TRUE(pool.status().ready);
  EXPECT_EQ(pool.status().slots[0].state, "empty");
  ForkPlan plan;
  plan.requests.push_back({Bed::request(1, "b", 3), -1});
  pool.submit(std::move(plan));
  while (pool.status().requests_running > 0 && std::chrono::steady_clock::now() < until)
    std::this_thread::yield();
  const std::scoped_lock lock(mutex);
  EXPECT_EQ(tokens, Bed::expected(Bed::request(1, "b", 3)));
}

TEST(ModelPool, WhoIsNotReadyInTimeIsGivenUp) {
  Bed bed({"a", "b"});
  ASSERT_TRUE(bed.wait_state("serving a"));
  {
    const std::scoped_lock lock(bed.world.mutex);
    bed.world.silent = {"b"};
  }
  bed.submit(Bed::request(1, "b", 5));
  bed.pass(seconds(1));
  ASSERT_TRUE(bed.wait([&] {
    const std::scoped_lock lock(bed.world.mutex);
    return bed.world.started.size() == 2;
  }));
  EXPECT_EQ(bed.state(), "swapping b");
  bed.clock.pass(seconds(60));
  // The pool is put into its slot some time after it has started.
  ASSERT_TRUE(bed.wait([&] {
    bed.pool->replan();
    return bed.stream(1).ends > 0;
  }));
  EXPECT_NE(bed.stream(1).error->message.find("not ready within 60000 ms"), std::string::npos);
  ASSERT_TRUE(bed.wait_state("serving a"));
}

TEST(ModelPool, CancelledRequestsEndWhereverTheyAre) {
  Bed bed({"a", "b"});
  ASSERT_TRUE(bed.wait_state("serving a"));
  bed.world.token_limit = 1;
  bed.submit(Bed::request(1, "a", 5));
  bed.submit(Bed::request(2, "b", 5));
  ASSERT_TRUE(bed.wait_tokens(1, 1));
  bed.pool->cancel(2);  // waits
  ASSERT_TRUE(bed.wait_end(2));
  EXPECT_EQ(bed.stream(2).usage->generated_tokens, 0U);
  EXPECT_EQ(bed.pool->status().models[1].waiting, 0U);
  bed.pass(seconds(10));
  EXPECT_EQ(bed.state(), "serving a") << "nobody waits any more";
  bed.pool->cancel(1);
  ASSERT_TRUE(bed.wait_end(1));
  EXPECT_EQ(bed.stream(1).usage->generated_tokens, 1U);
  bed.pool->cancel(1);
  bed.pool->cancel(99);
}

TEST(ModelPool, ADeadlinePassesWhileARequestWaits) {
  Bed bed({"a", "b"});
  ASSERT_TRUE(bed.wait_state("serving a"));
  bed.world.token_limit = 1;
  bed.submit(Bed::request(1, "a", 5));
  GenerateRequest late = Bed::request(2, "b", 5);
  late.deadline = milliseconds(100);
  bed.submit(std::move(late));
  bed.pass(milliseconds(99));
  EXPECT_EQ(bed.stream(2).ends, 0);
  bed.pass(milliseconds(1));
  EXPECT_EQ(bed.stream(2).ends, 1);
  EXPECT_EQ(bed.stream(2).error->code, Errc::kDeadlineExceeded);
}

TEST(ModelPool, ModelsComeAndGoWhileItRuns) {
  Bed bed({"a"});
  ASSERT_TRUE(bed.wait_state("serving a"));
  EXPECT_FALSE(bed.pool->add(Bed::spec("a")));
  ASSERT_TRUE(bed.pool->add(Bed::spec("b")));
  bed.submit(Bed::request(1, "b", 4));
  bed.pass(milliseconds(50));
  ASSERT_TRUE(bed.wait_end(1));
  EXPECT_EQ(bed.stream(1).tokens, Bed::expected(Bed::request(1, "b", 4)));

  bed.world.token_limit = 1;
  bed.submit(Bed::request(2, "b", 4));
  ASSERT_TRUE(bed.wait_tokens(2, 1));
  ASSERT_TRUE(bed.pool->remove("b"));
  EXPECT_EQ(bed.pool->remove("b").error().code, Errc::kNotFound);
  bed.submit(Bed::request(3, "b", 4));
  EXPECT_EQ(bed.stream(3).error->code, Errc::kNotFound);
  const auto early = bed.pool->add(Bed::spec("b"));
  ASSERT_FALSE(early);
  EXPECT_NE(early.error().message.find("still being answered"), std::string::npos);
  bed.world.token_limit = 1U << 30;
  ASSERT_TRUE(bed.wait_end(2));
  EXPECT_EQ(bed.stream(2).tokens, Bed::expected(Bed::request(2, "b", 4)));
  ASSERT_TRUE(bed.wait_state("empty "));
  ASSERT_TRUE(bed.wait([&] { return bed.pool->add(Bed::spec("b")).has_value(); }));
}

TEST(ModelPool, ARemovedModelEndsWhatASwapSuspended) {
  Bed bed({"a", "b"});
  ASSERT_TRUE(bed.wait_state("serving a"));
  bed.world.token_limit = 2;
  bed.submit(Bed::request(1, "a", 6));
  ASSERT_TRUE(bed.wait_tokens(1, 2));
  ASSERT_TRUE(bed.pool->remove("a"));
  bed.submit(Bed::request(2, "b", 4));
  bed.pass(std::chrono::minutes(10));
  bed.pass(std::chrono::minutes(10));
  bed.world.token_limit = 1U << 30;
  ASSERT_TRUE(bed.wait_end(2));
  bed.pass(std::chrono::minutes(10));
  ASSERT_TRUE(bed.wait_end(1));
  EXPECT_EQ(bed.stream(1).tokens, Bed::expected(Bed::request(1, "a", 6)));
}

TEST(ModelPool, LoadingCanBeAskedFor) {
  Bed bed({"a", "b"});
  ASSERT_TRUE(bed.pool->wait_loaded("a", seconds(30)));
  std::atomic<bool> loaded{false};
  std::thread caller([&] {
    EXPECT_TRUE(bed.pool->wait_loaded("b", seconds(30)));
    loaded = true;
  });
  ASSERT_TRUE(bed.wait([&] {
    bed.pass(milliseconds(50));
    return loaded.load();
  }));
  caller.join();
  EXPECT_EQ(bed.state(), "serving b");
  EXPECT_EQ(bed.pool->wait_loaded("z", seconds(30)).error().code, Errc::kNotFound);
  bed.world.token_limit = 0;
  bed.submit(Bed::request(1, "b", 4));
  const auto late = bed.pool->wait_loaded("a", milliseconds(1));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Errc::kDeadlineExceeded);
  bed.pass(seconds(60));
  EXPECT_EQ(bed.state(), "serving b") << "nobody waits any more";
}

TEST(ModelPool, CountersOutliveTheirPools) {
  Bed bed({"a", "b"});
  std::uint64_t decoded = 0;
  for (RequestId id = 1; id <= 6; ++id) {
    bed.submit(Bed::request(id, id % 2 == 0 ? "a" : "b", 3));
    ASSERT_TRUE(bed.wait([&] {
      bed.pass(milliseconds(50));
      const std::uint64_t now = bed.pool->status().workers[0].stats.tokens_decoded;
      EXPECT_GE(now + 3, decoded);
      decoded = std::max(decoded, now);
      return bed.stream(id).ends > 0;
    }));
  }
  EXPECT_EQ(bed.pool->status().workers[0].stats.tokens_decoded, 18U);
  EXPECT_LE(bed.pool->status().workers[0].stats.running, 1U) << "gauges are the present pool's";
  EXPECT_EQ(bed.pool->status().models[0].loads + bed.pool->status().models[1].loads,
            bed.pool->status().slots[0].swaps);
}

TEST(ModelPool, KeptTrunksBelongToTheSlotOfTheirModel) {
  Bed bed({"a", "b", "c"}, 2);
  ASSERT_TRUE(bed.wait_state("serving a", 0));
  ASSERT_TRUE(bed.wait_state("serving b", 1));
  std::vector<std::string> answers;
  const TrunkDone note = [&](const Result<KeptTrunk>& kept) {
    answers.push_back(kept ? std::to_string(kept->num_tokens) : kept.error().to_string());
  };
  const TrunkOwner owner{"", "", "b", ""};
  bed.pool->keep({"pin", owner, {1}, seconds(0)}, note);
  bed.pool->save({"file", owner, {1}, seconds(1)}, note);
  bed.pool->load({"file", "pin", owner, seconds(0), seconds(1)}, note);
  bed.pool->keep({"pin", {"", "", "c", ""}, {1}, seconds(0)}, note);
  EXPECT_EQ(answers, (std::vector<std::string>{
                         "16", "io: b", "data_loss: b",
                         "unavailable: model `c` has no slot now, and with it no KV"}));
  bed.pool->release("pin");
  const std::scoped_lock lock(bed.world.mutex);
  EXPECT_EQ(bed.world.released, (std::vector<std::string>{"a pin", "b pin"}));
}

TEST(ModelPool, ShutdownEndsEverythingOnce) {
  Bed bed({"a", "b"});
  ASSERT_TRUE(bed.wait_state("serving a"));
  bed.world.token_limit = 1;
  bed.submit(Bed::request(1, "a", 5));
  bed.submit(Bed::request(2, "b", 5));
  bed.pool->shutdown(milliseconds(0));
  for (const RequestId id : {1U, 2U}) {
    EXPECT_EQ(bed.stream(id).ends, 1);
    EXPECT_EQ(bed.stream(id).error->code, Errc::kUnavailable);
  }
  bed.submit(Bed::request(3, "a", 5));
  EXPECT_EQ(bed.stream(3).error->code, Errc::kUnavailable);
  bed.pool.reset();
  EXPECT_EQ(bed.world.alive, 0);
}

TEST(ModelPool, NothingIsLostUnderSwapsWithoutEnd) {
  // Real time, and slots that change hands as often as they can.
  const SteadyClock clock;
  ModelSchedule::Options schedule;
  schedule.quantum = milliseconds(3);
  schedule.grace = milliseconds(1);
  schedule.linger = milliseconds(0);
  const std::vector<std::string> models = {"a", "b", "c", "d"};
  Bed bed(models, 2, &clock, schedule);
  constexpr RequestId kRequests = 400;
  std::vector<std::thread> clients;
  for (RequestId client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (RequestId id = client + 1; id <= kRequests; id += 4) {
        bed.submit(Bed::request(id, models[id * 7 % 4], 1 + id % 60));
        if (id % 10 == 3) bed.pool->cancel(id);
        if (id % 16 == client) {
          EXPECT_TRUE(bed.wait_end(id));
        }
      }
    });
  }
  for (std::thread& client : clients)
    client.join();
  for (RequestId id = 1; id <= kRequests; ++id) {
    ASSERT_TRUE(bed.wait_end(id)) << id;
    const Stream stream = bed.stream(id);
    EXPECT_EQ(stream.ends, 1);
    EXPECT_TRUE(stream.in_order);
    EXPECT_FALSE(stream.error) << stream.error->message;
    std::vector<TokenId> expected =
        Bed::expected(Bed::request(id, models[id * 7 % 4], 1 + id % 60));
    if (id % 10 == 3) expected.resize(std::min(expected.size(), stream.tokens.size()));
    EXPECT_EQ(stream.tokens, expected) << id;
  }
  EXPECT_EQ(bed.pool->status().requests_running, 0U);
  EXPECT_LE(bed.world.most_alive, 2);
}

}  // namespace
}  // namespace thaw::forkpool

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include "coalescer/http/dispatcher.h"
#include "tests/base/manual_clock.h"
#include "tests/coalescer/http_fakes.h"

namespace thaw::coalescer {
namespace {

class Recorder final : public EventReceiver {
 public:
  void on_event(std::size_t slot, const GenerateEvent&) override { slots.push_back(slot); }
  void on_batch_end() override { ++batches; }
  std::vector<std::size_t> slots;
  int batches = 0;
};

struct DispatcherTest : testing::Test {
  DispatcherTest()
      : history(16, 10000,
                [](const std::string&, std::span<const TokenId>) { return std::string(); }),
        dispatcher(std::chrono::milliseconds(2), 3, &backend, &history, &metrics, &clock) {
    backend.set_event_sink([](const GenerateEvent&) {});
  }
  static std::vector<GenerateRequest> requests(int count) {
    std::vector<GenerateRequest> out(count);
    for (GenerateRequest& request : out)
      request.prompt = {1, 2, 3};
    return out;
  }
  RequestId submit_one() {
    return std::get<std::vector<RequestId>>(dispatcher.submit(requests(1), recorder)).at(0);
  }

  FakeBackend backend{false};
  ForkHistory history;
  Metrics metrics;
  ManualClock clock;
  Dispatcher dispatcher;
  std::shared_ptr<Recorder> recorder = std::make_shared<Recorder>();
};

TEST_F(DispatcherTest, LoneRequestGoesAtOnceTheNextOnesWait) {
  submit_one();
  EXPECT_EQ(dispatcher.deadline(), clock.now());
  dispatcher.flush();
  submit_one();
  EXPECT_EQ(dispatcher.deadline(), clock.now() + std::chrono::milliseconds(2));
  clock.advance(std::chrono::milliseconds(1));
  submit_one();
  dispatcher.flush();
  ASSERT_EQ(backend.num_plans(), 2U);
  EXPECT_EQ(backend.plans()[1].requests.size(), 2U);
  EXPECT_EQ(metrics.trunks, 1U);
}

TEST_F(DispatcherTest, TheFirstOfAFanOutWaitsForThoseThatAreBeingPrepared) {
  const auto window = std::chrono::milliseconds(2);
  auto others = std::make_optional<Dispatcher::Preparation>(&dispatcher);
  submit_one();  // not a lone one
  EXPECT_EQ(dispatcher.deadline(), clock.now() + window);
  EXPECT_TRUE(dispatcher.put_off());
  EXPECT_EQ(dispatcher.deadline(), clock.now() + window + Window::kExtension);
  submit_one();
  EXPECT_TRUE(dispatcher.put_off());
  others.reset();
  EXPECT_FALSE(dispatcher.put_off());
  dispatcher.flush();
  ASSERT_EQ(backend.num_plans(), 1U);
  EXPECT_EQ(backend.plans()[0].requests.size(), 2U);

  // The pool is at work now: who comes later is not waited for.
  others.emplace(&dispatcher);
  submit_one();
  EXPECT_FALSE(dispatcher.put_off());
  EXPECT_EQ(dispatcher.deadline(), clock.now() + window);
}

TEST_F(DispatcherTest, EventsFindTheirSlotAndEndTheirRequest) {
  const auto ids = std::get<std::vector<RequestId>>(dispatcher.submit(requests(2), recorder));
  dispatcher.flush();
  TokenEvent token;
  token.request = ids[1];
  EXPECT_EQ(dispatcher.num_queued(), 2U);
  dispatcher.deliver({token, AdmittedEvent{999, 0}, CompletedEvent{ids[0], {}}});
  EXPECT_EQ(recorder->slots, (std::vector<std::size_t>{1, 0}));
  EXPECT_EQ(recorder->batches, 1);
  EXPECT_EQ(dispatcher.num_in_flight(), 1U);
  EXPECT_EQ(dispatcher.num_queued(), 0U);
  dispatcher.deliver({CompletedEvent{ids[0], {}}});  // known no more
  EXPECT_EQ(recorder->slots.size(), 2U);
}

TEST_F(DispatcherTest, AbandonedBeforeAndAfterTheWindow) {
  const RequestId first = submit_one();
  dispatcher.flush();
  const RequestId second = submit_one();
  dispatcher.abandon(second);
  EXPECT_FALSE(dispatcher.deadline());
  EXPECT_TRUE(backend.cancelled().empty());
  dispatcher.abandon(first);
  EXPECT_EQ(backend.cancelled(), std::vector<RequestId>{first});
  EXPECT_EQ(dispatcher.num_in_flight(), 1U);  // until the backend has let go
  dispatcher.deliver({CompletedEvent{first, {}}});
  EXPECT_EQ(dispatcher.num_in_flight(), 0U);
  EXPECT_TRUE(recorder->slots.empty());
}

TEST_F(DispatcherTest, QueueIsBounded) {
  for (int i = 0; i < 3; ++i)
    submit_one();
  auto refused = dispatcher.submit(requests(1), recorder);
  ASSERT_TRUE(std::holds_alternative<ApiError>(refused));
  EXPECT_EQ(std::get<ApiError>(refused).status, 429);
  EXPECT_GT(std::get<ApiError>(refused).retry_after.count(), 0);
}

TEST_F(DispatcherTest, WhoIsRefusedIsToldWhenThereIsRoom) {
  std::vector<RequestId> ids;
  for (int i = 0; i < 3; ++i)
    ids.push_back(submit_one());
  dispatcher.flush();
  // One leaves the queue every two seconds, over and over.
  for (int i = 0; i < 100; ++i) {
    clock.advance(std::chrono::seconds(2));
    TokenEvent token;
    token.request = ids[static_cast<std::size_t>(i)];
    dispatcher.deliver({token});
    ids.push_back(submit_one());
  }
  const auto wait = [&] { return std::chrono::duration<double>(dispatcher.next_retry()).count(); };
  EXPECT_NEAR(wait(), 2, 0.1);
  EXPECT_NEAR(wait(), 4, 0.2);  // behind the one before
  EXPECT_NEAR(wait(), 6, 0.3);
  clock.advance(std::chrono::seconds(5));
  EXPECT_NEAR(wait(), 6, 0.5);  // a place behind those who have not come yet, at the slower rate
  for (int i = 0; i < 100; ++i)
    EXPECT_LE(wait(), 30);
}

TEST_F(DispatcherTest, SeveralReceiversAtOnceOrNone) {
  const auto other = std::make_shared<Recorder>();
  std::vector<Dispatcher::Submission> submissions;
  submissions.push_back({requests(2), recorder});
  submissions.push_back({requests(1), other});
  auto submitted = dispatcher.submit_all(std::move(submissions));
  auto& ids = std::get<std::vector<std::vector<RequestId>>>(submitted);
  ASSERT_EQ(ids.size(), 2U);
  EXPECT_EQ(ids[0].size(), 2U);
  dispatcher.flush();
  EXPECT_EQ(backend.num_plans(), 1U);
  dispatcher.deliver({CompletedEvent{ids[1][0], {}}});
  EXPECT_EQ(other->slots.size(), 1U);
  EXPECT_TRUE(recorder->slots.empty());
}

TEST_F(DispatcherTest, RemembersTenants) {
  auto batch = requests(2);
  batch[0].tenant = "a";
  batch[1].tenant = "b";
  const auto ids = std::get<std::vector<RequestId>>(dispatcher.submit(std::move(batch), recorder));
  EXPECT_EQ(dispatcher.tenant_of(ids[0]), "a");
  EXPECT_EQ(dispatcher.tenant_of(ids[1]), "b");
  EXPECT_EQ(dispatcher.tenant_of(ids[1] + 1), std::nullopt);
}

}  // namespace
}  // namespace thaw::coalescer

#include "coalescer/core/session_store.h"

#include <random>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "tests/base/manual_clock.h"

namespace thaw::coalescer {
namespace {

using std::chrono::seconds;

SharedState line(std::vector<TokenId> tokens) {
  auto state = std::make_shared<SessionState>();
  state->tokens = std::move(tokens);
  state->messages = {"m"};
  state->marks = {{static_cast<std::uint32_t>(state->tokens.size()), 1, LineEnd::kMessage}};
  return state;
}

struct SessionStoreTest : testing::Test {
  SessionStore make(SessionLimits limits = {}) {
    return {limits, &clock, [this] { return "id" + std::to_string(++ids); }, [] { return 1000; }};
  }
  static StoredSession& created(SessionStore& store, const std::string& tenant = "t",
                                SharedState state = line({1, 2, 3})) {
    NewSession session;
    session.tenant = tenant;
    session.state = std::move(state);
    return *store.create(std::move(session)).value();
  }
  ManualClock clock;
  int ids = 0;
};

TEST_F(SessionStoreTest, OnlyItsTenantFindsASession) {
  SessionStore store = make();
  const std::string id = created(store, "anna").id;
  EXPECT_NE(store.find("anna", id), nullptr);
  EXPECT_EQ(store.find("berta", id), nullptr);
  EXPECT_EQ(store.find("", id), nullptr);
  EXPECT_EQ(store.list("anna").size(), 1U);
  EXPECT_TRUE(store.list("berta").empty());
}

TEST_F(SessionStoreTest, TimeIsOverUnlessItIsUsed) {
  SessionLimits limits;
  limits.default_ttl = seconds(100);
  SessionStore store = make(limits);
  const std::string id = created(store).id;
  clock.advance(seconds(99));
  ASSERT_NE(store.find("t", id), nullptr);  // looking is not using
  EXPECT_EQ(store.expires_at(*store.find("t", id)), 1001);
  store.touch(*store.find("t", id));
  clock.advance(seconds(99));
  EXPECT_NE(store.find("t", id), nullptr);
  clock.advance(seconds(1));
  EXPECT_EQ(store.find("t", id), nullptr);
  EXPECT_EQ(store.size(), 0U);
  EXPECT_EQ(store.num_expired(), 1U);
  EXPECT_EQ(store.history_bytes(), 0U);
}

TEST_F(SessionStoreTest, ARunningTurnKeepsItsSession) {
  SessionStore store = make();
  StoredSession& session = created(store);
  ASSERT_TRUE(store.begin_turn(session));
  clock.advance(std::chrono::hours(24 * 30));
  store.expire();
  ASSERT_EQ(store.size(), 1U);
  store.end_turn(session.id, line({1, 2, 3, 4}));
  store.expire();
  EXPECT_EQ(store.size(), 1U);  // its end was a use
  clock.advance(std::chrono::hours(24));
  store.expire();
  EXPECT_EQ(store.size(), 0U);
}

TEST_F(SessionStoreTest, OneTurnAtATime) {
  SessionStore store = make();
  StoredSession& session = created(store);
  ASSERT_TRUE(store.begin_turn(session));
  const auto second = store.begin_turn(session);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::kUnavailable);
  EXPECT_EQ(store.rewind(session, line({1})).error().code, Errc::kUnavailable);
  store.end_turn(session.id, nullptr);
  EXPECT_EQ(session.state->tokens.size(), 3U);  // broken off: nothing stays
  EXPECT_EQ(session.turns, 0U);
  ASSERT_TRUE(store.begin_turn(session));
  store.end_turn(session.id, line({1, 2, 3, 4}));
  EXPECT_EQ(session.state->tokens.size(), 4U);
  EXPECT_EQ(session.turns, 1U);
}

TEST_F(SessionStoreTest, TheEndOfATurnWhoseSessionIsGone) {
  SessionStore store = make();
  StoredSession& session = created(store);
  const std::string id = session.id;
  ASSERT_TRUE(store.begin_turn(session));
  store.erase(session);
  store.end_turn(id, line({1}));
  EXPECT_EQ(store.size(), 0U);
  EXPECT_EQ(store.history_bytes(), 0U);
}

TEST_F(SessionStoreTest, LimitsAreNamed) {
  SessionLimits limits;
  limits.max_sessions = 2;
  SessionStore store = make(limits);
  StoredSession& session = created(store);
  const auto forked = store.fork(session, 2, session.state, {}, seconds(0));
  ASSERT_FALSE(forked);
  EXPECT_EQ(forked.error().code, Errc::kResourceExhausted);
  EXPECT_NE(forked.error().message.find("--max-sessions"), std::string::npos);
  EXPECT_EQ(store.size(), 1U);  // all or none
  EXPECT_TRUE(session.children.empty());
  EXPECT_TRUE(store.fork(session, 1, session.state, {}, seconds(0)));
}

TEST_F(SessionStoreTest, HistoriesHaveALimit) {
  SessionLimits limits;
  limits.max_history_bytes = 10'000;
  SessionStore store = make(limits);
  StoredSession& session = created(store, "t", line(std::vector<TokenId>(4000)));
  EXPECT_GE(store.history_bytes(), 16'000U);
  EXPECT_EQ(store.begin_turn(session).error().code, Errc::kResourceExhausted);
  NewSession more;
  more.state = line({1});
  EXPECT_EQ(store.create(std::move(more)).error().code, Errc::kResourceExhausted);
  store.erase(session);
  EXPECT_EQ(store.history_bytes(), 0U);
  created(store);
}

TEST_F(SessionStoreTest, SharedHistoryCountsOnce) {
  SessionStore store = make();
  StoredSession& session = created(store, "t", line(std::vector<TokenId>(4000)));
  const std::uint64_t alone = store.history_bytes();
  ASSERT_TRUE(store.fork(session, 5, session.state, {}, seconds(0)));
  ASSERT_TRUE(store.checkpoint(session, "a"));
  EXPECT_EQ(store.history_bytes(), alone);
  ASSERT_TRUE(store.rewind(session, line({1})));
  store.erase_tree(session);
  EXPECT_EQ(store.history_bytes(), 0U);
}

TEST_F(SessionStoreTest, TtlOutOfRangeIsRefused) {
  SessionStore store = make();
  for (const std::int64_t ttl : {-1LL, 604801LL, 9'000'000'000LL}) {
    NewSession session;
    session.state = line({1});
    session.ttl = seconds(ttl);
    EXPECT_EQ(store.create(std::move(session)).error().code, Errc::kInvalidArgument) << ttl;
  }
}

TEST_F(SessionStoreTest, ForkKnowsWhatItShares) {
  SessionStore store = make();
  StoredSession& parent = created(store, "t", line({1, 2, 3, 4}));
  const auto children = store.fork(parent, 2, line({1, 2, 9}), {"left"}, seconds(7));
  ASSERT_TRUE(children);
  const StoredSession& child = *children->front();
  EXPECT_EQ(child.parent, parent.id);
  EXPECT_EQ(child.fork_tokens, 2U);
  EXPECT_EQ(child.label, "left");
  EXPECT_EQ(child.ttl, seconds(7));
  EXPECT_EQ((*children)[1]->label, "");
  EXPECT_EQ(parent.children.size(), 2U);
  EXPECT_EQ(&store.root_of(child), &parent);
}

TEST_F(SessionStoreTest, ChildrenOfADeletedSessionGoToItsParent) {
  SessionStore store = make();
  StoredSession& root = created(store, "t", line({1, 2, 3, 4}));
  StoredSession& middle = *store.fork(root, 1, line({1, 2}), {}, seconds(0))->front();
  StoredSession& leaf = *store.fork(middle, 1, line({1, 2}), {}, seconds(0))->front();
  store.erase(middle);
  EXPECT_EQ(leaf.parent, root.id);
  EXPECT_EQ(leaf.fork_tokens, 2U);
  EXPECT_EQ(root.children, std::vector<std::string>{leaf.id});
  store.erase(root);
  EXPECT_EQ(leaf.parent, "");
  EXPECT_EQ(leaf.fork_tokens, 0U);
  EXPECT_EQ(&store.root_of(leaf), &leaf);
}

TEST_F(SessionStoreTest, WholeTreesGoToo) {
  SessionStore store = make();
  std::set<std::string> removed;
  store.set_on_removed([&](const StoredSession& session) { removed.insert(session.id); });
  StoredSession& root = created(store);
  StoredSession& child = *store.fork(root, 2, root.state, {}, seconds(0))->front();
  ASSERT_TRUE(store.fork(child, 3, root.state, {}, seconds(0)));
  EXPECT_EQ(store.erase_tree(child), 4U);
  EXPECT_EQ(store.size(), 2U);
  EXPECT_EQ(removed.size(), 4U);
}

TEST_F(SessionStoreTest, CheckpointsHaveNamesAndALimit) {
  SessionStore store = make();
  StoredSession& session = created(store);
  ASSERT_TRUE(store.checkpoint(session, "a"));
  EXPECT_EQ(store.checkpoint(session, "a").error().code, Errc::kInvalidArgument);
  for (std::size_t i = 1; i < kMaxCheckpoints; ++i)
    ASSERT_TRUE(store.checkpoint(session, std::to_string(i)));
  EXPECT_EQ(store.checkpoint(session, "more").error().code, Errc::kResourceExhausted);
}

TEST_F(SessionStoreTest, AdoptedSessionsFindTheirFamilyInAnyOrder) {
  SessionStore store = make();
  const auto written = [](const std::string& id, const std::string& parent,
                          const std::string& tenant = "t") {
    StoredSession session;
    session.id = id;
    session.tenant = tenant;
    session.parent = parent;
    session.state = line({1});
    return session;
  };
  ASSERT_TRUE(store.adopt(written("child", "root")));
  EXPECT_EQ(store.root_of(*store.by_id("child")).id, "child");  // the root is not here yet
  ASSERT_TRUE(store.adopt(written("root", "")));
  ASSERT_TRUE(store.adopt(written("other", "root")));
  EXPECT_EQ(store.root_of(*store.by_id("child")).id, "root");
  EXPECT_EQ(store.by_id("root")->children, (std::vector<std::string>{"child", "other"}));
  EXPECT_FALSE(store.adopt(written("other", "")));
  // A parent of another tenant is none.
  ASSERT_TRUE(store.adopt(written("stranger", "root", "u")));
  EXPECT_EQ(store.parent_of(*store.by_id("stranger")), nullptr);
  EXPECT_EQ(store.by_id("root")->children.size(), 2U);
}

TEST_F(SessionStoreTest, AdoptedChildrenAreInTheOrderOfTheirCreation) {
  SessionStore store = make();
  for (const auto& [id, number] : {std::pair("c", 2), {"b", 4}, {"root", 1}, {"a", 3}}) {
    StoredSession session;
    session.id = id;
    session.parent = number == 1 ? "" : "root";
    session.number = static_cast<std::uint64_t>(number);
    session.state = line({1});
    ASSERT_TRUE(store.adopt(std::move(session)));
  }
  EXPECT_EQ(store.by_id("root")->children, (std::vector<std::string>{"c", "a", "b"}));
}

TEST_F(SessionStoreTest, ParentsInACircleAreBroken) {
  SessionStore store = make();
  for (const auto& [id, parent] : {std::pair("a", "c"), {"b", "a"}, {"c", "b"}, {"d", "d"}}) {
    StoredSession session;
    session.id = id;
    session.parent = parent;
    session.state = line({1});
    ASSERT_TRUE(store.adopt(std::move(session)));
  }
  for (StoredSession* session : store.all())
    EXPECT_TRUE(store.parent_of(store.root_of(*session)) == nullptr);
  EXPECT_EQ(store.erase_tree(*store.find("", "c")), 3U);
  EXPECT_EQ(store.size(), 1U);
}

/// Whatever is done in whatever order, parents and children agree and the histories are counted.
TEST_F(SessionStoreTest, RandomOperationsLeaveAForest) {
  std::mt19937 random(7);
  SessionLimits limits;
  limits.max_sessions = 40;
  limits.default_ttl = seconds(50);
  SessionStore store = make(limits);
  for (int step = 0; step < 3000; ++step) {
    std::vector<StoredSession*> all = store.all();
    StoredSession* one = all.empty() ? nullptr : all[random() % all.size()];
    switch (random() % 8) {
      case 0: {
        NewSession fresh;
        fresh.state = line(std::vector<TokenId>(random() % 50 + 1));
        static_cast<void>(store.create(std::move(fresh)));
        break;
      }
      case 1:
      case 2:
        if (one != nullptr)
          static_cast<void>(store.fork(*one, random() % 3 + 1, one->state, {}, seconds(0)));
        break;
      case 3:
        if (one != nullptr) store.erase(*one);
        break;
      case 4:
        if (one != nullptr && random() % 4 == 0) store.erase_tree(*one);
        break;
      case 5:
        if (one != nullptr && store.begin_turn(*one))
          store.end_turn(one->id, random() % 2 == 0 ? nullptr : line({1, 2}));
        break;
      case 6:
        if (one != nullptr) static_cast<void>(store.checkpoint(*one, std::to_string(step)));
        break;
      default:
        clock.advance(seconds(random() % 4));
        store.expire();
    }
    std::set<const SessionState*> states;
    std::uint64_t bytes = 0;
    std::size_t children = 0;
    std::size_t with_parent = 0;
    const auto count = [&](const SharedState& state) {
      if (states.insert(state.get()).second) bytes += state->size_bytes();
    };
    for (const StoredSession* session : store.all()) {
      count(session->state);
      for (const SessionCheckpoint& checkpoint : session->checkpoints)
        count(checkpoint.state);
      children += session->children.size();
      with_parent += session->parent.empty() ? 0 : 1;
      for (const std::string& child : session->children)
        ASSERT_EQ(store.by_id(child)->parent, session->id);
    }
    ASSERT_EQ(children, with_parent);
    ASSERT_EQ(store.history_bytes(), bytes);
    ASSERT_LE(store.size(), limits.max_sessions);
  }
}

}  // namespace
}  // namespace thaw::coalescer

#include "forkpool/placement.h"

#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "forkpool/backoff.h"
#include "forkpool/grouping.h"
#include "tests/forkpool/random_frames.h"

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;
using ::testing::Each;
using ::testing::ElementsAre;

constexpr std::uint64_t kBytesPerToken = 23040;  // SmolLM2-135M, bf16

std::vector<WorkerLoad> idle_workers(std::uint32_t count) {
  std::vector<WorkerLoad> loads(count);
  for (std::uint32_t i = 0; i < count; ++i)
    loads[i] = {i, 0, 0, kBytesPerToken};
  return loads;
}

/// `branches` requests of `suffix` own tokens each under one trunk, which is alive as given.
Group fork(std::uint32_t trunk, std::vector<std::uint32_t> alive, std::size_t branches,
           double suffix, std::uint32_t decode) {
  Group group;
  group.trunk_tokens = trunk;
  group.alive_tokens = alive;
  group.published_tokens = alive;
  group.units.assign(branches, Unit{suffix, std::vector<double>(alive.size(), 0.0), 1, decode});
  return group;
}

TEST(Placement, AColdForkStaysTogether) {
  // A second prefill of 2,000 tokens costs more than eight branches in one batch.
  const auto placed = place(CostModel{}, idle_workers(2), fork(2000, {0, 0}, 8, 50, 64));
  EXPECT_THAT(placed.unit_load, Each(0U));
  EXPECT_TRUE(placed.transfers.empty());
}

TEST(Placement, AForkGoesWhereItsTrunkIs) {
  const auto placed = place(CostModel{}, idle_workers(3), fork(2000, {0, 1984, 512}, 4, 5, 16));
  EXPECT_THAT(placed.unit_load, Each(1U));
}

TEST(Placement, AStrangerAvoidsTheBusyWorker) {
  auto loads = idle_workers(3);
  loads[0].queued_prefill_tokens = 4000;
  loads[1].sequences = 16;
  const auto placed = place(CostModel{}, loads, fork(0, {0, 0, 0}, 1, 300, 64));
  EXPECT_THAT(placed.unit_load, ElementsAre(2U));
}

TEST(Placement, AStragglerJoinsTheTrunkThatIsBeingComputed) {
  // Elsewhere it would have its first token as soon, for a trunk prefilled twice.
  auto loads = idle_workers(2);
  loads[0].queued_prefill_tokens = 2350;
  loads[0].sequences = 7;
  Group group = fork(2000, {2000, 0}, 1, 50, 64);
  group.published_tokens = {0, 0};
  EXPECT_THAT(place(CostModel{}, loads, group).unit_load, ElementsAre(0U));
}

TEST(Placement, ALongQueueOutweighsAWarmTrunk) {
  auto loads = idle_workers(2);
  loads[0].queued_prefill_tokens = 20000;
  CostModel model;
  model.fork_min_prefix_tokens = 100000;  // nothing crosses
  const auto placed = place(model, loads, fork(2000, {2000, 0}, 4, 50, 64));
  EXPECT_THAT(placed.unit_load, Each(1U));
  EXPECT_TRUE(placed.transfers.empty());
}

TEST(Placement, ManyLongBranchesSpreadOverACopiedTrunk) {
  const auto loads = idle_workers(2);
  const auto group = fork(2000, {2000, 0}, 32, 50, 256);
  const auto placed = place(CostModel{}, loads, group);
  const std::set<std::uint32_t> used(placed.unit_load.begin(), placed.unit_load.end());
  EXPECT_EQ(used.size(), 2U);
  ASSERT_EQ(placed.transfers.size(), 1U);
  EXPECT_EQ(placed.transfers[0].from, 0U);
  EXPECT_EQ(placed.transfers[0].to, 1U);
}

TEST(Placement, ShortTrunksNeverCross) {
  CostModel model;
  model.fork_min_prefix_tokens = 2001;
  const auto placed = place(model, idle_workers(2), fork(2000, {2000, 0}, 32, 50, 256));
  EXPECT_TRUE(placed.transfers.empty());
}

TEST(Placement, SlowCopiesAreNotMade) {
  CostModel model;
  model.copy_bytes_per_second = 1e6;
  const auto placed = place(model, idle_workers(2), fork(2000, {2000, 0}, 4, 50, 64));
  EXPECT_TRUE(placed.transfers.empty());
  EXPECT_THAT(placed.unit_load, Each(0U));
}

TEST(Placement, ATrunkGoesTheCheaperWay) {
  const auto group = fork(2000, {2000, 0}, 32, 50, 256);
  CostModel model;
  model.copy_bytes_per_second = 1e6;  // the arena is of no use
  auto loads = idle_workers(2);
  EXPECT_TRUE(place(model, loads, group).transfers.empty());
  loads[0].lends = true;
  EXPECT_EQ(place(model, loads, group).transfers.size(), 1U);
  model.peer_bytes_per_second = 1e6;
  EXPECT_TRUE(place(model, loads, group).transfers.empty());
}

TEST(Placement, AUnitsOwnPrefixCounts) {
  // Two families under a short header; each goes where its own part is alive.
  Group group = fork(32, {32, 32}, 2, 0, 16);
  group.units[0].prefill_tokens = 3000;
  group.units[0].alive_tokens = {0, 2900};
  group.units[1].prefill_tokens = 3000;
  group.units[1].alive_tokens = {2900, 0};
  const auto placed = place(CostModel{}, idle_workers(2), group);
  EXPECT_THAT(placed.unit_load, ElementsAre(1U, 0U));
}

TEST(Placement, TiesAreDecidedOneWay) {
  const auto placed = place(CostModel{}, idle_workers(4), fork(0, {0, 0, 0, 0}, 1, 10, 4));
  EXPECT_THAT(placed.unit_load, ElementsAre(0U));
}

TEST(Placement, NoPlanIsWorseThanOneWorkerForAll) {
  RandomFrames random(5);
  for (int round = 0; round < 2000; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const auto workers = static_cast<std::uint32_t>(1 + random.number(3));
    auto loads = idle_workers(workers);
    for (WorkerLoad& load : loads) {
      load.queued_prefill_tokens = static_cast<double>(random.number(3000));
      load.sequences = static_cast<std::uint32_t>(random.number(20));
    }
    const auto trunk = static_cast<std::uint32_t>(random.number(3000));
    std::vector<std::uint32_t> alive(workers);
    for (auto& tokens : alive)
      tokens = static_cast<std::uint32_t>(random.number(trunk));
    const Group group =
        fork(trunk, alive, 1 + random.number(20), static_cast<double>(random.number(300)),
             static_cast<std::uint32_t>(1 + random.number(400)));
    CostModel model;
    const Placement placed = place(model, loads, group);
    ASSERT_EQ(placed.unit_load.size(), group.units.size());
    for (const auto load : placed.unit_load)
      ASSERT_LT(load, workers);
    for (const auto& transfer : placed.transfers) {
      ASSERT_NE(transfer.from, transfer.to);
      ASSERT_GE(group.published_tokens[transfer.from], model.fork_min_prefix_tokens);
      EXPECT_THAT(placed.unit_load, ::testing::Contains(transfer.to));
    }
    model.spread_below = 0;  // never
    EXPECT_LE(placed.cost_seconds, place(model, loads, group).cost_seconds);
  }
}

TEST(CostModel, LearnsFromReports) {
  CostModel model;
  EngineStats before;
  EngineStats now;
  for (int i = 0; i < 50; ++i) {
    now = before;
    now.steps += 10;
    now.tokens_prefilled += 1280;
    model.observe_steps(before, now, 0.5);
    before = now;
  }
  EXPECT_NEAR(model.prefill_tokens_per_second, 2560, 1);
  for (int i = 0; i < 50; ++i) {
    now = before;
    now.steps += 10;
    now.tokens_decoded += 40;
    model.observe_steps(before, now, 0.1);  // 10 ms for four sequences
    before = now;
  }
  EXPECT_NEAR(model.decode_step_seconds + 4 * model.decode_seconds_per_sequence, 0.01, 1e-4);
  EXPECT_NEAR(model.prefill_tokens_per_second, 2560, 1);
  const CostModel learnt = model;
  now.tokens_prefilled += 100;  // mixed spans, idle spans and no time say nothing
  now.tokens_decoded += 100;
  now.steps += 10;
  model.observe_steps(before, now, 1);
  model.observe_steps(before, before, 1);
  model.observe_steps(before, now, 0);
  EXPECT_EQ(model.prefill_tokens_per_second, learnt.prefill_tokens_per_second);
  EXPECT_EQ(model.decode_step_seconds, learnt.decode_step_seconds);
  for (int i = 0; i < 50; ++i)
    model.observe_transfer(46'000'000, 0.011);
  EXPECT_NEAR(model.copy_bytes_per_second, 9.2e9, 1e8);
  for (int i = 0; i < 50; ++i)
    model.observe_peer(524'000'000, 0.0018);
  EXPECT_NEAR(model.peer_bytes_per_second, 349e9, 4e9);
  EXPECT_LT(model.peer_move_seconds(524e6), model.arena_move_seconds(524e6));
}

TEST(CostModel, ReportsThatAreReadLateDoNotMakePrefillFaster) {
  CostModel model;
  EngineStats before;
  for (int i = 0; i < 400; ++i) {
    EngineStats now = before;
    ++now.steps;
    now.tokens_prefilled += 32;
    // Two reports that are 10 ms apart, but read together and 10 us apart.
    model.observe_steps(before, now, i % 2 == 0 ? 0.01999 : 0.00001);
    before = now;
  }
  EXPECT_NEAR(model.prefill_tokens_per_second, 3200, 480);
}

GenerateRequest prompt_of(std::vector<TokenId> prompt, std::string salt = "") {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.cache_salt = std::move(salt);
  return request;
}

std::vector<PrefixGroup> group(const std::vector<GenerateRequest>& requests) {
  std::vector<const GenerateRequest*> pointers;
  for (const GenerateRequest& request : requests)
    pointers.push_back(&request);
  return group_by_prefix(pointers);
}

std::vector<TokenId> join(std::initializer_list<std::vector<TokenId>> parts) {
  std::vector<TokenId> whole;
  for (const auto& part : parts)
    whole.insert(whole.end(), part.begin(), part.end());
  return whole;
}

TEST(Grouping, FindsTrunksFamiliesAndStrangers) {
  RandomFrames random(9);
  const auto header = random.tokens(20);
  const auto family_a = random.tokens(100);
  const auto family_b = random.tokens(100);
  const std::vector<GenerateRequest> requests = {
      prompt_of(join({header, family_a, {1}})), prompt_of(random.tokens(50)),
      prompt_of(join({header, family_b, {1}})), prompt_of(join({header, family_a, {2}})),
      prompt_of(join({header, family_b, {2}}), "salt")};
  const auto groups = group(requests);
  ASSERT_EQ(groups.size(), 3U);
  EXPECT_EQ(groups[0].trunk_tokens, 20U);
  ASSERT_EQ(groups[0].units.size(), 2U);
  EXPECT_THAT(groups[0].units[0].members, ElementsAre(0, 3));
  EXPECT_EQ(groups[0].units[0].shared_tokens, 120U);
  EXPECT_THAT(groups[0].units[1].members, ElementsAre(2));
  EXPECT_EQ(groups[0].units[1].shared_tokens, 121U);
  EXPECT_EQ(groups[1].trunk_tokens, 0U);
  EXPECT_THAT(groups[1].units[0].members, ElementsAre(1));
  EXPECT_THAT(groups[2].units[0].members, ElementsAre(4));  // nothing is shared across salts
}

TEST(Grouping, EqualPromptsAndPrefixesOfEachOther) {
  RandomFrames random(9);
  const auto prompt = random.tokens(64);
  const auto groups = group(
      {prompt_of(prompt), prompt_of(prompt), prompt_of({prompt.begin(), prompt.begin() + 32})});
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].trunk_tokens, 32U);
  ASSERT_EQ(groups[0].units.size(), 2U);
  EXPECT_THAT(groups[0].units[0].members, ElementsAre(0, 1));
  EXPECT_EQ(groups[0].units[0].shared_tokens, 64U);
  EXPECT_TRUE(group({}).empty());
}

TEST(Grouping, EveryRequestIsPlacedOnceAndSharesWhatItsGroupSays) {
  RandomFrames random(10);
  for (int round = 0; round < 300; ++round) {
    std::vector<GenerateRequest> requests(1 + random.number(12));
    for (GenerateRequest& request : requests) {
      request.prompt.resize(1 + random.number(60));
      for (TokenId& token : request.prompt)  // long common prefixes are likely
        token = static_cast<TokenId>(random.number(30) == 0);
      request.tenant = random.number(4) == 0 ? "other" : "";
    }
    std::multiset<std::size_t> seen;
    for (const PrefixGroup& found : group(requests)) {
      std::vector<std::size_t> all;
      for (const PrefixUnit& unit : found.units) {
        for (const std::size_t a : unit.members) {
          for (const std::size_t b : unit.members) {
            if (a == b) continue;
            EXPECT_GE(shared_tokens(requests[a], requests[b]), unit.shared_tokens);
          }
          all.push_back(a);
          seen.insert(a);
        }
        EXPECT_GE(unit.shared_tokens, found.trunk_tokens);
      }
      for (const std::size_t a : all) {
        for (const std::size_t b : all)
          EXPECT_GE(shared_tokens(requests[a], requests[b]), found.trunk_tokens);
      }
    }
    ASSERT_EQ(seen.size(), requests.size());
    ASSERT_EQ(std::set<std::size_t>(seen.begin(), seen.end()).size(), requests.size());
  }
}

TEST(CostModel, FindsWhereRestoringBeatsPrefill) {
  CostModel model;
  model.prefill_tokens_per_second = 1000;
  model.copy_bytes_per_second = 4e9;
  model.transfer_seconds = 2e-3;
  model.file_bytes_per_second = 1e9;
  model.file_seconds = 4e-3;
  constexpr std::uint64_t kTokenBytes = 20000;
  model.store_bytes_per_second = 1e8;
  model.store_seconds = 0.1;
  for (const Tier from : {Tier::kArena, Tier::kFile, Tier::kStore}) {
    const std::uint32_t crossover = model.crossover_tokens(kTokenBytes, from);
    EXPECT_GT(crossover, 1U);
    EXPECT_LT(model.restore_seconds(crossover * kTokenBytes, from),
              model.prefill_seconds(crossover));
    EXPECT_GE(model.restore_seconds((crossover - 1) * kTokenBytes, from),
              model.prefill_seconds(crossover - 1));
  }
  // Of a store: not longer than it takes without, however little that is.
  for (const std::uint64_t tokens : {std::uint64_t{1}, std::uint64_t{100}, std::uint64_t{100000}}) {
    EXPECT_EQ(model.patience_seconds(tokens, Tier::kStore), model.prefill_seconds(tokens));
    EXPECT_GT(model.patience_seconds(tokens, Tier::kFile), 1e6);
  }
  const auto crossover = [&](Tier from) { return model.crossover_tokens(kTokenBytes, from); };
  EXPECT_LT(crossover(Tier::kArena), crossover(Tier::kFile));
  EXPECT_LT(crossover(Tier::kFile), crossover(Tier::kStore));
  // A disk that is slower than prefill never pays.
  model.file_bytes_per_second = 1e6;
  EXPECT_EQ(crossover(Tier::kFile), std::numeric_limits<std::uint32_t>::max());
}

TEST(CostModel, LearnsHowFastFilesAre) {
  CostModel model;
  for (int i = 0; i < 50; ++i)
    model.observe_file(1000000000, 2 + model.file_seconds);
  EXPECT_NEAR(model.file_bytes_per_second, 5e8, 1e6);
  const double before = model.file_bytes_per_second;
  model.observe_file(0, 1);
  model.observe_file(100, 0);
  EXPECT_EQ(model.file_bytes_per_second, before);
}

TEST(CostModel, LearnsHowFastTheStoreIsAndDoubtsItAfterAWhile) {
  CostModel model;
  const CostModel fresh;
  for (int i = 0; i < 60; ++i) {
    model.observe_store(1000, 0.5);  // tells what opening takes
    model.observe_store(1000000000, 100.5);
  }
  EXPECT_NEAR(model.store_seconds, 0.5, 0.01);
  EXPECT_NEAR(model.store_bytes_per_second, 1e7, 1e5);
  const double before = model.store_bytes_per_second;
  model.observe_store(0, 1);
  model.observe_store(100, 0);
  EXPECT_EQ(model.store_bytes_per_second, before);
  for (int i = 0; i < 20; ++i)
    model.doubt_store();
  EXPECT_NEAR(model.store_seconds, fresh.store_seconds, 0.01);
  EXPECT_NEAR(model.store_bytes_per_second, fresh.store_bytes_per_second, 1e6);
}

TEST(Backoff, DoublesAndStartsAgainAfterHealth) {
  Backoff backoff(Backoff::Policy{});
  const Clock::TimePoint start{};
  std::vector<milliseconds> delays;
  for (int i = 0; i < 9; ++i)
    delays.push_back(backoff.after_death(false, start, start));
  using namespace std::chrono_literals;
  EXPECT_THAT(delays,
              ElementsAre(50ms, 100ms, 200ms, 400ms, 800ms, 1600ms, 3200ms, 5000ms, 5000ms));
  EXPECT_EQ(backoff.after_death(true, start, start + 59s), 5000ms);
  EXPECT_EQ(backoff.after_death(true, start, start + 60s), 50ms);
  EXPECT_EQ(backoff.after_death(true, start, start + 1s), 100ms);
}

}  // namespace
}  // namespace thaw::forkpool

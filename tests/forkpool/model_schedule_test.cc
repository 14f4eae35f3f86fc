// Which model gets which slot, by a clock that the tests turn.

#include "forkpool/model_schedule.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using State = ModelSchedule::State;

struct ScheduleBed {
  explicit ScheduleBed(std::vector<std::string> models, std::size_t num_slots = 1)
      : schedule(options(num_slots), models) {
    for (const std::string& model : models)
      schedule.add(model);
    serve_all();
  }
  static ModelSchedule::Options options(std::size_t num_slots) {
    ModelSchedule::Options options;
    options.num_slots = num_slots;
    return options;
  }

  std::vector<ModelSchedule::Swap> plan() { return schedule.plan(now); }
  /// Does what the plan says at once, until it says no more.
  void serve_all() {
    for (auto swaps = plan(); !swaps.empty(); swaps = plan())
      for (const auto& swap : swaps)
        schedule.swapped(swap.slot, now);
  }
  void wait(const std::string& model, std::size_t count = 1) {
    schedule.set_waiting(model, count, now);
  }
  void let_in(const std::string& model) { schedule.set_waiting(model, 0, now); }
  void pass(Clock::Duration time) { now += time; }
  const ModelSchedule::Slot& slot(std::size_t index = 0) { return schedule.slots()[index]; }
  /// The only thing that the plan says.
  void expect_swap(std::size_t slot, const std::string& model) {
    const auto swaps = plan();
    ASSERT_EQ(swaps.size(), 1U);
    EXPECT_EQ(swaps[0].slot, slot);
    EXPECT_EQ(swaps[0].model, model);
  }

  Clock::TimePoint now{seconds(1000)};
  ModelSchedule schedule;
};

TEST(ModelSchedule, TheFirstModelsBeginWithTheSlots) {
  ScheduleBed bed({"a", "b", "c"}, 2);
  EXPECT_EQ(bed.schedule.open_slot("a"), 0U);
  EXPECT_EQ(bed.schedule.open_slot("b"), 1U);
  EXPECT_EQ(bed.schedule.open_slot("c"), std::nullopt);
}

TEST(ModelSchedule, NobodyIsSwappedForNobody) {
  ScheduleBed bed({"a", "b"});
  bed.pass(seconds(1000));
  EXPECT_TRUE(bed.plan().empty());
  EXPECT_EQ(bed.schedule.next_plan(), std::nullopt);
}

TEST(ModelSchedule, AnIdleSlotIsLeftAloneForALingerOnly) {
  ScheduleBed bed({"a", "b"});
  bed.schedule.began(0, bed.now);
  bed.pass(seconds(1));
  bed.schedule.ended(0, bed.now);
  bed.wait("b");
  EXPECT_TRUE(bed.plan().empty());
  EXPECT_EQ(bed.slot().state, State::kServing) << "the next round of a comes soon";
  EXPECT_EQ(bed.schedule.next_plan(), bed.now + milliseconds(50));
  bed.pass(milliseconds(50));
  bed.expect_swap(0, "b");
  EXPECT_EQ(bed.slot().state, State::kSwapping);
  EXPECT_EQ(bed.schedule.open_slot("a"), std::nullopt);
  EXPECT_EQ(bed.schedule.open_slot("b"), std::nullopt);
  EXPECT_TRUE(bed.plan().empty()) << "once is enough";
  bed.schedule.swapped(0, bed.now);
  EXPECT_EQ(bed.schedule.open_slot("b"), 0U);
}

TEST(ModelSchedule, ABusySlotServesItsQuantumThenTheGrace) {
  ScheduleBed bed({"a", "b"});
  bed.schedule.began(0, bed.now);
  bed.pass(seconds(1));
  bed.wait("b");
  EXPECT_TRUE(bed.plan().empty());
  EXPECT_EQ(bed.slot().state, State::kServing);
  EXPECT_EQ(bed.schedule.next_plan(), bed.now + seconds(4));
  bed.pass(seconds(4));
  EXPECT_TRUE(bed.plan().empty()) << "what runs may end";
  EXPECT_EQ(bed.slot().state, State::kClosing);
  EXPECT_EQ(bed.schedule.open_slot("a"), std::nullopt) << "but nothing new comes in";
  EXPECT_EQ(bed.schedule.next_plan(), bed.now + seconds(2));
  bed.pass(seconds(2));
  bed.expect_swap(0, "b");
}

TEST(ModelSchedule, AClosedSlotIsGivenAwayAsSoonAsItIsEmpty) {
  ScheduleBed bed({"a", "b"});
  bed.schedule.began(0, bed.now);
  bed.pass(seconds(60));  // the quantum is long over
  bed.wait("b");
  EXPECT_TRUE(bed.plan().empty());
  EXPECT_EQ(bed.slot().state, State::kClosing);
  bed.pass(milliseconds(3));
  bed.schedule.ended(0, bed.now);
  bed.expect_swap(0, "b");
}

TEST(ModelSchedule, AClosedSlotOpensAgainWhereNobodyWantsItAnyMore) {
  ScheduleBed bed({"a", "b"});
  bed.schedule.began(0, bed.now);
  bed.pass(seconds(6));
  bed.wait("b");
  bed.plan();
  EXPECT_EQ(bed.slot().state, State::kClosing);
  bed.let_in("b");  // all of them cancelled
  EXPECT_TRUE(bed.plan().empty());
  EXPECT_EQ(bed.schedule.open_slot("a"), 0U);
}

TEST(ModelSchedule, AnotherSlotThatIsFreeSparesTheOneThatIsClosing) {
  ScheduleBed bed({"a", "b", "c"}, 2);
  bed.schedule.began(0, bed.now);
  bed.schedule.began(1, bed.now);
  bed.pass(seconds(6));
  bed.wait("c");
  bed.plan();
  const std::size_t closing = bed.slot(0).state == State::kClosing ? 0 : 1;
  EXPECT_EQ(bed.slot(1 - closing).state, State::kServing) << "one is enough";
  bed.schedule.ended(1 - closing, bed.now);
  bed.expect_swap(1 - closing, "c");
  EXPECT_EQ(bed.slot(closing).state, State::kServing);
}

TEST(ModelSchedule, TheLeastRecentlyUsedIdleSlotGoes) {
  ScheduleBed bed({"a", "b", "c", "d"}, 3);
  for (const std::size_t slot : {2U, 0U, 1U}) {
    bed.pass(seconds(1));
    bed.schedule.began(slot, bed.now);
    bed.schedule.ended(slot, bed.now);
  }
  bed.pass(seconds(1));
  bed.wait("d");
  bed.expect_swap(2, "d");
}

TEST(ModelSchedule, AnIdleSlotGoesBeforeABusyOne) {
  ScheduleBed bed({"a", "b", "c"}, 2);
  bed.schedule.began(0, bed.now);
  bed.pass(seconds(9));
  bed.schedule.began(1, bed.now);
  bed.schedule.ended(1, bed.now);
  bed.pass(seconds(1));
  bed.wait("c");
  bed.expect_swap(1, "c");
}

TEST(ModelSchedule, TheOldestWaitGoesFirst) {
  ScheduleBed bed({"a", "b", "c"});
  bed.schedule.began(0, bed.now);
  bed.wait("c");
  bed.pass(milliseconds(1));
  bed.wait("b", 100);
  bed.pass(seconds(7));
  bed.plan();
  EXPECT_EQ(bed.slot().next, "c");
  bed.schedule.ended(0, bed.now);
  bed.expect_swap(0, "c");
}

TEST(ModelSchedule, AFailedSwapGivesTheSlotBackAndPutsTheModelOff) {
  ScheduleBed bed({"a", "b"});
  bed.pass(seconds(1));
  bed.wait("b");
  bed.expect_swap(0, "b");
  bed.schedule.failed(0, "no memory", bed.now);
  bed.let_in("b");
  EXPECT_EQ(bed.schedule.refusal("b", bed.now), "no memory");
  bed.expect_swap(0, "a");  // though nobody waits for it
  bed.schedule.swapped(0, bed.now);
  EXPECT_EQ(bed.schedule.open_slot("a"), 0U);

  // Put off for longer each time, and tried again only if somebody asks.
  for (const int wait : {5, 10, 20}) {
    EXPECT_TRUE(bed.schedule.refusal("b", bed.now + seconds(wait) - milliseconds(1)));
    bed.pass(seconds(wait));
    EXPECT_EQ(bed.schedule.refusal("b", bed.now), std::nullopt);
    EXPECT_TRUE(bed.plan().empty());
    bed.wait("b");
    bed.expect_swap(0, "b");
    bed.schedule.failed(0, "no memory", bed.now);
    bed.let_in("b");
    bed.serve_all();
  }
  bed.pass(seconds(300));
  bed.wait("b");
  bed.expect_swap(0, "b");
  bed.schedule.swapped(0, bed.now);
  EXPECT_EQ(bed.schedule.refusal("b", bed.now), std::nullopt);
}

TEST(ModelSchedule, AModelThatFailsAtTheStartIsNotTriedForEver) {
  ModelSchedule schedule(ScheduleBed::options(1), {"a", "b"});
  schedule.add("a");
  schedule.add("b");
  Clock::TimePoint now{seconds(1)};
  ASSERT_EQ(schedule.plan(now).size(), 1U);
  schedule.failed(0, "damaged", now);
  EXPECT_TRUE(schedule.plan(now).empty());
  now += seconds(3600);
  EXPECT_TRUE(schedule.plan(now).empty());
  schedule.set_waiting("b", 1, now);
  const auto swaps = schedule.plan(now);
  ASSERT_EQ(swaps.size(), 1U);
  EXPECT_EQ(swaps[0].model, "b");
}

TEST(ModelSchedule, ARemovedModelLeavesWhenItsRequestsHaveEnded) {
  ScheduleBed bed({"a", "b"});
  bed.schedule.began(0, bed.now);
  EXPECT_TRUE(bed.schedule.remove("a"));
  EXPECT_FALSE(bed.schedule.remove("a"));
  EXPECT_TRUE(bed.plan().empty());
  EXPECT_TRUE(bed.schedule.has("a"));
  bed.schedule.ended(0, bed.now);
  bed.expect_swap(0, "");
  bed.schedule.swapped(0, bed.now);
  EXPECT_TRUE(bed.plan().empty());
  EXPECT_FALSE(bed.schedule.has("a"));
  EXPECT_EQ(bed.slot().state, State::kEmpty);
  bed.wait("b");
  bed.expect_swap(0, "b");

  EXPECT_FALSE(bed.schedule.remove("z"));
  bed.schedule.add("c");
  EXPECT_TRUE(bed.schedule.remove("c"));
  bed.plan();
  EXPECT_FALSE(bed.schedule.has("c")) << "never had a slot";
}

TEST(ModelSchedule, ARemovedModelStaysForWhatASwapSuspends) {
  ScheduleBed bed({"a", "b"});
  bed.schedule.began(0, bed.now);
  EXPECT_TRUE(bed.schedule.remove("a"));
  bed.wait("b");
  bed.now += std::chrono::minutes(10);
  bed.plan();
  bed.now += std::chrono::minutes(10);
  bed.plan();
  ASSERT_EQ(bed.slot().state, State::kSwapping);
  ASSERT_EQ(bed.slot().model, "b");
  EXPECT_TRUE(bed.schedule.has("a"));
}

TEST(ModelSchedule, WhatItPromisesHoldsUnderRandomLoad) {
  // Requests of endless length: only the rule ends anything. A swap takes a second.
  for (const std::uint32_t seed : {1U, 2U, 3U, 4U, 5U, 6U}) {
    std::mt19937 random(seed);
    const std::size_t num_models = 2 + seed % 4;
    const std::size_t num_slots = 1 + seed % 2;
    std::vector<std::string> models;
    for (std::size_t i = 0; i < num_models; ++i)
      models.push_back("m" + std::to_string(i));
    ScheduleBed bed(models, num_slots);
    struct Load {
      std::size_t waiting = 0;
      Clock::TimePoint since;
      std::size_t served = 0;
    };
    std::map<std::string, Load> loads;
    std::map<std::size_t, Clock::TimePoint> done;
    // All of the rule's times are multiples of a step, so that no step is lost between them.
    // The longest wait begins as the model's own slot begins to close: a grace; then a turn of each
    // N of the M-N models that are left, and a swap. See model_schedule.h.
    const auto turns = (num_models - num_slots + num_slots - 1) / num_slots;
    const Clock::Duration bound =
        turns * (seconds(5) + seconds(2) + seconds(1)) + seconds(2) + seconds(1);
    for (int step = 0; step < 20000; ++step) {
      bed.pass(milliseconds(10));
      if (random() % 4 == 0) {
        const std::string& model = models[random() % num_models];
        Load& load = loads[model];
        if (load.waiting++ == 0) load.since = bed.now;
        bed.schedule.set_waiting(model, load.waiting, load.since);
      }
      for (auto& [slot, when] : done)
        if (when <= bed.now) {
          bed.schedule.swapped(slot, bed.now);
          when = Clock::TimePoint::max();
        }
      for (bool sent = true; sent;) {
        std::vector<std::pair<std::string, std::size_t>> running;
        for (std::size_t slot = 0; slot < num_slots; ++slot)
          running.emplace_back(bed.slot(slot).model, bed.slot(slot).running);
        for (const auto& swap : bed.plan()) {
          done[swap.slot] = bed.now + seconds(1);
          const auto& [model, count] = running[swap.slot];
          if (count == 0) continue;
          Load& load = loads[model];  // suspended
          if (load.waiting == 0) load.since = bed.now;
          load.waiting += count;
          bed.schedule.set_waiting(model, load.waiting, load.since);
        }
        sent = false;
        for (auto& [model, load] : loads) {
          const auto slot = bed.schedule.open_slot(model);
          if (!slot || load.waiting == 0) continue;
          sent = true;
          load.served += load.waiting;
          for (; load.waiting > 0; --load.waiting)
            bed.schedule.began(*slot, bed.now);
          bed.schedule.set_waiting(model, 0, bed.now);
        }
      }
      std::vector<std::string> held;
      for (std::size_t slot = 0; slot < num_slots; ++slot)
        held.push_back(bed.slot(slot).model);
      std::ranges::sort(held);
      ASSERT_EQ(std::ranges::adjacent_find(held), held.end()) << "one slot a model";
      for (const auto& [model, load] : loads)
        if (load.waiting > 0) {
          ASSERT_LE(bed.now - load.since, bound) << model << " starves, seed " << seed;
        }
    }
    for (const std::string& model : models)
      EXPECT_GT(loads[model].served, 100U) << model;
  }
}

}  // namespace
}  // namespace thaw::forkpool

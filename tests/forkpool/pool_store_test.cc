// Trunks in a store below the spill directory: put there, found by other servers, and nobody waits
// for one that is slow, wrong or gone. By pools of fake workers and a store in memory.

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/hash.h"
#include "forkpool/trunk_store.h"
#include "kvsnap/kv_file.h"
#include "tests/checkpoint/scratch_folder.h"
#include "tests/forkpool/fake_store.h"
#include "tests/forkpool/trunk_calls.h"
#include "tests/kvsnap/crash_io.h"

namespace thaw::forkpool {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr std::size_t kObjectTokens = 1024;
const std::string kUrl = "s3://bucket/kv";

class PoolStoreTest : public testing::Test {
 protected:
  /// Of a machine of its own: what one wrote, another finds in the store alone.
  PoolOptions on_machine(const std::string& machine,
                         std::uint64_t spill_bytes = std::uint64_t{64} << 20) {
    PoolOptions options = PoolHarness::options();
    options.spill_directory = folder / machine;
    options.spill_bytes = spill_bytes;
    options.spill_store = &store;
    options.spill_url = kUrl;
    return options;
  }
  void start(PoolOptions options) {
    harness.reset();
    harness.emplace("", std::move(options));
    ASSERT_TRUE(harness->wait_ready());
  }
  /// Has a prompt computed; how many of its tokens were not.
  std::uint32_t ask(const std::vector<TokenId>& prompt) {
    const GenerateRequest request = make_request(++last_id, prompt, 4);
    harness->submit({request});
    EXPECT_TRUE(harness->wait_ended(last_id));
    const auto stream = harness->stream(last_id);
    EXPECT_TRUE(stream.completed);
    EXPECT_EQ(stream.tokens.at(0), expected_tokens(request));
    return stream.completed ? stream.completed->cached_tokens : 0;
  }
  bool wait_status(const std::function<bool(const PoolStatus&)>& condition) {
    return harness->wait([&] { return condition(harness->pool().status()); });
  }
  /// Has these prompts computed, kept and put; the first one is the oldest object.
  void put(const std::vector<std::vector<TokenId>>& prompts, PoolOptions options) {
    start(std::move(options));
    std::uint64_t puts = harness->pool().status().store.writes;
    for (const auto& prompt : prompts) {
      ask(prompt);
      ASSERT_TRUE(keep_trunk(harness->pool(), "pin", prompt));
      ++puts;
      ASSERT_TRUE(wait_status([&](const PoolStatus& s) { return s.store.writes == puts; }));
    }
    harness.reset();
  }
  /// Objects are looked into the newest first, so whoever can keep the oldest knows all.
  bool wait_known(const std::vector<TokenId>& oldest) {
    return harness->wait([&] { return keep_trunk(harness->pool(), "oldest", oldest).has_value(); });
  }
  std::size_t files_of(const std::string& machine) const {
    std::size_t count = 0;
    for (const auto& entry : fs::directory_iterator(folder / machine))
      if (entry.path().extension() == ".thawkv") ++count;
    return count;
  }

  const checkpoint::ScratchFolder scratch;
  const fs::path folder = scratch.path();
  std::shared_ptr<FakeBucket> bucket = std::make_shared<FakeBucket>();
  FakeStore store{bucket};
  std::optional<PoolHarness> harness;
  RequestId last_id = 0;
  const std::vector<TokenId> oldest = make_prompt(kObjectTokens, 1);
  const std::vector<TokenId> trunk = make_prompt(kObjectTokens, 2);
};

TEST_F(PoolStoreTest, AnotherServerFindsWhatOnePut) {
  put({oldest, trunk}, on_machine("a"));
  EXPECT_EQ(bucket->size(), 2U);
  start(on_machine("b"));
  ASSERT_TRUE(wait_known(oldest));
  auto longer = trunk;
  longer.resize(kObjectTokens + 7, 3);
  EXPECT_EQ(ask(longer), kObjectTokens) << "fetched, restored, not prefilled";
  const PoolStatus status = harness->pool().status();
  EXPECT_EQ(status.store.hits, 2U);
  EXPECT_EQ(status.store.entries, 2U);
  EXPECT_GT(status.store.bytes, 2 * kObjectTokens * 16);
  EXPECT_GT(status.store.restored_bytes, 2 * kObjectTokens * 16);
  EXPECT_EQ(status.tokens_restored, kObjectTokens);
  EXPECT_EQ(files_of("b"), 2U) << "what was fetched is a file now";
  EXPECT_EQ(status.store.writes, 0U) << "and not put again";
  EXPECT_EQ(ask(make_prompt(kObjectTokens, 9)), 0U);
}

TEST_F(PoolStoreTest, ABranchOfAStoredTrunkIsFoundToo) {
  put({oldest, trunk}, on_machine("a"));
  start(on_machine("b"));
  ASSERT_TRUE(wait_known(oldest));
  std::vector<TokenId> branch(trunk.begin(), trunk.begin() + 800);
  branch.resize(kObjectTokens, 3);
  EXPECT_EQ(ask(branch), 800U);
}

TEST_F(PoolStoreTest, WhatTheBudgetPushesOutComesBack) {
  put({oldest}, on_machine("a"));
  std::uint64_t one = 0;
  for (const auto& entry : fs::directory_iterator(folder / "a"))
    one += entry.file_size();
  put({trunk}, on_machine("a", one + one / 2));
  EXPECT_EQ(files_of("a"), 1U) << "there is no room for two";
  EXPECT_EQ(bucket->size(), 2U);
  start(on_machine("a", one + one / 2));
  ASSERT_TRUE(wait_status([](const PoolStatus& s) { return s.store.entries == 2; }));
  EXPECT_TRUE(wait_known(oldest));
  EXPECT_EQ(ask(oldest), kObjectTokens - 1);
}

TEST_F(PoolStoreTest, WhatComesLaterIsFoundByTheNextLook) {
  PoolOptions options = on_machine("b");
  options.spill_list_every = std::chrono::milliseconds(20);
  PoolHarness other("", options);
  ASSERT_TRUE(other.wait_ready());
  put({oldest}, on_machine("a"));
  EXPECT_TRUE(other.wait([&] { return keep_trunk(other.pool(), "pin", oldest).has_value(); }));
}

TEST_F(PoolStoreTest, TheEndWaitsForWhatIsOnItsWay) {
  start(on_machine("a"));
  ask(oldest);
  ask(trunk);
  EXPECT_TRUE(harness->pool().shutdown(std::chrono::milliseconds(20000)));
  EXPECT_EQ(bucket->size(), 2U);
}

TEST_F(PoolStoreTest, AStoreThatHangsHoldsUpNobody) {
  put({oldest, trunk}, on_machine("a"));
  start(on_machine("b"));
  ASSERT_TRUE(wait_known(oldest));
  bucket->with([](FakeBucket& b) {
    b.is_shut = true;
    b.streams = 0;
  });
  harness->submit({make_request(500, trunk, 4)});
  {
    std::unique_lock lock(bucket->mutex);
    bucket->changed.wait(lock, [&] { return bucket->streams > 0; });
  }
  EXPECT_EQ(ask(make_prompt(100, 3)), 0U) << "others go on meanwhile";
  EXPECT_TRUE(harness->wait_ended(500)) << "and it is prefilled in the end";
  EXPECT_EQ(harness->stream(500).completed->cached_tokens, 0U);
  // A put that hangs: the files are kept, and the end comes.
  const auto another = make_prompt(kObjectTokens, 4);
  ask(another);
  EXPECT_TRUE(keep_trunk(harness->pool(), "pin", another));
  ASSERT_TRUE(wait_status([](const PoolStatus& s) { return s.store.waiting == 1; }));
  static_cast<void>(harness->pool().shutdown(std::chrono::milliseconds(300)));
  harness.reset();
  EXPECT_EQ(bucket->size(), 2U);
  bucket->with([](FakeBucket& b) { b.is_shut = false; });
  start(on_machine("b"));
  EXPECT_TRUE(harness->wait([&] { return bucket->size() >= 3; })) << "put by the next life";
}

TEST_F(PoolStoreTest, AStoreThatFailsIsLeftAloneAndTriedAgain) {
  bucket->with([](FakeBucket& b) { b.failure = Errc::kUnavailable; });
  start(on_machine("a"));
  EXPECT_EQ(ask(oldest), 0U);
  EXPECT_TRUE(keep_trunk(harness->pool(), "pin", oldest)) << "a file has it";
  ASSERT_TRUE(wait_status([](const PoolStatus& s) { return s.store.failures > 0; }));
  EXPECT_TRUE(wait_status([](const PoolStatus& s) { return s.store.waiting == 1; }));
  bucket->with([](FakeBucket& b) { b.failure.reset(); });
  EXPECT_TRUE(harness->wait([&] { return bucket->size() == 1; }));
  EXPECT_TRUE(wait_status([](const PoolStatus& s) { return s.store.waiting == 0; }));
}

TEST_F(PoolStoreTest, AStoreThatTakesNothingStillGives) {
  put({oldest, trunk}, on_machine("a"));
  bucket->with([](FakeBucket& b) { b.put_failure = Errc::kResourceExhausted; });
  start(on_machine("b"));
  ASSERT_TRUE(wait_known(oldest));
  const auto another = make_prompt(kObjectTokens, 4);
  ask(another);
  ASSERT_TRUE(keep_trunk(harness->pool(), "pin", another));
  ASSERT_TRUE(wait_status([](const PoolStatus& s) { return s.store.failures > 0; }));
  EXPECT_EQ(ask(trunk), kObjectTokens - 1) << "right behind a put that failed";
}

TEST_F(PoolStoreTest, DamagedObjectsCostAPrefillOnceAndAreRemoved) {
  put({oldest, trunk}, on_machine("a"));
  start(on_machine("b"));
  ASSERT_TRUE(wait_known(oldest));
  bucket->with([&](FakeBucket& b) {
    for (auto& [url, held] : b.objects)
      if (held.modified > 1000) held.bytes[3 * 4096 + 9] ^= std::byte{1};  // a block of the second
  });
  EXPECT_EQ(ask(trunk), 0U);
  EXPECT_TRUE(harness->wait([&] { return bucket->size() == 1; }));
  EXPECT_TRUE(wait_status([](const PoolStatus& s) { return s.store.refused == 1; }));
  EXPECT_TRUE(harness->wait([&] { return files_of("b") == 1; }));
}

TEST_F(PoolStoreTest, OnlyWhatIsRightIsTaken) {
  put({oldest, trunk}, on_machine("a"));
  std::string of_trunk;
  bucket->with([&](FakeBucket& b) {
    std::string of_oldest;
    for (const auto& [url, held] : b.objects)
      (held.modified > 1000 ? of_trunk : of_oldest) = url;
    // Right bytes under a wrong name, no container, another engine's, somebody else's.
    b.objects[of_trunk] = b.objects[of_oldest];
    b.objects[of_trunk].modified = 2000;
    const std::string engine = of_trunk.substr(0, of_trunk.rfind('/'));
    b.objects[engine + "/" + std::string(32, 'a') + ".thawkv"] = {{std::byte{1}}, 2001};
    b.objects[kUrl + "/" + std::string(32, 'b') + "/" + std::string(32, 'c') + ".thawkv"] = {
        {std::byte{1}}, 2002};
    b.objects[kUrl + "/notes.txt"] = {{std::byte{1}}, 2003};
  });
  start(on_machine("b"));
  ASSERT_TRUE(wait_known(oldest));
  EXPECT_EQ(ask(trunk), 0U);
  EXPECT_EQ(harness->pool().status().store.refused, 2U);
  EXPECT_EQ(harness->pool().status().store.entries, 1U);
  EXPECT_EQ(bucket->size(), 5U) << "nothing was removed";
}

TEST_F(PoolStoreTest, WhatIsBeyondTheBudgetGoesTheOldestFirst) {
  put({oldest}, on_machine("a"));
  std::uint64_t one = 0;
  bucket->with([&](FakeBucket& b) {
    one = b.objects.begin()->second.bytes.size();
    b.objects[kUrl + "/notes.txt"] = {std::vector<std::byte>(100000), 1};
  });
  PoolOptions options = on_machine("a");
  options.spill_store_bytes = one + one / 2;
  start(options);
  ask(trunk);
  ASSERT_TRUE(keep_trunk(harness->pool(), "pin", trunk));
  ASSERT_TRUE(wait_status([](const PoolStatus& s) { return s.store.evictions == 1; }));
  ASSERT_TRUE(harness->wait([&] { return bucket->size() == 2; }));
  harness.reset();
  EXPECT_TRUE(bucket->objects.contains(kUrl + "/notes.txt")) << "what is no trunk stays";
  EXPECT_GT(bucket->objects.begin()->second.modified, 1000) << "the newer one is there";
  // One that is larger than all of it moves nothing out.
  options.spill_store_bytes = one + 100;
  start(options);
  const auto larger = make_prompt(2 * kObjectTokens, 5);
  ask(larger);
  ASSERT_TRUE(keep_trunk(harness->pool(), "pin", larger));
  ASSERT_TRUE(wait_status([](const PoolStatus& s) { return s.store.waiting == 0; }));
  EXPECT_TRUE(harness->wait([&] { return bucket->size() == 2; }));
}

TEST_F(PoolStoreTest, OptionsThatContradictEachOtherAreRefused) {
  PoolOptions options = on_machine("a");
  options.spill_directory.clear();
  const auto pool = ForkPool::start(options, {}, [](const GenerateEvent&) {});
  ASSERT_FALSE(pool);
  EXPECT_THAT(pool.error().message, HasSubstr("spill directory"));
}

// Power cuts while an object becomes a file, between any two calls and inside of every write.
TEST(TrunkStore, AFetchedFileIsWholeOrNotThere) {
  const auto bucket = std::make_shared<FakeBucket>();
  const std::string key = std::string(32, 'a') + "/" + std::string(32, 'b') + ".thawkv";
  std::vector<std::byte> bytes(5000);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(i * 31 >> 3);
  bucket->objects[kUrl + "/" + key] = {bytes, 1};
  kvsnap::CrashIo disk;
  TrunkStore store(std::make_unique<FakeStore>(bucket), kUrl, disk);
  ASSERT_EQ(store.fetch(key, "d/trunk.thawkv").value(), bytes.size());
  EXPECT_EQ(disk.files().at("d/trunk.thawkv"), bytes);
  for (std::size_t call = 0; call < disk.num_calls(); ++call) {
    for (std::size_t torn = 0; torn <= disk.written_by(call); torn += 61) {
      for (const auto kind : {kvsnap::Survival::Kind::kNothing, kvsnap::Survival::Kind::kEverything,
                              kvsnap::Survival::Kind::kRandom}) {
        const auto files =
            disk.after_crash(call, torn, {kind, static_cast<unsigned>(call * 1000 + torn)});
        const auto found = files.find("d/trunk.thawkv");
        if (found != files.end()) {
          ASSERT_EQ(found->second, bytes) << "call " << call;
        }
      }
    }
  }
  const std::size_t num_calls = disk.num_calls();
  for (std::size_t call = 0; call + 1 < num_calls; ++call) {
    kvsnap::CrashIo full;
    full.fail_from(call);
    TrunkStore again(std::make_unique<FakeStore>(bucket), kUrl, full);
    const auto fetched = again.fetch(key, "d/trunk.thawkv");
    ASSERT_FALSE(fetched) << call;
    EXPECT_EQ(fetched.error().code, Errc::kResourceExhausted);
    EXPECT_TRUE(full.files().empty()) << call;
  }
}

}  // namespace
}  // namespace thaw::forkpool

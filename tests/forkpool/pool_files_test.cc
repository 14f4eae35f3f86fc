// Trunks in files: saved, loaded, spilled, found again; by pools of fake workers.

#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/hash.h"
#include "kvsnap/kv_file.h"
#include "tests/checkpoint/scratch_folder.h"
#include "tests/forkpool/trunk_calls.h"
#include "tests/kvsnap/crash_io.h"

namespace thaw::forkpool {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr std::size_t kTokens = 1024;  // of a trunk: 64 blocks of the fake's, 16 KiB

/// The system's files, behind gates: nobody opens one while it is shut, nor makes one while that
/// is.
class GatedIo final : public kvsnap::FileIo {
 public:
  Result<std::unique_ptr<kvsnap::IoFile>> create(const std::string& path,
                                                 std::uint64_t reserve_bytes) override {
    if (path.ends_with(".thawkv")) shut_for_new.wait(true);
    return inner_.create(path, reserve_bytes);
  }
  Result<std::unique_ptr<kvsnap::IoFile>> open(const std::string& path) override {
    ++waiting;
    waiting.notify_all();
    shut.wait(true);
    return inner_.open(path);
  }
  Result<void> rename(const std::string& from, const std::string& to) override {
    return inner_.rename(from, to);
  }
  Result<void> remove(const std::string& path) override { return inner_.remove(path); }
  Result<void> sync_directory_of(const std::string& path) override {
    return inner_.sync_directory_of(path);
  }
  void open_gate() {
    for (std::atomic<bool>* gate : {&shut, &shut_for_new}) {
      *gate = false;
      gate->notify_all();
    }
  }

  std::atomic<bool> shut = false;
  std::atomic<bool> shut_for_new = false;
  std::atomic<int> waiting = 0;

 private:
  kvsnap::FileIo& inner_ = kvsnap::system_io(kvsnap::IoMode::kBuffered);
};

class PoolFilesTest : public testing::Test {
 protected:
  void start(PoolOptions options, const std::string& rules = "") {
    harness.reset();
    harness.emplace(rules, std::move(options));
    ASSERT_TRUE(harness->wait_ready());
  }
  PoolOptions with_spill(std::uint64_t bytes = std::uint64_t{64} << 20) const {
    PoolOptions options = PoolHarness::options();
    options.spill_directory = spill;
    options.spill_bytes = bytes;
    return options;
  }
  /// Has a prompt computed; how many of its tokens were not.
  std::uint32_t ask(const std::vector<TokenId>& prompt, const std::string& tenant = "") {
    GenerateRequest request = make_request(++last_id, prompt, 4);
    request.tenant = tenant;
    harness->submit({request});
    EXPECT_TRUE(harness->wait_ended(last_id));
    const auto stream = harness->stream(last_id);
    EXPECT_TRUE(stream.completed);
    EXPECT_EQ(stream.tokens.at(0), expected_tokens(request));
    return stream.completed ? stream.completed->cached_tokens : 0;
  }
  std::vector<fs::path> spilled() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(spill))
      if (entry.path().extension() == ".thawkv") files.push_back(entry.path());
    return files;
  }
  bool wait_spilled(std::size_t count) {
    return harness->wait([&] { return spilled().size() == count; });
  }
  static void flip(const fs::path& file, std::uint64_t at) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(at));
    const char byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(static_cast<std::streamoff>(at));
    stream.put(byte);
  }

  const checkpoint::ScratchFolder scratch;
  const fs::path folder = scratch.path();
  const fs::path spill = folder / "spill";
  std::optional<PoolHarness> harness;
  RequestId last_id = 0;
};

TEST_F(PoolFilesTest, SavedByOnePoolIsLoadedByAnother) {
  const std::string path = folder / "trunk.thawkv";
  const auto prompt = make_prompt(kTokens + 5, 1);
  const std::vector<TokenId> whole(prompt.begin(), prompt.begin() + kTokens);
  start(PoolHarness::options());
  EXPECT_EQ(ask(prompt), 0U);
  const auto saved = save_trunk(harness->pool(), path, prompt);
  ASSERT_TRUE(saved) << saved.error().to_string();
  EXPECT_EQ(saved->num_tokens, kTokens);
  EXPECT_EQ(saved->bytes, kTokens * 16);
  EXPECT_TRUE(fs::exists(path + ".meta"));
  EXPECT_FALSE(fs::exists(path + ".thaw-incomplete"));

  start(PoolHarness::options());
  const auto loaded = load_trunk(harness->pool(), path, "pin");
  ASSERT_TRUE(loaded) << loaded.error().to_string();
  EXPECT_EQ(loaded->num_tokens, kTokens);
  EXPECT_EQ(loaded->token_ids, whole);
  EXPECT_EQ(ask(prompt, "another tenant"), 0U);
  EXPECT_EQ(ask(prompt), kTokens) << "restored, not prefilled";
  EXPECT_EQ(ask(prompt), kTokens) << "alive now";
  const PoolStatus status = harness->pool().status();
  EXPECT_EQ(status.arena.hits, 1U);
  EXPECT_EQ(status.tokens_restored, kTokens);
}

TEST_F(PoolFilesTest, APrefixOfASnapshotIsSavedAlone) {
  const std::string path = folder / "trunk.thawkv";
  const auto prompt = make_prompt(kTokens, 1);
  start(PoolHarness::options());
  ask(prompt);
  ASSERT_TRUE(keep_trunk(harness->pool(), "all", prompt));
  const auto saved = save_trunk(harness->pool(), path, {prompt.begin(), prompt.begin() + 512});
  ASSERT_TRUE(saved) << saved.error().to_string();
  EXPECT_EQ(saved->num_tokens, 512U);
  start(PoolHarness::options());
  ASSERT_EQ(load_trunk(harness->pool(), path, "pin")->num_tokens, 512U);
  EXPECT_EQ(ask(prompt), 512U);
}

TEST_F(PoolFilesTest, LoadingWaitsForTheFirstWorker) {
  const std::string path = folder / "trunk.thawkv";
  const auto prompt = make_prompt(kTokens, 1);
  start(PoolHarness::options());
  ask(prompt);
  ASSERT_TRUE(save_trunk(harness->pool(), path, prompt));
  harness.reset();
  harness.emplace("0.0:exit_at_boot", PoolHarness::options());
  const auto loaded = load_trunk(harness->pool(), path, "pin");
  EXPECT_TRUE(loaded) << loaded.error().to_string();
}

TEST_F(PoolFilesTest, OthersGoOnWhileAFileIsRead) {
  const std::string path = folder / "trunk.thawkv";
  const auto prompt = make_prompt(kTokens, 1);
  GatedIo gate;
  PoolOptions options = PoolHarness::options();
  options.file_io = &gate;
  start(options);
  ask(prompt);
  ASSERT_TRUE(save_trunk(harness->pool(), path, prompt));
  start(options);
  gate.shut = true;
  gate.waiting = 0;
  std::optional<Result<KeptTrunk>> loaded;
  std::jthread loading([&] { loaded = load_trunk(harness->pool(), path, "pin"); });
  gate.waiting.wait(0);
  EXPECT_EQ(ask(make_prompt(100, 2)), 0U);
  EXPECT_EQ(ask(prompt), 0U) << "not there yet: prefilled";
  EXPECT_EQ(harness->pool().status().pins, 0U);
  gate.open_gate();
  loading.join();
  ASSERT_TRUE(loaded && *loaded) << loaded->error().to_string();
  harness.reset();
}

TEST_F(PoolFilesTest, WhatCannotBeSavedSaysWhy) {
  start(PoolHarness::options());
  const auto prompt = make_prompt(kTokens, 1);
  const auto code = [](const Result<KeptTrunk>& result) {
    return result ? Errc::kInternal : result.error().code;
  };
  const std::string path = folder / "trunk.thawkv";
  EXPECT_EQ(code(save_trunk(harness->pool(), path, prompt)), Errc::kNotFound) << "not computed";
  ask(prompt);
  EXPECT_EQ(code(save_trunk(harness->pool(), "", prompt)), Errc::kInvalidArgument);
  const auto nowhere = save_trunk(harness->pool(), folder / "no" / "such.thawkv", prompt);
  EXPECT_EQ(code(nowhere), Errc::kIo);
  EXPECT_THAT(nowhere.error().message, HasSubstr("such.thawkv"));
  EXPECT_EQ(code(save_trunk(harness->pool(), folder, prompt)), Errc::kIo) << "a directory";
  EXPECT_TRUE(save_trunk(harness->pool(), path, prompt)) << "the pool goes on";
}

TEST_F(PoolFilesTest, AFullDiskLeavesNothingAndTheRequestGoesOn) {
  kvsnap::CrashIo disk;
  PoolOptions options = PoolHarness::options();
  options.file_io = &disk;
  start(options);
  const auto prompt = make_prompt(kTokens, 1);
  ask(prompt);
  disk.fail_from(5);
  const auto saved = save_trunk(harness->pool(), "trunk.thawkv", prompt);
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code, Errc::kResourceExhausted);
  EXPECT_TRUE(disk.files().empty());
  EXPECT_EQ(ask(prompt), kTokens - 1);
  harness.reset();
}

TEST_F(PoolFilesTest, DamagedAndForeignFilesAreRefused) {
  const std::string path = folder / "trunk.thawkv";
  const auto prompt = make_prompt(kTokens, 1);
  start(PoolHarness::options());
  ask(prompt, "mine");
  ASSERT_TRUE(save_trunk(harness->pool(), path, prompt, "mine"));
  const auto load = [&](const std::string& file, const std::string& tenant = "mine") {
    const auto loaded = load_trunk(harness->pool(), file, "pin", tenant);
    return loaded ? Errc::kInternal : loaded.error().code;
  };
  start(PoolHarness::options());
  EXPECT_EQ(load(folder / "none.thawkv"), Errc::kNotFound);
  EXPECT_EQ(load(path, "theirs"), Errc::kUnauthenticated);
  const std::string flipped = folder / "flipped.thawkv";
  fs::copy_file(path, flipped);
  flip(flipped, 3 * 4096 + 9);  // in a block
  EXPECT_EQ(load(flipped), Errc::kDataLoss);
  const std::string cut = folder / "cut.thawkv";
  fs::copy_file(path, cut);
  fs::resize_file(cut, fs::file_size(cut) - 1);
  EXPECT_EQ(load(cut), Errc::kDataLoss);
  std::ofstream(folder / "text.thawkv") << "no container";
  EXPECT_EQ(load(folder / "text.thawkv"), Errc::kInvalidArgument);
  EXPECT_EQ(ask(prompt, "mine"), 0U) << "nothing of them was used";
  EXPECT_EQ(harness->pool().status().pins, 0U);

  // Other weights: the same tokens and owner, another engine.
  kvsnap::KvDocument other;
  other.owner.tenant = "mine";
  other.engine_fingerprint = hash_text("other weights");
  other.system_fingerprint = "thaw-other";
  other.cache_root = make_cache_root(other.engine_fingerprint, "mine", "", "");
  other.kv_layout = "fake:16";
  other.block_size = kBlockSize;
  other.block_bytes = 256;
  other.token_ids.assign(prompt.begin(), prompt.begin() + 16);
  const std::vector<std::byte> block(256);
  const std::vector<std::span<const std::byte>> blocks = {block};
  const std::string foreign = folder / "foreign.thawkv";
  ASSERT_TRUE(write_kv_file(kvsnap::system_io(kvsnap::IoMode::kBuffered), foreign, other, blocks));
  const auto refused = load_trunk(harness->pool(), foreign, "pin", "mine");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::kUnsupported);
  EXPECT_THAT(refused.error().message, HasSubstr("thaw-other"));
  EXPECT_EQ(load(path), Errc::kInternal) << "the right one is taken";
}

TEST_F(PoolFilesTest, AKeptTrunkOutlivesTheServer) {
  const auto prompt = make_prompt(kTokens + 3, 1);
  start(with_spill());
  ask(prompt);
  ASSERT_TRUE(keep_trunk(harness->pool(), "session", prompt));
  ASSERT_EQ(spilled().size(), 1U) << "when it is kept, the file is there";
  struct stat info {};
  ASSERT_EQ(::stat(spill.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0700U);
  start(with_spill());  // the other one was killed without notice
  EXPECT_EQ(ask(prompt, "another tenant"), 0U);
  EXPECT_EQ(ask(prompt), kTokens);
  EXPECT_TRUE(harness->wait([&] { return harness->pool().status().files.hits == 1; }));
  // It is found without the arena or a worker's memory, too.
  EXPECT_EQ(keep_trunk(harness->pool(), "session", prompt)->num_tokens, kTokens);
}

TEST_F(PoolFilesTest, TheLastPromptsAreWrittenAtTheEnd) {
  const auto prompt = make_prompt(kTokens + 3, 1);
  const auto other = make_prompt(kTokens + 3, 2);
  start(with_spill());
  ask(prompt);
  ask(other, "tenant");
  ask(make_prompt(40, 3));  // too short to be worth it
  EXPECT_TRUE(harness->pool().shutdown(std::chrono::milliseconds(20000)));
  EXPECT_EQ(spilled().size(), 2U);
  start(with_spill());
  EXPECT_EQ(ask(prompt), kTokens);
  EXPECT_EQ(ask(other), 0U);
  EXPECT_EQ(ask(other, "tenant"), kTokens);
}

TEST_F(PoolFilesTest, WhatIsUsedTwiceIsWrittenWhenThereIsTime) {
  const auto prompt = make_prompt(kTokens, 1);
  start(with_spill());
  ask(prompt);
  ask(prompt);
  EXPECT_TRUE(wait_spilled(1));
}

TEST_F(PoolFilesTest, BranchesLeaveTheirTrunkOnce) {
  start(with_spill());
  for (std::uint64_t branch = 0; branch < 4; ++branch) {
    auto prompt = make_prompt(kTokens, 1);
    const auto suffix = make_prompt(100, 10 + branch);
    prompt.insert(prompt.end(), suffix.begin(), suffix.end());
    ask(prompt);
  }
  EXPECT_TRUE(harness->pool().shutdown(std::chrono::milliseconds(20000)));
  EXPECT_EQ(spilled().size(), 1U);
  start(with_spill());
  EXPECT_EQ(ask(make_prompt(kTokens, 1)), kTokens - 1);
}

TEST_F(PoolFilesTest, DamagedFilesAreRemovedAndTheRequestIsPrefilled) {
  const auto prompt = make_prompt(kTokens, 1);
  const auto other = make_prompt(kTokens, 2);
  start(with_spill());
  for (const auto& tokens : {prompt, other}) {
    ask(tokens);
    ASSERT_TRUE(keep_trunk(harness->pool(), "pin", tokens));
  }
  harness.reset();
  ASSERT_EQ(spilled().size(), 2U);
  flip(spilled()[0], 3 * 4096 + 9);  // a block: seen when it is read
  fs::resize_file(spilled()[1], 100);  // on its face: seen at the start
  std::ofstream(spill / "leftover.thawkv.thaw-incomplete") << "half";
  std::ofstream(spill / "unrelated.txt") << "not ours";
  start(with_spill());
  EXPECT_EQ(ask(prompt), 0U);
  EXPECT_EQ(ask(other), 0U);
  EXPECT_TRUE(wait_spilled(0));
  EXPECT_TRUE(harness->wait([&] { return harness->pool().status().files.refused == 2; }));
  EXPECT_FALSE(fs::exists(spill / "leftover.thawkv.thaw-incomplete"));
  EXPECT_TRUE(fs::exists(spill / "unrelated.txt"));
}

TEST_F(PoolFilesTest, FilesBeyondTheBudgetGo) {
  const auto file_bytes = [&] {
    std::uint64_t total = 0;
    for (const auto& entry : fs::directory_iterator(spill))
      total += entry.file_size();
    return total;
  };
  const auto first = make_prompt(kTokens, 1);
  const auto second = make_prompt(kTokens, 2);
  start(with_spill());
  ask(first);
  ASSERT_TRUE(keep_trunk(harness->pool(), "first", first));
  const std::uint64_t one = file_bytes();
  // Room for one and a half.
  start(with_spill(one + one / 2));
  ask(second);
  ASSERT_TRUE(keep_trunk(harness->pool(), "second", second));
  EXPECT_EQ(spilled().size(), 1U);
  EXPECT_LE(file_bytes(), one + one / 2);
  EXPECT_TRUE(harness->wait([&] { return harness->pool().status().files.evictions == 1; }));
  // A pinned one stays; what does not fit beside it lies in the arena only.
  ask(first);
  ASSERT_TRUE(keep_trunk(harness->pool(), "first", first));
  EXPECT_EQ(spilled().size(), 1U);
  start(with_spill(one + one / 2));
  EXPECT_EQ(ask(second), kTokens - 1);
  EXPECT_EQ(ask(first), 0U);
  start(with_spill(1000));
  EXPECT_TRUE(wait_spilled(0)) << "a smaller budget holds from the start";
}

TEST_F(PoolFilesTest, WhatLeavesTheArenaIsReadFromItsFile) {
  PoolOptions options = with_spill();
  options.arena_bytes = 6 * 4096;
  options.kv_bytes = 1 << 20;
  const auto first = make_prompt(kTokens, 1);  // four pages each
  const auto second = make_prompt(kTokens, 2);
  start(options);
  ask(first);
  ask(second);
  ASSERT_TRUE(keep_trunk(harness->pool(), "first", first));
  const auto kept = keep_trunk(harness->pool(), "second", second);
  ASSERT_TRUE(kept) << kept.error().to_string();
  EXPECT_TRUE(harness->wait([&] { return harness->pool().status().arena.evictions == 1; }));
  start(options);
  EXPECT_EQ(ask(first), kTokens - 1);
  EXPECT_EQ(ask(second), kTokens - 1);
}

TEST_F(PoolFilesTest, ServersShareADirectory) {
  const auto prompt = make_prompt(kTokens, 1);
  PoolHarness other("", with_spill());
  ASSERT_TRUE(other.wait_ready());
  start(with_spill());
  const auto use = [&](PoolHarness& pool) {
    pool.submit({make_request(100, prompt, 1)});
    ASSERT_TRUE(pool.wait_ended(100));
    for (int i = 0; i < 5; ++i)
      EXPECT_TRUE(keep_trunk(pool.pool(), "pin" + std::to_string(i), prompt));
  };
  std::jthread at_once([&] { use(other); });
  use(*harness);
  at_once.join();
  EXPECT_EQ(spilled().size(), 1U);
  start(with_spill());
  EXPECT_EQ(ask(prompt), kTokens - 1);
}

TEST_F(PoolFilesTest, ADirectoryThatCannotBeUsedCostsNoRequest) {
  std::ofstream(folder / "file") << "in the way";
  PoolOptions options = PoolHarness::options();
  options.spill_directory = folder / "file" / "spill";
  options.spill_bytes = 1 << 20;
  start(options);
  const auto prompt = make_prompt(kTokens, 1);
  EXPECT_EQ(ask(prompt), 0U);
  EXPECT_TRUE(keep_trunk(harness->pool(), "pin", prompt)) << "in the arena";
  EXPECT_TRUE(harness->pool().shutdown(std::chrono::milliseconds(20000)));
  PoolOptions no_arena = with_spill();
  no_arena.arena_bytes = 0;
  const auto refused = ForkPool::start(no_arena, {}, [](const GenerateEvent&) {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::kInvalidArgument);
}

TEST_F(PoolFilesTest, ADeadWorkerDuringARestoreCostsNoRequest) {
  const auto prompt = make_prompt(kTokens, 1);
  start(with_spill());
  ask(prompt);
  ASSERT_TRUE(keep_trunk(harness->pool(), "pin", prompt));
  harness.reset();
  harness.emplace("0.0:stall_snapshots", with_spill());
  ASSERT_TRUE(harness->wait_ready());
  harness->submit({make_request(50, prompt, 4)});
  // It waits for the restore that never comes; the process goes, its successor restores.
  ASSERT_TRUE(harness->wait([&] { return harness->pool().status().files.hits == 1; }));
  ASSERT_TRUE(harness->kill_worker(0));
  ASSERT_TRUE(harness->wait_ended(50));
  EXPECT_EQ(harness->stream(50).completed->cached_tokens, kTokens - 1);
}

TEST_F(PoolFilesTest, NothingLeaks) {
  const auto descriptors = [] {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator("/proc/self/fd"))
      ++count;
    return count;
  };
  const std::string path = folder / "trunk.thawkv";
  const auto prompt = make_prompt(kTokens, 1);
  start(PoolHarness::options());
  ask(prompt);
  ASSERT_TRUE(save_trunk(harness->pool(), path, prompt));
  const std::string damaged = folder / "damaged.thawkv";
  const auto other = make_prompt(kTokens, 2);
  ask(other);
  ASSERT_TRUE(save_trunk(harness->pool(), damaged, other));
  flip(damaged, 3 * 4096 + 9);
  start(PoolHarness::options());
  ASSERT_TRUE(load_trunk(harness->pool(), path, "pin"));
  ASSERT_TRUE(harness->wait([&] { return harness->pool().status().pins == 1; }));
  const std::size_t before = descriptors();
  const std::uint64_t used = harness->pool().status().arena_used_bytes;
  for (int i = 0; i < 20; ++i) {
    EXPECT_FALSE(load_trunk(harness->pool(), damaged, "bad"));
    EXPECT_FALSE(load_trunk(harness->pool(), folder / "none", "bad"));
    EXPECT_TRUE(load_trunk(harness->pool(), path, "pin" + std::to_string(i)));
    EXPECT_TRUE(save_trunk(harness->pool(), folder / "again.thawkv", prompt));
    EXPECT_FALSE(save_trunk(harness->pool(), folder / "no" / "such", prompt));
    harness->pool().release("pin" + std::to_string(i));
  }
  EXPECT_TRUE(harness->wait([&] { return harness->pool().status().pins == 1; }));
  EXPECT_EQ(harness->pool().status().arena_used_bytes, used);
  // Not equal: the thread that read the first file may not have closed it when `before` was taken.
  EXPECT_TRUE(harness->wait([&] { return descriptors() <= before; }));
}

// Whoever asked for it to be kept must hear that it is, or nobody would ever release it.
TEST_F(PoolFilesTest, WhatIsKeptIsSaidToBeThoughItsFileTakesLong) {
  const std::string path = folder / "trunk.thawkv";
  const auto prompt = make_prompt(kTokens, 1);
  start(PoolHarness::options());
  ask(prompt);
  ASSERT_TRUE(save_trunk(harness->pool(), path, prompt));
  GatedIo io;
  PoolOptions options = with_spill();
  options.file_io = &io;
  start(std::move(options));
  io.shut_for_new = true;
  LoadTrunk load;
  load.path = path;
  load.pin = "pin";
  load.deadline = std::chrono::milliseconds(2000);
  const auto loaded =
      await_trunk([&](TrunkDone done) { harness->pool().load(load, std::move(done)); });
  io.open_gate();
  EXPECT_TRUE(loaded) << loaded.error().to_string();
  EXPECT_TRUE(wait_spilled(1)) << "the file came later";
  EXPECT_EQ(harness->pool().status().pins, 1U);
  harness->pool().release("pin");
  EXPECT_TRUE(harness->wait([&] { return harness->pool().status().pins == 0; }));
  harness.reset();  // its threads use `io`
}

TEST_F(PoolFilesTest, WhatIsEvictedByWorkersGoesToFilesToo) {
  PoolOptions options = with_spill();
  options.arena_bytes = std::uint64_t{2} * kTokens * 16;  // one trunk is half of it
  start(options, "*:offer_and_lose=0");
  ask(make_prompt(kTokens, 1));  // the fake offers it when it is computed
  EXPECT_TRUE(wait_spilled(1));
}

}  // namespace
}  // namespace thaw::forkpool

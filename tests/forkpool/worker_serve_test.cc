#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/hash.h"
#include "engine/base/memory_map.h"
#include "engine/model/load.h"
#include "engine/model/model.h"
#include "forkpool/worker/worker.h"
#include "kvsnap/arena.h"
#include "tests/forkpool/frames.h"
#include "tests/forkpool/tiny_image.h"
#include "tests/forkpool/worker_harness.h"

namespace thaw::forkpool::test {
namespace {

constexpr std::size_t kArenaBytes = std::size_t{4} << 20;

class WorkerTest : public testing::Test {
 protected:
  // Memory of one worker's KV, as the pool would own it.
  struct Kv {
    explicit Kv(std::size_t num_blocks)
        : fd(std::move(create_memfd("test-kv", num_blocks * block_bytes())).value()) {}
    UniqueFd fd;
  };

  static std::size_t block_bytes() {
    return model::kv_block_bytes(tiny_image().config, ops::KvDType::kBF16);
  }

  DrivenWorker::Memory memory(const Kv& kv) const {
    return {tiny_image().fd.get(), kv.fd.get(), arena_.fd()};
  }

  static InitFrame init(std::uint32_t worker = 0, std::uint32_t generation = 0) {
    InitFrame frame;
    frame.worker = worker;
    frame.generation = generation;
    frame.max_num_seqs = 8;
    frame.max_waiting = 64;
    frame.prefill_chunk_tokens = 32;
    frame.log_level = "off";
    return frame;
  }

  static std::vector<TokenId> prompt(std::size_t num_tokens, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<TokenId> tokens(num_tokens);
    for (TokenId& token : tokens)
      token =
          static_cast<TokenId>(random() % static_cast<unsigned>(tiny_image().config.vocab_size));
    return tokens;
  }

  GenerateRequest request(std::vector<TokenId> tokens, std::uint32_t max_tokens = 12) {
    GenerateRequest request;
    request.id = ++last_id_;
    request.prompt = std::move(tokens);
    request.sampling.temperature = 1.0F;
    request.sampling.seed = 5;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = max_tokens;
    return request;
  }

  // What a fresh worker with ample memory answers.
  Outcome cold(const std::vector<TokenId>& tokens, std::uint32_t max_tokens = 12) {
    const Kv kv(64);
    DrivenWorker worker(memory(kv), init());
    return worker.run(request(tokens, max_tokens));
  }

  // The manifest that the pool sends: whole blocks of `tokens` at leased extents.
  static kvsnap::Manifest manifest(const ReadyFrame& ready, std::vector<TokenId> tokens,
                                   std::vector<kvsnap::Extent> extents) {
    kvsnap::Manifest manifest;
    manifest.cache_root = make_cache_root(ready.engine_fingerprint, "", "", "");
    manifest.kv_layout = ready.kv_layout;
    manifest.block_size = kBlockSize;
    manifest.block_bytes = ready.block_bytes;
    tokens.resize(tokens.size() / kBlockSize * kBlockSize);
    manifest.token_ids = std::move(tokens);
    manifest.extents = std::move(extents);
    return manifest;
  }

  // Leases, lets the worker write, publishes.
  kvsnap::SnapshotId take_snapshot(DrivenWorker& worker, const ReadyFrame& ready,
                                   const std::vector<TokenId>& tokens) {
    const auto lease =
        arena_.lease_for_writing({}, tokens.size() / kBlockSize, ready.block_bytes).value();
    const kvsnap::Manifest leased = manifest(ready, tokens, lease.extents);
    worker.send(SnapshotFrame{77, leased});
    const auto done = worker.await<SnapshotDoneFrame>();
    EXPECT_TRUE(done.has_value());
    EXPECT_EQ(done->id, 77U);
    EXPECT_EQ(done->error, "");
    return arena_.publish(lease.id, {}, with_checksums(leased, *done)).value();
  }

  kvsnap::Arena arena_ = std::move(kvsnap::Arena::create(kArenaBytes)).value();
  RequestId last_id_ = 0;
};

TEST_F(WorkerTest, SaysWhatItIsAndGenerates) {
  const Kv kv(64);
  DrivenWorker worker(memory(kv), init());
  const auto ready = worker.await<ReadyFrame>();
  ASSERT_TRUE(ready);
  EXPECT_EQ(ready->num_blocks, 64U);
  EXPECT_EQ(ready->block_bytes, block_bytes());
  EXPECT_EQ(ready->adopted_blocks, 0U);
  EXPECT_GT(ready->max_model_len, 0U);
  EXPECT_NE(ready->system_fingerprint.find(ready->kernel_set + "-draw-"), std::string::npos);

  const auto tokens = prompt(50, 1);
  const Outcome first = worker.run(request(tokens));
  EXPECT_EQ(first.tokens.size(), 12U);
  EXPECT_EQ(first.reason, FinishReason::kLength);
  EXPECT_EQ(first.usage->prompt_tokens, 50U);
  EXPECT_EQ(first.usage->cached_tokens, 0U);
  const Outcome warm = worker.run(request(tokens));
  EXPECT_EQ(warm.tokens, first.tokens);
  EXPECT_EQ(warm.usage->cached_tokens, 49U);
  EXPECT_EQ(worker.stats().tokens_prefilled, 51U);
}

TEST_F(WorkerTest, RequestsOfOneReadShareTheirTrunk) {
  const Kv kv(64);
  DrivenWorker worker(memory(kv), init());
  const auto trunk = prompt(100, 2);
  std::string frames;
  for (unsigned i = 0; i < 4; ++i) {
    auto tokens = trunk;
    tokens.push_back(static_cast<TokenId>(i));
    frames += encode_frame(SubmitFrame{request(tokens)});
  }
  worker.send_bytes(frames);
  ASSERT_TRUE(worker.receive_until([&] {
    for (RequestId id = 1; id <= 4; ++id)
      if (!worker.outcomes()[id].ended()) return false;
    return true;
  }));
  EXPECT_EQ(worker.stats().tokens_prefilled, 104U);
}

TEST_F(WorkerTest, TheRestOfAForkIsWaitedForButNotForEver) {
  const Kv kv(64);
  DrivenWorker worker(memory(kv), init());
  ASSERT_TRUE(worker.await<ReadyFrame>());
  const std::string first = encode_frame(SubmitFrame{request(prompt(40, 3))});
  const std::string second = encode_frame(SubmitFrame{request(prompt(40, 4))});
  const auto sent = std::chrono::steady_clock::now();
  worker.send_bytes(first + second.substr(0, second.size() / 2));
  ASSERT_TRUE(worker.receive_until([&] { return !worker.outcomes()[1].tokens.empty(); }));
  EXPECT_GE(std::chrono::steady_clock::now() - sent, std::chrono::milliseconds(2));
  worker.send_bytes(second.substr(second.size() / 2));
  ASSERT_TRUE(worker.receive_until(
      [&] { return worker.outcomes()[1].ended() && worker.outcomes()[2].ended(); }));
  EXPECT_TRUE(worker.outcomes()[2].usage);
}

TEST_F(WorkerTest, RefusesARequestAndServesOn) {
  const Kv kv(64);
  DrivenWorker worker(memory(kv), init());
  auto bad = request(prompt(20, 3));
  bad.sampling.top_p = 7;
  const Outcome refused = worker.run(bad);
  ASSERT_TRUE(refused.error);
  EXPECT_EQ(refused.error->code, Errc::kInvalidArgument);
  EXPECT_TRUE(worker.run(request(prompt(20, 3))).usage);
}

TEST_F(WorkerTest, CancelEndsARequestAndFreesItsBlocks) {
  const Kv kv(64);
  DrivenWorker worker(memory(kv), init());
  const auto slow = request(prompt(40, 4), 200);
  worker.send(SubmitFrame{slow});
  ASSERT_TRUE(worker.receive_until([&] { return !worker.outcomes()[slow.id].tokens.empty(); }));
  worker.send(CancelFrame{slow.id});
  worker.send(CancelFrame{9999});  // unknown: ignored
  ASSERT_TRUE(worker.receive_until([&] { return worker.outcomes()[slow.id].ended(); }));
  EXPECT_EQ(worker.outcomes()[slow.id].reason, FinishReason::kCancelled);
  EXPECT_LT(worker.outcomes()[slow.id].tokens.size(), 200U);
  EXPECT_TRUE(worker.run(request(prompt(40, 5))).usage);
  EXPECT_EQ(worker.stats().running, 0U);
  EXPECT_EQ(worker.stats().blocks_free, 64U);
}

TEST_F(WorkerTest, SnapshotMovesATrunkToAnotherWorker) {
  const auto trunk = prompt(8 * kBlockSize, 6);
  auto branch = trunk;
  branch.insert(branch.end(), {3, 1, 4, 1, 5});
  const Outcome expected = cold(branch);

  const Kv kv_a(64);
  const Kv kv_b(64);
  DrivenWorker a(memory(kv_a), init(0));
  DrivenWorker b(memory(kv_b), init(1));
  const ReadyFrame ready = a.await<ReadyFrame>().value();
  a.run(request(trunk, 1));
  const auto id = take_snapshot(a, ready, trunk);
  const auto lease = arena_.lease_for_reading(id, {1, 0}).value();
  b.send(RestoreFrame{5, lease.manifest});
  const auto done = b.await<RestoreDoneFrame>().value();
  EXPECT_EQ(done.id, 5U);
  EXPECT_EQ(done.error, "");
  EXPECT_EQ(done.num_tokens, trunk.size());
  ASSERT_TRUE(b.await<PublishFrame>());  // right behind the answer
  EXPECT_EQ(b.ledger().blocks.size(), 8U);

  const Outcome restored = b.run(request(branch));
  const Outcome forked = a.run(request(branch));
  EXPECT_EQ(restored.tokens, expected.tokens);
  EXPECT_EQ(forked.tokens, expected.tokens);
  EXPECT_EQ(restored.usage->cached_tokens, trunk.size());
  EXPECT_EQ(forked.usage->cached_tokens, trunk.size());
  EXPECT_EQ(b.stats().tokens_prefilled, 5U);
  EXPECT_EQ(a.stats().snapshots, 1U);
  EXPECT_EQ(b.stats().restores, 1U);

  // Once more: everything is alive, so no block is taken for it.
  b.send(RestoreFrame{6, lease.manifest});
  EXPECT_EQ(b.await<RestoreDoneFrame>()->error, "");
  EXPECT_EQ(b.run(request(branch)).tokens, expected.tokens);
  EXPECT_EQ(b.stats().blocks_free, 64U);
}

TEST_F(WorkerTest, RestoreTakesOnlyTheBlocksThatAreMissing) {
  const auto trunk = prompt(8 * kBlockSize, 7);
  const Kv kv_a(64);
  const Kv kv_b(64);
  DrivenWorker a(memory(kv_a), init(0));
  DrivenWorker b(memory(kv_b), init(1));
  const ReadyFrame ready = a.await<ReadyFrame>().value();
  const Outcome expected = a.run(request(trunk));
  const auto id = take_snapshot(a, ready, trunk);
  b.run(request({trunk.begin(), trunk.begin() + 3 * kBlockSize}, 1));
  EXPECT_EQ(b.ledger().blocks.size(), 3U);
  b.send(RestoreFrame{5, arena_.find(id) ? *arena_.find(id) : kvsnap::Manifest{}});
  EXPECT_EQ(b.await<RestoreDoneFrame>()->error, "");
  ASSERT_TRUE(b.await<PublishFrame>());
  EXPECT_EQ(b.ledger().blocks.size(), 8U);
  const Outcome restored = b.run(request(trunk));
  EXPECT_EQ(restored.tokens, expected.tokens);
  EXPECT_EQ(restored.usage->cached_tokens, trunk.size() - 1);
}

TEST_F(WorkerTest, DamagedSnapshotIsRefusedAndTheWorkerServesOn) {
  const auto trunk = prompt(6 * kBlockSize, 8);
  const Kv kv_a(64);
  const Kv kv_b(6);
  DrivenWorker a(memory(kv_a), init(0));
  DrivenWorker b(memory(kv_b), init(1));
  const ReadyFrame ready = a.await<ReadyFrame>().value();
  const Outcome expected = a.run(request({trunk.begin(), trunk.begin() + 40}));
  a.run(request(trunk, 1));
  const auto id = take_snapshot(a, ready, trunk);
  const kvsnap::Manifest good = *arena_.find(id);
  const auto view = std::move(kvsnap::ArenaView::map(arena_.fd())).value();
  const auto bytes = view.bytes(good.extents[0]);
  bytes[bytes.size() / 2] ^= std::byte{4};
  // As often as would use up every block, had one been kept.
  for (std::uint64_t i = 0; i < 3; ++i) {
    b.send(RestoreFrame{i, good});
    const auto done = b.await<RestoreDoneFrame>().value();
    EXPECT_NE(done.error.find("CRC32C"), std::string::npos) << done.error;
    EXPECT_EQ(done.num_tokens, 0U);
  }
  EXPECT_TRUE(b.ledger().blocks.empty());
  const Outcome after = b.run(request({trunk.begin(), trunk.begin() + 40}));
  EXPECT_EQ(after.tokens, expected.tokens);
  EXPECT_EQ(after.usage->cached_tokens, 0U);
  EXPECT_EQ(b.stats().restores, 0U);

  bytes[bytes.size() / 2] ^= std::byte{4};
  b.send(RestoreFrame{9, good});  // fits only if what is in the way is evicted
  EXPECT_EQ(b.await<RestoreDoneFrame>()->error, "");
  ASSERT_TRUE(b.await<PublishFrame>());
  EXPECT_EQ(b.ledger().blocks.size(), 6U);
}

TEST_F(WorkerTest, BadSnapshotAndRestoreFramesAreAnswered) {
  const auto trunk = prompt(4 * kBlockSize, 9);
  const Kv kv(16);
  DrivenWorker worker(memory(kv), init());
  const ReadyFrame ready = worker.await<ReadyFrame>().value();
  worker.run(request({trunk.begin(), trunk.begin() + 40}, 1));
  const auto lease = arena_.lease_for_writing({}, 4, ready.block_bytes).value();
  const auto snapshot_error = [&](const kvsnap::Manifest& m) {
    worker.send(SnapshotFrame{1, m});
    return worker.await<SnapshotDoneFrame>()->error;
  };
  const auto restore_error = [&](const kvsnap::Manifest& m) {
    worker.send(RestoreFrame{1, m});
    return worker.await<RestoreDoneFrame>()->error;
  };
  const auto good = manifest(ready, trunk, lease.extents);
  EXPECT_NE(snapshot_error(good).find("32 tokens is alive, not of all 64"), std::string::npos);
  worker.run(request(trunk, 1));
  EXPECT_EQ(snapshot_error(good), "");
  auto bad = good;
  bad.extents[0].offset = kArenaBytes;
  EXPECT_NE(snapshot_error(bad).find("outside the arena"), std::string::npos);
  EXPECT_NE(restore_error(bad).find("outside the arena"), std::string::npos);
  bad = good;
  bad.kv_layout = "f64";
  EXPECT_NE(snapshot_error(bad).find("KV layout"), std::string::npos);
  EXPECT_NE(restore_error(bad).find("KV layout"), std::string::npos);
  bad = good;
  bad.block_bytes *= 2;
  EXPECT_NE(restore_error(bad).find("number of blocks"), std::string::npos);
  bad = good;
  bad.cache_root.bytes[0] ^= 1;
  EXPECT_NE(snapshot_error(bad).find("0 tokens is alive"), std::string::npos);
  EXPECT_TRUE(worker.run(request(trunk)).usage);
}

TEST_F(WorkerTest, WithoutAnArenaSnapshotsAreRefused) {
  const Kv kv(16);
  DrivenWorker worker({tiny_image().fd.get(), kv.fd.get(), -1}, init());
  const ReadyFrame ready = worker.await<ReadyFrame>().value();
  worker.send(SnapshotFrame{1, manifest(ready, prompt(16, 1), {})});
  EXPECT_NE(worker.await<SnapshotDoneFrame>()->error.find("no snapshot arena"), std::string::npos);
  worker.send(RestoreFrame{1, manifest(ready, prompt(16, 1), {})});
  EXPECT_NE(worker.await<RestoreDoneFrame>()->error.find("no snapshot arena"), std::string::npos);
}

TEST_F(WorkerTest, ASuccessorFindsThePublishedTrunkInTheSameMemory) {
  const auto trunk = prompt(6 * kBlockSize, 10);
  auto branch = trunk;
  branch.insert(branch.end(), {9, 9, 8});
  const Outcome expected = cold(branch, 40);

  const Kv kv(32);
  auto worker = std::make_unique<DrivenWorker>(memory(kv), init(0, 0));
  worker->run(request(trunk, 1));
  const auto last = request(branch, 40);
  worker->send(SubmitFrame{last});
  ASSERT_TRUE(worker->receive_until([&] { return worker->outcomes()[last.id].tokens.size() > 3; }));
  const int status = worker->kill();
  EXPECT_TRUE(WIFSIGNALED(status));
  const AdoptFrame ledger = worker->ledger();
  EXPECT_GE(ledger.blocks.size(), 6U);

  DrivenWorker successor(memory(kv), init(0, 1), ledger);
  const auto ready = successor.await<ReadyFrame>();
  ASSERT_TRUE(ready);
  EXPECT_EQ(ready->adopted_blocks, ledger.blocks.size());
  const Outcome again = successor.run(request(branch, 40));
  EXPECT_EQ(again.tokens, expected.tokens);
  // More than the trunk where a block of the branch was published before the end.
  EXPECT_GE(again.usage->cached_tokens, trunk.size());
  EXPECT_EQ(successor.stats().tokens_prefilled, branch.size() - again.usage->cached_tokens);
}

// The order of evictions on the wire against writes to the blocks: a process that dies anywhere
// must leave a ledger whose every block still holds what its name says.
TEST_F(WorkerTest, KillsUnderEvictionNeverLeaveAWrongBlock) {
  constexpr unsigned kSeed = 12;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 random(kSeed);
  std::vector<std::vector<TokenId>> prompts;
  std::vector<Outcome> expected;
  for (unsigned i = 0; i < 6; ++i) {
    prompts.push_back(prompt(40 + 11 * i, 100 + i / 2));  // pairs share a prefix
    expected.push_back(cold(prompts.back(), 8));
  }
  const Kv kv(10);  // room for one prompt or two, so that every request evicts
  AdoptFrame ledger;
  std::uint64_t adopted = 0;
  std::uint64_t evicted = 0;
  for (std::uint32_t generation = 0; generation < 12; ++generation) {
    DrivenWorker worker(memory(kv), init(0, generation), ledger);
    adopted += worker.await<ReadyFrame>().value().adopted_blocks;
    // Adopted blocks are in the ledger already, though this process has not published them.
    worker.assume_published(ledger);
    for (int i = 0; i < 3; ++i) {
      const std::size_t which = random() % prompts.size();
      const Outcome outcome = worker.run(request(prompts[which], 8));
      ASSERT_EQ(outcome.tokens, expected[which].tokens) << "generation " << generation;
    }
    evicted += worker.stats().evicted_blocks;
    const auto last = request(prompts[random() % prompts.size()], 8);
    worker.send(SubmitFrame{last});
    for (unsigned frames = random() % 12; frames > 0; --frames)
      ASSERT_TRUE(worker.receive());
    worker.kill();
    ledger = worker.ledger();
  }
  EXPECT_GT(adopted, 0U);
  EXPECT_GT(evicted, 0U);
}

TEST_F(WorkerTest, EndsWithItsPoolAndOnShutdownOnly) {
  const Kv kv(16);
  DrivenWorker orphan(memory(kv), init());
  DrivenWorker told(memory(kv), init());
  DrivenWorker unborn(memory(kv));
  ASSERT_TRUE(orphan.await<ReadyFrame>());
  ASSERT_TRUE(told.await<ReadyFrame>());
  told.signal(SIGTERM);
  told.signal(SIGINT);
  EXPECT_TRUE(told.run(request(prompt(20, 1))).usage);
  told.send(ShutdownFrame{});
  orphan.close_channel();
  unborn.close_channel();
  for (DrivenWorker* worker : {&orphan, &told, &unborn}) {
    const int status = worker->wait_exit();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
}

TEST_F(WorkerTest, AnOrphanWithWorkEndsToo) {
  const Kv kv(64);
  DrivenWorker worker(memory(kv), init());
  const auto slow = request(prompt(40, 4), 400);
  worker.send(SubmitFrame{slow});
  ASSERT_TRUE(worker.receive_until([&] { return !worker.outcomes()[slow.id].tokens.empty(); }));
  worker.close_channel();
  const int status = worker.wait_exit();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

class FatalTest : public WorkerTest {
 protected:
  static void expect_fatal(DrivenWorker& worker, Errc code, const std::string& text) {
    const auto fatal = worker.await<FatalFrame>();
    ASSERT_TRUE(fatal);
    EXPECT_EQ(fatal->error.code, code) << fatal->error.message;
    EXPECT_NE(fatal->error.message.find(text), std::string::npos) << fatal->error.message;
    const int status = worker.wait_exit();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
  }
};

TEST_F(FatalTest, BytesThatAreNoFrame) {
  const Kv kv(16);
  DrivenWorker worker(memory(kv), init());
  ASSERT_TRUE(worker.await<ReadyFrame>());
  worker.send_bytes("this is not a frame at all");
  expect_fatal(worker, Errc::kProtocol, "");
}

TEST_F(FatalTest, FramesOutOfOrder) {
  const Kv kv(16);
  DrivenWorker early(memory(kv));
  early.send(ShutdownFrame{});
  expect_fatal(early, Errc::kProtocol, "expected init");
  DrivenWorker no_adopt(memory(kv));
  no_adopt.send(init());
  no_adopt.send(init());
  expect_fatal(no_adopt, Errc::kProtocol, "inherit or adopt");
  DrivenWorker twice(memory(kv));
  twice.send(init());
  twice.send(InheritFrame{});
  twice.send(InheritFrame{});
  expect_fatal(twice, Errc::kProtocol, "expected adopt, or one of another rank");
  DrivenWorker late(memory(kv), init());
  ASSERT_TRUE(late.await<ReadyFrame>());
  late.send(ReadyFrame{});
  expect_fatal(late, Errc::kProtocol, "ready");
}

TEST_F(FatalTest, SettingsThatCannotBe) {
  const Kv kv(16);
  InitFrame bad = init();
  bad.kv_dtype = "q7";
  DrivenWorker dtype(memory(kv), bad);
  expect_fatal(dtype, Errc::kInvalidArgument, "q7");
  bad = init();
  bad.isa = "mmx";
  DrivenWorker isa(memory(kv), bad);
  expect_fatal(isa, Errc::kInvalidArgument, "mmx");
  bad = init();
  bad.device = "gpu";
  DrivenWorker device(memory(kv), bad);
  expect_fatal(device, Errc::kInvalidArgument, "cuda:N");
  bad = init();
  bad.log_level = "loud";
  DrivenWorker level(memory(kv), bad);
  expect_fatal(level, Errc::kInvalidArgument, "loud");
}

TEST_F(FatalTest, MemoryThatCannotBe) {
  const Kv kv(16);
  DrivenWorker no_weights({-1, kv.fd.get(), arena_.fd()}, init());
  expect_fatal(no_weights, Errc::kIo, "weights");
  DrivenWorker no_kv({tiny_image().fd.get(), -1, arena_.fd()}, init());
  expect_fatal(no_kv, Errc::kIo, "KV pool");
  const UniqueFd garbage = std::move(create_memfd("garbage", 8192)).value();
  DrivenWorker wrong({garbage.get(), kv.fd.get(), arena_.fd()}, init());
  const auto fatal = wrong.await<FatalFrame>();
  ASSERT_TRUE(fatal);
  EXPECT_EQ(WEXITSTATUS(wrong.wait_exit()), 1);
}

TEST_F(FatalTest, AdoptionThatCannotBe) {
  const Kv kv(16);
  const auto entry = [](BlockId block, unsigned seed) {
    BlockEntry entry;
    entry.block = block;
    entry.tokens = to_block_tokens(prompt(kBlockSize, seed));
    entry.hash = chain_block_hash(entry.parent, entry.tokens);
    return entry;
  };
  DrivenWorker outside(memory(kv), init(), AdoptFrame{{entry(16, 1)}});
  expect_fatal(outside, Errc::kProtocol, "block 16");
  DrivenWorker twice(memory(kv), init(), AdoptFrame{{entry(3, 1), entry(3, 2)}});
  expect_fatal(twice, Errc::kProtocol, "block 3");
  BlockEntry forged = entry(4, 1);
  forged.tokens[0] ^= 1;
  DrivenWorker wrong(memory(kv), init(), AdoptFrame{{forged}});
  expect_fatal(wrong, Errc::kProtocol, "hash");
}

// Both ends write more than the socket holds before either reads.
TEST_F(WorkerTest, ManyFramesBothWaysDoNotBlockEachOther) {
  const Kv kv(64);
  InitFrame frame = init();
  frame.max_waiting = 1;
  DrivenWorker worker(memory(kv), frame);
  ASSERT_TRUE(worker.await<ReadyFrame>());
  const auto tokens = prompt(500, 1);
  constexpr RequestId kRequests = 3000;
  std::string frames;
  for (RequestId i = 0; i < kRequests; ++i)
    frames += encode_frame(SubmitFrame{request(tokens, 1)});
  worker.send_bytes(frames);
  ASSERT_TRUE(worker.receive_until([&] {
    RequestId ended = 0;
    for (const auto& [id, outcome] : worker.outcomes())
      ended += outcome.ended() ? 1 : 0;
    return ended == kRequests;
  }));
}

}  // namespace
}  // namespace thaw::forkpool::test

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "--worker") return thaw::forkpool::run_worker();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

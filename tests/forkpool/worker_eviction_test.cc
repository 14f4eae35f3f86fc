#include <fcntl.h>
#include <sys/socket.h>

#include <array>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/hash.h"
#include "engine/base/memory_map.h"
#include "engine/model/model.h"
#include "forkpool/worker/boot.h"
#include "tests/forkpool/tiny_image.h"
#include "tests/forkpool/worker_harness.h"

namespace thaw::forkpool::worker {
namespace {

constexpr std::size_t kNumBlocks = 14;

// An engine in this process, and beside it what a pool would know if the process died now: the
// frames that are in the socket, and the bytes of the KV memory.
class EvictionOrder : public testing::Test {
 protected:
  void SetUp() override {
    std::array<int, 2> ends{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    pool_end_ = UniqueFd(ends[0]);
    channel_ = std::make_unique<Channel>(UniqueFd(ends[1]));
    outbox_ = std::make_unique<Outbox>(*channel_);
    block_bytes_ = model::kv_block_bytes(test::tiny_image().config, ops::KvDType::kBF16);
    kv_fd_ = std::move(create_memfd("kv", kNumBlocks * block_bytes_)).value();
    kv_ = std::move(map_fd(kv_fd_.get(), kNumBlocks * block_bytes_, MapAccess::kReadOnly)).value();
    InitFrame init;
    init.max_num_seqs = 4;
    init.max_waiting = 64;
    init.prefill_chunk_tokens = 32;
    const WorkerFds fds{-1, ::fcntl(test::tiny_image().fd.get(), F_DUPFD_CLOEXEC, 0),
                        ::fcntl(kv_fd_.get(), F_DUPFD_CLOEXEC, 0), -1};
    engine_ = std::move(Engine::boot(fds, {init, {}, {}, {}}, *outbox_)).value();
  }

  Hash128 bytes_of(BlockId block) const {
    return hash_bytes(
        kv_.bytes().subspan(static_cast<std::size_t>(block) * block_bytes_, block_bytes_));
  }

  void read_socket() {
    std::array<char, 65536> buffer;
    for (;;) {
      const ssize_t count = ::recv(pool_end_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (count <= 0) break;
      decoder_.feed(std::span<const char>(buffer.data(), static_cast<std::size_t>(count)));
    }
    for (auto next = decoder_.next().value(); next.found; next = decoder_.next().value()) {
      if (const auto* publish = std::get_if<PublishFrame>(&next.frame)) {
        for (const BlockEntry& entry : publish->blocks)
          ledger_[entry.hash] = {entry.block, bytes_of(entry.block)};
      } else if (const auto* evict = std::get_if<EvictFrame>(&next.frame)) {
        for (const Hash128& hash : evict->hashes)
          EXPECT_EQ(ledger_.erase(hash), 1U);
      }
    }
  }

  void expect_true_ledger() {
    read_socket();
    for (const auto& [hash, entry] : ledger_)
      ASSERT_EQ(bytes_of(entry.first), entry.second) << "block " << entry.first;
  }

  UniqueFd pool_end_;
  FrameDecoder decoder_;
  std::unique_ptr<Channel> channel_;
  std::unique_ptr<Outbox> outbox_;
  std::size_t block_bytes_ = 0;
  UniqueFd kv_fd_;
  Mapping kv_;
  std::unique_ptr<Engine> engine_;
  std::map<Hash128, std::pair<BlockId, Hash128>> ledger_;  ///< name -> block and its bytes
};

TEST_F(EvictionOrder, TheLedgerIsTrueAfterEveryStepThatCouldBeTheLast) {
  constexpr unsigned kSeed = 31;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 random(kSeed);
  std::size_t checked = 0;
  for (RequestId id = 1; id <= 60; ++id) {
    GenerateRequest request;
    request.id = id;
    request.sampling.max_tokens = 1 + random() % 20;
    request.sampling.ignore_eos = true;
    // A few families, so that there are partial blocks to copy as well as blocks to evict.
    std::mt19937 family(random() % 5);
    request.prompt.resize(20 + random() % 90);
    for (TokenId& token : request.prompt)
      token = static_cast<TokenId>(family() % 200);
    ASSERT_TRUE(engine_->scheduler().add(std::move(request)));
    const bool alone = random() % 2 == 0;
    for (unsigned steps = alone ? 1000 : 3; steps > 0 && engine_->scheduler().has_work(); --steps) {
      ASSERT_TRUE(engine_->scheduler().step());
      // Were the process killed here, before it says anything about this step:
      expect_true_ledger();
      ASSERT_TRUE(outbox_->flush(engine_->stats()));
      expect_true_ledger();
      checked += ledger_.size();
    }
  }
  EXPECT_GT(checked, 0U);
  EXPECT_GT(engine_->stats().evicted_blocks, 0U);
  EXPECT_GT(engine_->stats().copied_blocks, 0U);
}

}  // namespace
}  // namespace thaw::forkpool::worker

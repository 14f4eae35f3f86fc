#include "forkpool/peer_copies.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/hash.h"

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kNumBlocks = 3;

// Worker 0 has a prefix, and worker 1 is to get it. What the pool sends is kept; nobody answers but
// the test.
class PeerCopiesTest : public ::testing::Test {
 protected:
  PeerCopiesTest() {
    for (std::size_t i = 0; i < kNumBlocks * kBlockSize; ++i)
      prompt_.push_back(static_cast<TokenId>(i));
  }

  void start(milliseconds deadline = milliseconds(10000)) {
    PrefixNames names(root_, prompt_);
    copies_.start({source_, "layout", 100}, {target_, "layout", 100}, names, kNumBlocks, deadline,
                  [this](Result<std::uint32_t> tokens) {
                    EXPECT_FALSE(done_);
                    done_ = std::move(tokens);
                    loop_.stop();
                  });
    // The target is told once where the source's memory is.
    ASSERT_EQ(sent(),
              std::exchange(introduced_, true) ? "1:borrow 0:lend " : "1:peer 1:borrow 0:lend ");
    EXPECT_EQ(holds_, 1);
  }

  /// What was sent since, as "worker:name ".
  std::string sent() {
    std::string text;
    for (auto& [worker, frame] : std::exchange(frames_, {})) {
      text += std::to_string(worker) + ":" + frame_name(frame) + " ";
      if (const auto* borrow = std::get_if<BorrowFrame>(&frame)) borrow_ = *borrow;
      if (const auto* lent = std::get_if<LentFrame>(&frame)) lent_ = *lent;
    }
    return text;
  }
  /// The source's ledger has the prompt in these blocks.
  void publish(const std::vector<BlockId>& blocks) {
    PrefixNames names(root_, prompt_);
    std::vector<BlockEntry> entries;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      entries.push_back({root_, i == 0 ? root_ : names.name(i - 1), names.name(i), blocks[i],
                         to_block_tokens(names.tokens(i))});
    }
    ledger_.publish(entries);
  }
  void lend() { copies_.on_lent(0, {borrow_.id, "", {10, 11, 12}}); }
  void answer(const std::string& error) {
    copies_.on_restore_done(1, {borrow_.id, error, error.empty() ? 48U : 0U});
  }
  /// Nothing was lent: the target is told, and what it answers is too late.
  void expect_refused(Errc code) {
    EXPECT_EQ(sent(), "1:lent 0:take_back ");
    EXPECT_NE(lent_.error, "");
    EXPECT_EQ(holds_, 0);
    ASSERT_TRUE(done_);
    EXPECT_EQ(done_->error().code, code);
    answer("so be it");
    lend();
    EXPECT_EQ(sent(), "");
  }
  void expect_over() {
    EXPECT_EQ(sent(), "0:take_back ");
    EXPECT_EQ(holds_, 0);
    EXPECT_TRUE(done_);
  }

  const Hash128 root_ = hash_text("root");
  const kvsnap::Holder source_{0, 1};
  const kvsnap::Holder target_{1, 1};
  std::vector<TokenId> prompt_;
  std::vector<std::pair<std::uint32_t, Frame>> frames_;
  BorrowFrame borrow_;
  LentFrame lent_;
  int holds_ = 0;
  bool introduced_ = false;
  std::optional<Result<std::uint32_t>> done_;
  SharedFd memory_ = std::make_shared<const UniqueFd>();
  Ledger ledger_;  ///< of the source
  Loop loop_;
  PeerCopies copies_{
      loop_,
      {[this](std::uint32_t worker, const Frame& frame) { frames_.emplace_back(worker, frame); },
       [this](std::uint32_t) {
         DeviceMemory memory;
         memory.kv_bytes = 10000;
         memory.kv = memory_;
         return memory;
       },
       [this](std::uint32_t) -> const Ledger& { return ledger_; },
       [this](std::uint32_t, bool held) { holds_ += held ? 1 : -1; }}};
};

TEST_F(PeerCopiesTest, TheTargetIsToldWhileTheSourceLends) {
  start();
  EXPECT_EQ(borrow_.token_ids, prompt_);
  lend();
  EXPECT_EQ(sent(), "1:lent ");
  EXPECT_EQ(lent_.id, borrow_.id);
  EXPECT_EQ(lent_.blocks, (std::vector<BlockId>{10, 11, 12}));
  lend();  // once is enough
  EXPECT_EQ(sent(), "");
  EXPECT_FALSE(done_);
  answer("");
  expect_over();
  EXPECT_EQ(done_->value(), 48U);
  EXPECT_EQ(copies_.num_copies(), 1U);
  EXPECT_EQ(copies_.copied_bytes(), 300U);
}

// What the ledger knows may be copied at once, and counts where the source lends the same and has
// told of no eviction since.
TEST_F(PeerCopiesTest, TheTargetIsToldTheBlocksThatTheLedgerKnows) {
  const std::vector<BlockId> lent = {10, 11, 12};
  // What the target hears of a loan of those, and that it ends well.
  const auto expect_told = [&](const std::vector<BlockId>& blocks) {
    lend();
    EXPECT_EQ(sent(), "1:lent ");
    EXPECT_EQ(lent_.blocks, blocks);
    answer("");
    expect_over();
    done_.reset();
  };
  publish(lent);
  start();
  EXPECT_EQ(borrow_.blocks, lent);
  expect_told({});

  start();
  ledger_.publish({{root_, root_, hash_text("another"), 90, {}}});  // not ours, and gone again
  ledger_.evict(std::vector{hash_text("another")});
  expect_told({});

  start();
  ledger_.evict(std::vector{PrefixNames(root_, prompt_).name(2)});
  publish(lent);  // there again, and yet it may have been something else meanwhile
  expect_told(lent);

  publish({10, 11, 7});
  start();
  EXPECT_EQ(borrow_.blocks, (std::vector<BlockId>{10, 11, 7}));
  expect_told(lent);

  ledger_.evict(std::vector{PrefixNames(root_, prompt_).name(1)});
  start();
  EXPECT_TRUE(borrow_.blocks.empty());
  expect_told(lent);
}

TEST_F(PeerCopiesTest, WhatTheSourceRefusesTheTargetGivesUp) {
  start();
  copies_.on_lent(0, {borrow_.id, "they are gone", {}});
  expect_refused(Errc::kNotFound);
  done_.reset();
  start();
  copies_.on_lent(0, {borrow_.id, "", {10, 11}});
  expect_refused(Errc::kProtocol);
  EXPECT_TRUE(copies_.possible({source_, "", 0}, {target_, "", 0}));  // it was not the target
}

TEST_F(PeerCopiesTest, ASourceThatDiesHasLentOrNot) {
  start();
  copies_.on_exit(source_);
  expect_refused(Errc::kUnavailable);

  done_.reset();
  start();
  lend();
  EXPECT_EQ(sent(), "1:lent ");
  copies_.on_exit(source_);
  EXPECT_EQ(sent(), "");
  EXPECT_EQ(holds_, 1);  // the target reads
  answer("");
  expect_over();
  EXPECT_TRUE(*done_);
}

TEST_F(PeerCopiesTest, ASourceThatDoesNotLendInTimeIsNotWaitedFor) {
  start(milliseconds(1));
  loop_.run();
  expect_refused(Errc::kDeadlineExceeded);
}

TEST_F(PeerCopiesTest, ATargetThatIsLateMayStillRead) {
  start(milliseconds(1));
  lend();
  EXPECT_EQ(sent(), "1:lent ");
  loop_.run();
  ASSERT_TRUE(done_);
  EXPECT_EQ(done_->error().code, Errc::kDeadlineExceeded);
  EXPECT_EQ(sent(), "");
  EXPECT_EQ(holds_, 1);
  answer("");
  expect_over();
}

TEST_F(PeerCopiesTest, ATargetThatFailsOrDiesEndsIt) {
  for (const bool has_lent : {false, true}) {
    SCOPED_TRACE(has_lent);
    done_.reset();
    start();
    if (has_lent) lend();
    sent();
    answer("no room");
    EXPECT_EQ(sent(), has_lent ? "0:take_back " : "1:lent 0:take_back ");
    EXPECT_EQ(holds_, 0);
    ASSERT_TRUE(done_);
    EXPECT_EQ(done_->error().code, Errc::kUnsupported);
    lend();  // too late: taken back already
    EXPECT_EQ(sent(), "");
  }
  EXPECT_FALSE(copies_.possible({source_, "", 0}, {target_, "", 0}));  // twice in a row

  done_.reset();
  start();
  lend();
  sent();
  copies_.on_exit(target_);
  expect_over();
  EXPECT_EQ(done_->error().code, Errc::kUnavailable);
}

TEST_F(PeerCopiesTest, NothingIsBorrowedThatWasNotLent) {
  start();
  answer("");
  EXPECT_EQ(sent(), "1:lent 0:take_back ");
  ASSERT_TRUE(done_);
  EXPECT_EQ(done_->error().code, Errc::kProtocol);
}

}  // namespace
}  // namespace thaw::forkpool

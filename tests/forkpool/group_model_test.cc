// The ranks of one worker, without a GPU: a follower does step for step what the leader does, what
// is wrong with a batch ends nobody, and an end of either is an error or an end of the other.

#include "forkpool/worker/group_model.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <thread>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/memory_map.h"
#include "engine/model/batch_message.h"
#include "forkpool/worker/rank_handshake.h"
#include "forkpool/worker/rank_link.h"
#include "tests/scheduler/fake_model.h"

namespace thaw::forkpool::worker {
namespace {

using namespace std::chrono_literals;
using model::Batch;
using model::SequenceRows;
using scheduler::FakeModel;
using testing::HasSubstr;

std::pair<UniqueFd, UniqueFd> socket_pair() {
  int ends[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

TEST(BatchMessage, ComesBackAsItWas) {
  const std::vector<TokenId> tokens = {5, 6, 7};
  const std::vector<BlockId> table = {9, 4};
  const std::vector<int> logit_rows = {1, 2};
  Batch batch;
  batch.sequences.push_back({tokens, 30, table, logit_rows});
  SequenceRows drawn{std::span(tokens).first(1), 17, table, std::span(logit_rows).first(0)};
  drawn.draw = model::DeviceDraw{0.75F, 0.125F, 0x123456789abcdef0U, 7, 0xfedcba9876543210U};
  drawn.first_token = model::DrawnToken{0x1000000002U, 3};
  batch.sequences.push_back(drawn);
  batch.sequences.push_back({});
  std::vector<std::int32_t> words = {1, 2, 3};
  model::encode_batch(batch, words);
  const Batch found = model::decode_batch(words).value();
  ASSERT_EQ(found.sequences.size(), 3u);
  const SequenceRows& first = found.sequences[0];
  EXPECT_THAT(first.tokens, testing::ElementsAreArray(tokens));
  EXPECT_THAT(first.block_table, testing::ElementsAreArray(table));
  EXPECT_THAT(first.logit_rows, testing::ElementsAreArray(logit_rows));
  EXPECT_EQ(first.first_position, 30);
  EXPECT_FALSE(first.draw);
  EXPECT_FALSE(first.first_token);
  const SequenceRows& second = found.sequences[1];
  ASSERT_TRUE(second.draw);
  EXPECT_EQ(second.draw->temperature, 0.75F);
  EXPECT_EQ(second.draw->min_p, 0.125F);
  EXPECT_EQ(second.draw->seed, 0x123456789abcdef0U);
  EXPECT_EQ(second.draw->choice_index, 7u);
  EXPECT_EQ(second.draw->position, 0xfedcba9876543210U);
  ASSERT_TRUE(second.first_token);
  EXPECT_EQ(second.first_token->step, 0x1000000002U);
  EXPECT_EQ(second.first_token->row, 3);
  EXPECT_TRUE(found.sequences[2].tokens.empty());
}

TEST(BatchMessage, WhatIsNoBatchIsRefused) {
  EXPECT_FALSE(model::decode_batch({}));
  const std::vector<TokenId> tokens(20, 3);
  Batch batch;
  batch.sequences.push_back({tokens, 0, {}, {}});
  std::vector<std::int32_t> words;
  model::encode_batch(batch, words);
  for (std::size_t size = 0; size < words.size(); ++size)
    EXPECT_FALSE(model::decode_batch(std::span(words).first(size))) << size;
  words.push_back(0);
  EXPECT_THAT(model::decode_batch(words).error().message, HasSubstr("1 words follow"));
  words.pop_back();
  for (const std::int32_t count : {-1, 1 << 30}) {
    words[1] = count;  // of tokens
    EXPECT_FALSE(model::decode_batch(words));
  }
}

TEST(RankLink, LongMessagesDescriptorsAndDeadlines) {
  auto [a, b] = socket_pair();
  RankLink left(std::move(a));
  RankLink right(std::move(b));
  RankMessage message;
  EXPECT_EQ(right.receive(message, 1ms).error().code, Errc::kDeadlineExceeded);
  std::vector<std::int32_t> words(3000000);  // more than a socket holds
  for (std::size_t i = 0; i < words.size(); ++i)
    words[i] = static_cast<std::int32_t>(i);
  const int descriptor = left.socket();
  auto sent = std::async(std::launch::async, [&] {
    return left.send(RankMessageKind::kReport, words, std::span(&descriptor, 1), 30s);
  });
  ASSERT_TRUE(right.receive(message, RankMessageKind::kReport, 30s));
  EXPECT_TRUE(sent.get());
  EXPECT_EQ(message.words, words);
  EXPECT_EQ(message.descriptors.size(), 1u);
  message.descriptors.clear();
  const std::vector<std::int32_t> failure = {static_cast<std::int32_t>(Errc::kDataLoss), 'n', 'o'};
  ASSERT_TRUE(left.send(RankMessageKind::kFailed, failure, {}, 1s));
  const auto refused = right.receive(message, RankMessageKind::kReady, 1s);
  EXPECT_EQ(refused.error().code, Errc::kDataLoss);
  EXPECT_THAT(refused.error().message, HasSubstr("no"));
  EXPECT_EQ(number_of(words_of(0x0123456789abcdefU)), 0x0123456789abcdefU);
  { const RankLink gone = std::move(left); }
  EXPECT_EQ(right.receive(message, 1s).error().code, Errc::kUnavailable);
  EXPECT_EQ(right.send(RankMessageKind::kReady, {}, {}, 1s).error().code, Errc::kUnavailable);
}

class GroupModelTest : public testing::Test {
 protected:
  static constexpr std::size_t kBlocks = 32;

  GroupModelTest() {
    auto [ours, theirs] = socket_pair();
    link_ = std::make_unique<RankLink>(std::move(ours));
    follower_link_ = std::make_unique<RankLink>(std::move(theirs));
    auto own = std::make_unique<FakeModel>(kBlocks, 256);
    own_ = own.get();
    group_ = make_group_model(std::move(own), own_->kv(), {link_.get()});
  }
  void start_follower() {
    followed_ =
        std::async(std::launch::async, [this] { return follow(*follower_link_, follower_model_); });
  }
  static std::vector<std::byte> bytes_of(const model::Model& model) {
    const model::KvView& kv = model.kv();
    return {kv.base, kv.base + kv.block_bytes * kv.num_blocks};
  }

  std::unique_ptr<RankLink> link_;
  std::unique_ptr<RankLink> follower_link_;
  FakeModel* own_ = nullptr;
  std::unique_ptr<model::Model> group_;
  FakeModel follower_model_{kBlocks, 256};
  std::future<Result<void>> followed_;
};

TEST_F(GroupModelTest, AFollowerHoldsWhatTheLeaderHolds) {
  start_follower();
  std::vector<TokenId> tokens(40);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<TokenId>(i * 7 % 50);
  const std::vector<BlockId> table = {3, 8, 1};
  const std::vector<int> last = {19};
  const std::vector<int> only = {0};
  Batch prefill{{{std::span(tokens).first(20), 0, table, last}}};
  auto step = group_->launch(prefill);
  ASSERT_TRUE(step);
  EXPECT_EQ(group_->collect(*step).value().num_rows, 1);
  ASSERT_TRUE(group_->copy_block(8, 20));
  const std::vector<BlockId> branch = {3, 20, 2};
  for (int i = 20; i < 40; ++i) {
    Batch decode;
    for (const auto* blocks : {&table, &branch})
      decode.sequences.push_back(
          {std::span(tokens).subspan(static_cast<std::size_t>(i), 1), i, *blocks, only});
    step = group_->launch(decode);
    ASSERT_TRUE(step);
    EXPECT_EQ(group_->collect(*step).value().num_rows, 2);
  }
  link_.reset();  // the leader ends
  EXPECT_TRUE(followed_.get());
  EXPECT_EQ(bytes_of(*own_), bytes_of(follower_model_));
  EXPECT_THAT(bytes_of(*own_), testing::Contains(testing::Ne(std::byte{0})));
}

TEST_F(GroupModelTest, AFollowerThatEndsIsAnError) {
  follower_link_.reset();
  const auto copied = group_->copy_block(1, 2);
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().code, Errc::kUnavailable);
}

TEST_F(GroupModelTest, AFollowerEndsWithAnErrorOfItsOwn) {
  start_follower();
  ASSERT_TRUE(link_->send(RankMessageKind::kBegin, {}, {}, 1s));
  const auto followed = followed_.get();
  ASSERT_FALSE(followed);
  EXPECT_EQ(followed.error().code, Errc::kProtocol);
}

/// Whether both descriptors are of one file.
bool same_file(int a, int b) {
  struct stat first {};
  struct stat second {};
  EXPECT_EQ(::fstat(a, &first), 0);
  EXPECT_EQ(::fstat(b, &second), 0);
  return first.st_ino == second.st_ino && first.st_dev == second.st_dev;
}

TEST(RankHandshake, WhatRanksSayOfThemselvesComesBackAsItWas) {
  auto [ours, theirs] = socket_pair();
  RankLink leader(std::move(theirs));
  RankLink follower(std::move(ours));
  std::vector<UniqueFd> files;
  for (const char* name : {"exchange-0", "exchange-1", "kv", "weights"})
    files.push_back(create_memfd(name, 4096).value());
  const std::vector<int> numbers = numbers_of(files);
  ASSERT_EQ(numbers.size(), 4u);
  const auto copy_of = [](int number) { return UniqueFd(::dup(number)); };

  ASSERT_TRUE(send_report(leader, {std::uint64_t{5} << 33, true, copy_of(numbers[1])}, 5s));
  const auto report = receive_report(follower, 5s);
  ASSERT_TRUE(report) << report.error().to_string();
  EXPECT_EQ(report->num_blocks, std::uint64_t{5} << 33);
  EXPECT_TRUE(report->kv_kept);
  EXPECT_TRUE(same_file(report->exchange.get(), numbers[1]));

  ASSERT_TRUE(send_begin(follower, 77, std::span(numbers).first(2), 5s));
  const auto begin = receive_begin(leader, 5s);
  ASSERT_TRUE(begin) << begin.error().to_string();
  EXPECT_EQ(begin->num_blocks, 77u);
  const std::vector<int> exchanges = numbers_of(begin->exchanges);
  ASSERT_EQ(exchanges.size(), 2u);
  EXPECT_TRUE(same_file(exchanges[0], numbers[0]));
  EXPECT_TRUE(same_file(exchanges[1], numbers[1]));

  for (const bool with_weights : {true, false}) {
    DeviceMemory memory;
    memory.kv_bytes = std::uint64_t{7} << 32;
    memory.kv = std::make_shared<const UniqueFd>(copy_of(numbers[2]));
    memory.weights_digest.bytes.fill(0xA5);
    if (with_weights) {
      memory.weights_bytes = 12345;
      memory.weights = std::make_shared<const UniqueFd>(copy_of(numbers[3]));
    }
    ASSERT_TRUE(send_ready(leader, memory, 5s));
    const auto ready = receive_ready(follower, 5s);
    ASSERT_TRUE(ready) << ready.error().to_string();
    EXPECT_EQ(ready->kv_bytes, memory.kv_bytes);
    EXPECT_EQ(ready->weights_bytes, memory.weights_bytes);
    EXPECT_EQ(ready->weights_digest, memory.weights_digest);
    EXPECT_TRUE(same_file(ready->kv->get(), numbers[2]));
    ASSERT_EQ(ready->weights != nullptr, with_weights);
    if (with_weights) {
      EXPECT_TRUE(same_file(ready->weights->get(), numbers[3]));
    }
  }
}

TEST(RankHandshake, WhatIsOfAnotherFormIsRefused) {
  auto [ours, theirs] = socket_pair();
  RankLink leader(std::move(theirs));
  RankLink follower(std::move(ours));
  ASSERT_TRUE(leader.send(RankMessageKind::kReport, std::vector<std::int32_t>{1, 2, 3}, {}, 5s));
  EXPECT_EQ(receive_report(follower, 5s).error().code, Errc::kProtocol);
  ASSERT_TRUE(follower.send(RankMessageKind::kBegin, std::vector<std::int32_t>{1}, {}, 5s));
  EXPECT_EQ(receive_begin(leader, 5s).error().code, Errc::kProtocol);
  ASSERT_TRUE(
      leader.send(RankMessageKind::kReady, std::vector<std::int32_t>(8, 1), {}, 5s));  // no memory
  EXPECT_EQ(receive_ready(follower, 5s).error().code, Errc::kProtocol);
  ASSERT_TRUE(leader.send(RankMessageKind::kReport, std::vector<std::int32_t>{1, 2, 3}, {}, 5s));
  EXPECT_EQ(receive_ready(follower, 5s).error().code, Errc::kProtocol);  // another kind
}

}  // namespace
}  // namespace thaw::forkpool::worker

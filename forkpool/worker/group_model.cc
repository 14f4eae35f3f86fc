#include "forkpool/worker/group_model.h"

#include <array>
#include <chrono>
#include <deque>
#include <string>
#include <utility>

#include "engine/model/batch_message.h"

namespace thaw::forkpool::worker {
namespace {

// A follower reads at once, or is stuck for good.
constexpr std::chrono::seconds kSendDeadline{10};
constexpr std::chrono::minutes kLinkWait{1};  // the link wakes us; this only bounds the wait

class GroupModel final : public model::Model {
 public:
  GroupModel(std::unique_ptr<model::Model> own, model::KvView kv, std::vector<RankLink*> followers)
      : own_(std::move(own)), kv_(std::move(kv)), followers_(std::move(followers)) {}

  const model::ModelConfig& config() const override { return own_->config(); }
  const model::KvView& kv() const override { return kv_; }
  int max_in_flight() const override { return own_->max_in_flight(); }
  bool can_draw(const SamplingParams& params) const override { return own_->can_draw(params); }

  Result<model::StepHandle> launch(const model::Batch& batch) override {
    model::encode_batch(batch, words_);
    if (auto told = tell(RankMessageKind::kLaunch, words_); !told) return told.error();
    return own_->launch(batch);
  }
  Result<model::StepOutput> collect(model::StepHandle handle) override {
    return own_->collect(handle);
  }
  Result<void> copy_block(BlockId from, BlockId to) override {
    const std::array<std::int32_t, 2> blocks = {from, to};
    if (auto told = tell(RankMessageKind::kCopyBlock, blocks); !told) return told;
    return own_->copy_block(from, to);
  }

 private:
  Result<void> tell(RankMessageKind kind, std::span<const std::int32_t> words) {
    for (RankLink* follower : followers_)
      if (auto sent = follower->send(kind, words, {}, kSendDeadline); !sent) return sent;
    return {};
  }

  std::unique_ptr<model::Model> own_;
  const model::KvView kv_;
  std::vector<RankLink*> followers_;
  std::vector<std::int32_t> words_;
};

/// Of what was asked, not of the device.
bool is_everybodys(const Error& error) {
  return error.code == Errc::kInvalidArgument || error.code == Errc::kResourceExhausted;
}

}  // namespace

std::unique_ptr<model::Model> make_group_model(std::unique_ptr<model::Model> own, model::KvView kv,
                                               std::vector<RankLink*> followers) {
  return std::make_unique<GroupModel>(std::move(own), std::move(kv), std::move(followers));
}

Result<void> follow(RankLink& leader, model::Model& model) {
  std::deque<model::StepHandle> flying;
  RankMessage message;
  while (true) {
    if (auto received = leader.receive(message, kLinkWait); !received) {
      if (received.error().code == Errc::kUnavailable) return {};
      if (received.error().code == Errc::kDeadlineExceeded) continue;
      return received;
    }
    if (message.kind == RankMessageKind::kLaunch) {
      auto batch = model::decode_batch(message.words);
      if (!batch) return batch.error();
      // The leader has collected it before it launches one more.
      if (static_cast<int>(flying.size()) == model.max_in_flight()) {
        if (auto collected = model.collect(flying.front()); !collected) return collected.error();
        flying.pop_front();
      }
      const auto launched = model.launch(*batch);
      if (launched)
        flying.push_back(*launched);
      else if (!is_everybodys(launched.error()))
        return launched.error();
    } else if (message.kind == RankMessageKind::kCopyBlock && message.words.size() == 2) {
      if (auto copied = model.copy_block(message.words[0], message.words[1]);
          !copied && !is_everybodys(copied.error()))
        return copied;
    } else {
      return make_error(Errc::kProtocol,
                        "the leading rank sent message " +
                            std::to_string(static_cast<std::uint32_t>(message.kind)) + " of " +
                            std::to_string(message.words.size()) +
                            " words; a step or a copy is right");
    }
  }
}

}  // namespace thaw::forkpool::worker

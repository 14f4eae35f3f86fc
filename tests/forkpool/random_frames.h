#pragma once

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>

#include "forkpool/protocol.h"

namespace thaw::forkpool {

/// Valid frames of every type with random contents.
class RandomFrames {
 public:
  explicit RandomFrames(std::uint64_t seed) : random_(seed) {}

  std::uint64_t number(std::uint64_t max) {
    return std::uniform_int_distribution<std::uint64_t>(0, max)(random_);
  }
  std::uint32_t u32() { return static_cast<std::uint32_t>(number(0xFFFFFFFFU)); }
  std::uint64_t u64() { return number(~std::uint64_t{0}); }
  float f32() {
    return std::ldexp(static_cast<float>(number(1 << 24)), -20) * (number(1) ? 1.0F : -1.0F);
  }
  std::string text() {
    static const std::string kPieces[] = {"a", "tenant-", "\xC3\xA9", "\xE2\x82\xAC", " ", "7"};
    std::string text;
    for (std::uint64_t i = number(12); i > 0; --i)
      text += kPieces[number(5)];
    return text;
  }
  Hash128 hash() {
    Hash128 hash;
    for (auto& byte : hash.bytes)
      byte = static_cast<std::uint8_t>(number(255));
    return hash;
  }
  std::vector<TokenId> tokens(std::size_t count) {
    std::vector<TokenId> tokens(count);
    for (TokenId& token : tokens)
      token = static_cast<TokenId>(number(0x7FFFFFFF));
    return tokens;
  }
  GenerateRequest request() {
    GenerateRequest request;
    request.id = u64();
    request.tenant = text();
    request.cache_salt = text();
    request.model = text();
    request.adapter = text();
    request.session = text();
    request.parent = u64();
    request.cut_position = u32();
    request.priority = static_cast<std::int32_t>(u32());
    if (number(1)) request.deadline = std::chrono::milliseconds(number(1 << 30));
    request.trace_id = text();
    request.pin = number(1) != 0;
    request.ttl = std::chrono::seconds(number(1 << 20));
    request.grammar = text();
    if (number(1)) request.worker = u32();
    request.prompt = tokens(1 + number(150));
    request.num_choices = 1 + static_cast<std::uint32_t>(number(4));
    SamplingParams& sampling = request.sampling;
    sampling.temperature = f32();
    sampling.top_k = static_cast<std::int32_t>(u32());
    sampling.top_p = f32();
    sampling.min_p = f32();
    sampling.repetition_penalty = f32();
    sampling.presence_penalty = f32();
    sampling.frequency_penalty = f32();
    for (std::uint64_t i = number(3); i > 0; --i)
      sampling.logit_bias.emplace_back(tokens(1)[0], f32());
    sampling.allowed_token_ids = tokens(number(3));
    for (std::uint64_t i = number(2); i > 0; --i)
      sampling.bad_words.push_back(tokens(1 + number(2)));
    sampling.max_tokens = u32();
    sampling.min_tokens = u32();
    sampling.stop_token_ids = tokens(number(3));
    sampling.ignore_eos = number(1) != 0;
    sampling.seed = u64();
    sampling.top_logprobs = static_cast<std::int32_t>(u32());
    request.prompt_logprobs = static_cast<std::int32_t>(number(21)) - 1;
    request.prompt_scored = static_cast<std::uint32_t>(number(request.prompt.size() - 1));
    for (std::uint32_t choice = 0; choice < request.num_choices; ++choice) {
      if (number(1)) request.resumed.push_back({choice, tokens(number(5))});
    }
    return request;
  }
  GenerateEvent event() {
    switch (number(5)) {
      case 5: {
        PromptLogprobsEvent event{u64(), u32(), {}};
        for (std::uint64_t i = number(3); i > 0; --i)
          event.tokens.push_back({f32(), static_cast<std::uint32_t>(number(1 << 20)), {}});
        if (!event.tokens.empty()) event.tokens.back().best.push_back({tokens(1)[0], f32()});
        return event;
      }
      case 0:
        return AdmittedEvent{u64(), u32()};
      case 1: {
        TokenEvent event{u64(), u32(), u32(), tokens(1)[0], f32(), {}};
        for (std::uint64_t i = number(3); i > 0; --i)
          event.top_logprobs.push_back({tokens(1)[0], f32()});
        return event;
      }
      case 2:
        return FinishedEvent{
            u64(), u32(), static_cast<FinishReason>(number(2)),
            number(1) ? std::optional<TokenId>(tokens(1)[0]) : std::optional<TokenId>()};
      case 3:
        return CompletedEvent{u64(), {u32(), u32(), u32()}};
      default:
        return FailedEvent{u64(), error()};
    }
  }
  Error error() { return make_error(static_cast<Errc>(number(12)), text()); }
  BlockEntry block() {
    return {hash(), hash(), hash(), static_cast<BlockId>(number(1 << 20)),
            to_block_tokens(tokens(kBlockSize))};
  }
  std::vector<BlockEntry> blocks() {
    std::vector<BlockEntry> blocks;
    for (std::uint64_t i = number(3); i > 0; --i)
      blocks.push_back(block());
    return blocks;
  }
  kvsnap::Manifest manifest() {
    kvsnap::Manifest manifest;
    manifest.cache_root = hash();
    manifest.kv_layout = text();
    manifest.block_size = kBlockSize;
    manifest.block_bytes = u64();
    manifest.token_ids = tokens(kBlockSize * number(9));
    manifest.tp_rank = u32();
    manifest.tp_size = u32();
    for (std::uint64_t i = number(3); i > 0; --i)
      manifest.extents.push_back({u64(), u64(), u32()});
    return manifest;
  }
  /// Without descriptors, so of nothing.
  DeviceMemory memory() {
    return {u32(), text(), hash(), 0, hash(), 0, text(), u64(), nullptr, nullptr};
  }
  std::vector<std::uint32_t> checksums() {
    std::vector<std::uint32_t> sums;
    for (std::uint64_t i = number(4); i > 0; --i)
      sums.push_back(u32());
    return sums;
  }
  EngineStats stats() {
    EngineStats stats;
    stats.steps = u64();
    stats.tokens_prefilled = u64();
    stats.tokens_reprefilled = u64();
    stats.tokens_cached = u64();
    stats.tokens_decoded = u64();
    stats.tokens_discarded = u64();
    stats.preemptions = u64();
    stats.evicted_blocks = u64();
    stats.copied_blocks = u64();
    stats.trunk_waits = u64();
    stats.snapshots = u64();
    stats.restores = u64();
    stats.grammars_compiled = u64();
    stats.grammar_cache_hits = u64();
    stats.grammar_compile_us = u64();
    stats.grammar_masks = u64();
    stats.grammar_mask_us = u64();
    stats.blocks_total = u64();
    stats.blocks_free = u64();
    stats.running = u64();
    stats.waiting = u64();
    return stats;
  }
  /// `kind` is the index of the alternative of Frame.
  Frame frame(std::size_t kind) {
    switch (kind) {
      case 0:
        return InitFrame{u32(), u32(), text(), u32(), text(), text(), u64(), u32(),
                         u32(), u32(), u32(),  u32(), u32(),  text(), u32()};
      case 1:
        return AdoptFrame{blocks()};
      case 2:
        return SubmitFrame{request()};
      case 3:
        return CancelFrame{u64(), number(1) != 0 ? std::optional(u32()) : std::nullopt};
      case 4:
        return SnapshotFrame{u64(), manifest(), number(1) != 0};
      case 5:
        return RestoreFrame{u64(), manifest(), u32()};
      case 6:
        return ShutdownFrame{};
      case 7:
        return InheritFrame{memory()};
      case 8:
        return PeerFrame{u32(), memory()};
      case 9:
        return LendFrame{u64(), hash(), tokens(kBlockSize * (1 + number(3)))};
      case 10:
        return TakeBackFrame{u64()};
      case 11:
        return BorrowFrame{u64(), u32(), hash(), tokens(kBlockSize * (1 + number(3))),
                           tokens(number(4))};
      case 12:
        return ArriveFrame{u64(), u32(), checksums(), text()};
      case 13:
        return ReadyFrame{text(), hash(), text(), text(), u64(), u64(), u64(), u32()};
      case 14: {
        EventsFrame frame;
        for (std::uint64_t i = number(4); i > 0; --i)
          frame.events.push_back(event());
        return frame;
      }
      case 15:
        return PublishFrame{blocks()};
      case 16: {
        EvictFrame frame;
        for (std::uint64_t i = number(4); i > 0; --i)
          frame.hashes.push_back(hash());
        return frame;
      }
      case 17:
        return StatsFrame{stats()};
      case 18:
        return SnapshotDoneFrame{u64(), text(), checksums()};
      case 19:
        return RestoreDoneFrame{u64(), text(), u32()};
      case 20:
        return FatalFrame{error()};
      case 21:
        return KeepFrame{memory()};
      case 23:
        return LentFrame{u64(), text(), tokens(number(4))};
      case 24:
        return SnapshotPartFrame{u64(), u32(), checksums()};
      case 25:  // its descriptor is any
        return RankFrame{u32(), std::make_shared<const UniqueFd>(::dup(0))};
      case 27:
        return ExpectFrame{u32()};
      case 22: {
        OfferFrame offer{hash(), {}, 0};
        offer.token_ids.resize(kBlockSize * (1 + number(4)));
        for (TokenId& token : offer.token_ids)
          token = static_cast<TokenId>(number(1000));
        offer.num_to_lose = static_cast<std::uint32_t>(number(offer.token_ids.size()));
        return offer;
      }
      default: {
        VocabularyFrame frame;
        auto texts = std::make_shared<TokenTexts>();
        for (std::uint64_t i = number(5); i > 0; --i) {
          texts->bytes += text();
          texts->ends.push_back(static_cast<std::uint32_t>(texts->bytes.size()));
          if (number(1) == 1)
            texts->control.push_back(static_cast<TokenId>(texts->ends.size() - 1));
        }
        frame.texts = std::move(texts);
        return frame;
      }
    }
  }

 private:
  std::mt19937_64 random_;
};

}  // namespace thaw::forkpool

#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string_view>
#include <vector>

#include <tsl/robin_map.h>

#include "engine/base/types.h"

namespace thaw::text {

/// Byte-pair merges over token ids. Filled once, then read by any number of threads.
class BpeMerges {
 public:
  /// What one encoding thread needs besides: buffers, kept to save allocations.
  struct Scratch {
    std::vector<TokenId> ids;
    std::vector<std::uint32_t> ranks;
    std::vector<std::uint32_t> next;
    std::vector<std::uint32_t> previous;
    std::vector<std::uint64_t> heap;
  };

  BpeMerges() { byte_ids_.fill(-1); }

  void reserve(std::size_t merges) {
    ranks_.reserve(merges);
    results_.reserve(merges);
  }
  /// Token that stands for one byte; bytes without one vanish from the text, as they do in Hugging
  /// Face's BPE without an unknown token.
  void set_byte(std::uint8_t byte, TokenId token) { byte_ids_[byte] = token; }
  /// The next merge, of lower priority than all before. Of a pair given twice the last one counts.
  void add(TokenId left, TokenId right, TokenId result) {
    ranks_[key(left, right)] = static_cast<std::uint32_t>(results_.size());
    results_.push_back(result);
  }

  /// Appends the ids of one pre-token: repeatedly the merge of lowest rank, leftmost first.
  /// O(n log n) for long words. REQUIRES: word.size() < 2^32.
  void encode(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const;

 private:
  struct KeyHash {
    std::size_t operator()(std::uint64_t key) const noexcept {
      const std::uint64_t mixed = key * 0x9E3779B97F4A7C15u;
      return mixed ^ (mixed >> 32);
    }
  };

  static constexpr std::uint32_t kNoMerge = std::numeric_limits<std::uint32_t>::max();

  static std::uint64_t key(TokenId left, TokenId right) {
    return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) |
           static_cast<std::uint32_t>(right);
  }
  std::uint32_t rank(TokenId left, TokenId right) const {
    const auto it = ranks_.find(key(left, right));
    return it == ranks_.end() ? kNoMerge : it->second;
  }
  void merge_short(Scratch& scratch) const;
  void merge_long(Scratch& scratch) const;

  std::array<TokenId, 256> byte_ids_;
  tsl::robin_map<std::uint64_t, std::uint32_t, KeyHash> ranks_;
  std::vector<TokenId> results_;  ///< by rank
};

/// Ids of words seen lately: a direct-mapped table of fixed size, one cache line an entry. One
/// thread at a time.
class WordCache {
 public:
  static constexpr std::size_t kMaxWordBytes = 32;
  static constexpr std::size_t kMaxIds = 7;

  /// A word in the form the table compares: padded with zeros.
  struct Key {
    std::array<std::uint64_t, 4> words;
    std::size_t length;
    std::size_t slot;
  };
  struct alignas(64) Slot {
    std::array<std::uint64_t, 4> words;
    std::uint8_t length;  ///< 0: empty
    std::uint8_t count;
    std::array<TokenId, kMaxIds> ids;
  };

  WordCache() : slots_(std::make_unique<Slot[]>(kSlots)) {}

  /// `readable` is the number of bytes that may be read at `word`. REQUIRES: 0 < word.size() <=
  /// kMaxWordBytes, readable >= word.size().
  static Key make_key(std::string_view word, std::size_t readable) {
    Key key{{}, word.size(), 0};
    if (readable >= kMaxWordBytes) {
      std::memcpy(key.words.data(), word.data(), sizeof(key.words));
      std::array<std::uint64_t, 4> mask;
      std::memcpy(mask.data(), kMask.data() + kMaxWordBytes - word.size(), sizeof(mask));
      for (std::size_t i = 0; i < mask.size(); ++i) {
        key.words[i] &= mask[i];
      }
    } else {
      std::memcpy(key.words.data(), word.data(), word.size());
    }
    const std::uint64_t sum =
        key.words[0] * 0x9E3779B97F4A7C15u + key.words[1] * 0xC2B2AE3D27D4EB4Fu +
        key.words[2] * 0x165667B19E3779F9u + key.words[3] * 0x27D4EB2F165667C5u;
    key.slot = ((sum ^ (sum >> 29)) * 0xBF58476D1CE4E5B9u) >> (64 - kSlotBits);
    return key;
  }

  /// The word's entry, or null.
  const Slot* find(const Key& key) const {
    const Slot& slot = slots_[key.slot];
    std::uint64_t difference = slot.length ^ key.length;
    for (std::size_t i = 0; i < key.words.size(); ++i) {
      difference |= slot.words[i] ^ key.words[i];
    }
    return difference == 0 ? &slot : nullptr;
  }
  /// Takes the place of what was there. REQUIRES: count <= kMaxIds.
  void put(const Key& key, const TokenId* ids, std::size_t count);

 private:
  // 1 MiB: as large as a core's second-level cache usually is.
  static constexpr int kSlotBits = 14;
  static constexpr std::size_t kSlots = std::size_t{1} << kSlotBits;

  // The 32 bytes that begin (32 - length) in keep a word's bytes and clear what follows it.
  static constexpr std::array<std::uint8_t, 2 * kMaxWordBytes> kMask = [] {
    std::array<std::uint8_t, 2 * kMaxWordBytes> mask{};
    for (std::size_t i = 0; i < kMaxWordBytes; ++i) {
      mask[i] = 0xFF;
    }
    return mask;
  }();

  std::unique_ptr<Slot[]> slots_;
};

}  // namespace thaw::text

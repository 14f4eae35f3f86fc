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

/// Pairs of symbols that BPE merges: symbols are token ids, and of all pairs in a word the one of
/// lowest rank is merged first, the leftmost one where ranks are equal. Filled once, then read by
/// any number of threads.
class BpeMerges {
 public:
  static constexpr std::uint32_t kNoMerge = std::numeric_limits<std::uint32_t>::max();
  struct Merge {
    std::uint32_t rank = kNoMerge;
    TokenId result = -1;
  };
  /// What one encoding thread needs besides: buffers, kept to save allocations.
  struct Scratch {
    std::vector<TokenId> ids;
    std::vector<Merge> merges;
    std::vector<std::uint32_t> next;
    std::vector<std::uint32_t> previous;
    std::vector<std::uint64_t> heap;
  };

  void reserve(std::size_t merges) {
    merges_.max_load_factor(0.75F);  // half the memory to touch, lookups as fast
    merges_.reserve(merges);
  }
  /// Of a pair given twice the last one counts. REQUIRES: rank < kNoMerge.
  void add(TokenId left, TokenId right, Merge merge) { merges_[key(left, right)] = merge; }

  /// Merges scratch.ids, the symbols of one pre-token, as far as it goes. O(n log n) for long
  /// words. REQUIRES: fewer than 2^32 symbols.
  void apply(Scratch& scratch) const;

 private:
  struct KeyHash {
    std::size_t operator()(std::uint64_t key) const noexcept {
      const std::uint64_t mixed = key * 0x9E3779B97F4A7C15u;
      return mixed ^ (mixed >> 32);
    }
  };

  static std::uint64_t key(TokenId left, TokenId right) {
    return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) |
           static_cast<std::uint32_t>(right);
  }
  Merge find(TokenId left, TokenId right) const {
    const auto it = merges_.find(key(left, right));
    return it == merges_.end() ? Merge{} : it->second;
  }
  void merge_short(Scratch& scratch) const;
  void merge_long(Scratch& scratch) const;

  tsl::robin_map<std::uint64_t, Merge, KeyHash> merges_;
};

/// The symbols that BPE begins with: tokens of single bytes, or of single characters with the
/// tokens of a character's bytes in place of what has none.
class BpeSymbols {
 public:
  BpeSymbols() {
    bytes_.fill(-1);
    ascii_.fill(-1);
  }

  /// Token that stands for one byte; -1: none.
  void set_byte(std::uint8_t byte, TokenId token) { bytes_[byte] = token; }
  /// From now on symbols are characters. Characters that have neither a token nor tokens for all of
  /// their bytes become `unknown` (neighbours one, where `fuse`), or vanish where that is -1.
  void use_characters(TokenId unknown, bool fuse) {
    by_character_ = true;
    unknown_ = unknown;
    fuse_unknown_ = fuse;
  }
  void set_character(std::uint32_t code_point, TokenId token) {
    if (code_point < ascii_.size()) {
      ascii_[code_point] = token;
    } else {
      characters_[code_point] = token;
    }
  }

  /// The symbols of a word, in place of what `ids` held.
  void split(std::string_view word, std::vector<TokenId>& ids) const;

 private:
  void split_characters(std::string_view word, std::vector<TokenId>& ids) const;

  std::array<TokenId, 256> bytes_;
  std::array<TokenId, 128> ascii_;
  tsl::robin_map<std::uint32_t, TokenId> characters_;
  bool by_character_ = false;
  bool fuse_unknown_ = false;
  TokenId unknown_ = -1;
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

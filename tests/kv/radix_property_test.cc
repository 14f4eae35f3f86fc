// Random operations against a naive map: every node is one entry {root, path, block}, and a match
// is the longest common prefix over all of them.

#include <algorithm>
#include <array>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "engine/base/hash.h"
#include "engine/kv/radix_index.h"

namespace thaw::kv {
namespace {

std::size_t common_prefix(const std::vector<TokenId>& a, const std::vector<TokenId>& b) {
  std::size_t n = 0;
  while (n < a.size() && n < b.size() && a[n] == b[n])
    ++n;
  return n;
}

// Plays the scheduler's part: sequences that match, copy a partial block, write and publish.
class World {
 public:
  explicit World(std::uint32_t seed) : random_(seed) {}

  void run(int num_operations) {
    for (int i = 0; i < num_operations; ++i) {
      operate();
      forget_evicted();
      check();
      if (::testing::Test::HasFatalFailure()) return;
    }
  }

 private:
  struct Writer {
    Hash128 root;
    std::vector<TokenId> tokens;
    std::vector<BlockId> blocks;
    RadixIndex::Handle handle;
    std::size_t num_kept = 0;  ///< tokens that the handle keeps alive
  };
  struct Entry {
    Hash128 root;
    std::vector<TokenId> path;  ///< from the root up to and with this block
  };

  std::uint32_t draw(std::uint32_t bound) { return random_() % bound; }

  // Two letters, so that paths share much.
  std::vector<TokenId> random_tokens(std::size_t count) {
    std::vector<TokenId> tokens;
    while (tokens.size() < count)
      tokens.push_back(draw(8) == 0 ? 1 : 0);
    return tokens;
  }

  BlockId allocate() {
    BlockId block = pool_.allocate();
    if (block >= 0) return block;
    const std::size_t evictable = index_.num_evictable();
    const std::size_t freed = index_.evict(1);
    EXPECT_LE(freed, evictable);
    forget_evicted();
    return pool_.allocate();
  }

  void operate() {
    switch (draw(6)) {
      case 0:
        return start();
      case 1:
      case 2:
      case 3:
        return write();
      case 4:
        return finish();
      default:
        if (draw(8) == 0) index_.evict(pool_.num_free() + draw(4));
    }
  }

  void start() {
    if (writers_.size() >= 6) return;
    Writer writer;
    writer.root = roots_[draw(2)];
    const auto prompt = random_tokens(1 + draw(70));
    const auto match = index_.match(writer.root, prompt);
    writer.handle = index_.lock(match);
    writer.tokens.assign(prompt.begin(), prompt.begin() + match.num_tokens);
    for (BlockId block : match.full_blocks) {
      pool_.add_reference(block);
      writer.blocks.push_back(block);
    }
    if (match.partial_block >= 0) {
      const BlockId copy = allocate();
      if (copy < 0) {
        writer.tokens.resize(match.full_blocks.size() * kBlockSize);
      } else {
        writer.blocks.push_back(copy);
      }
    }
    writer.num_kept = writer.tokens.size();
    writers_.push_back(std::move(writer));
  }

  void write() {
    if (writers_.empty()) return;
    Writer& writer = writers_[draw(static_cast<std::uint32_t>(writers_.size()))];
    for (TokenId token : random_tokens(1 + draw(20))) {
      if (writer.tokens.size() == writer.blocks.size() * kBlockSize) {
        const BlockId block = allocate();
        if (block < 0) break;
        writer.blocks.push_back(block);
      }
      writer.tokens.push_back(token);
    }
    if (writer.tokens.empty()) return;
    writer.handle = {};
    writer.handle = index_.insert(writer.root, writer.tokens, writer.blocks);
    const auto match = index_.match(writer.root, writer.tokens);
    EXPECT_EQ(match.num_tokens, writer.tokens.size());
    EXPECT_TRUE(
        std::equal(match.full_blocks.begin(), match.full_blocks.end(), writer.blocks.begin()));
    // Another's partial block may cover ours; that one is not kept for us.
    writer.num_kept = match.partial_block == writer.blocks.back()
                          ? writer.tokens.size()
                          : match.full_blocks.size() * kBlockSize;
    for (std::size_t i = 0; i < writer.blocks.size(); ++i) {
      const std::size_t end = std::min((i + 1) * kBlockSize, writer.tokens.size());
      Entry entry{writer.root, {writer.tokens.begin(), writer.tokens.begin() + end}};
      if (held_by_index(writer.blocks[i])) entries_[writer.blocks[i]] = std::move(entry);
    }
  }

  void finish() {
    if (writers_.empty()) return;
    const auto which = writers_.begin() + draw(static_cast<std::uint32_t>(writers_.size()));
    for (BlockId block : which->blocks)
      pool_.release(block);
    writers_.erase(which);
  }

  bool held_by_index(BlockId block) const {
    int own = 0;
    for (const Writer& writer : writers_)
      own += static_cast<int>(std::count(writer.blocks.begin(), writer.blocks.end(), block));
    return pool_.references(block) > own;
  }

  void forget_evicted() {
    std::erase_if(entries_, [this](const auto& entry) { return !held_by_index(entry.first); });
  }

  void check() {
    const auto checked = index_.check_integrity();
    ASSERT_TRUE(checked) << checked.error().message;
    ASSERT_EQ(index_.num_blocks(), entries_.size());
    for (const Writer& writer : writers_) {
      // What a handle is on cannot have gone.
      ASSERT_GE(index_.match(writer.root, writer.tokens).num_tokens, writer.num_kept);
    }
    const auto& root = roots_[draw(2)];
    const auto query = random_tokens(draw(80));
    std::size_t expected = 0;
    for (const auto& [block, entry] : entries_) {
      if (entry.root == root) expected = std::max(expected, common_prefix(entry.path, query));
    }
    const auto match = index_.match(root, query);
    ASSERT_EQ(match.num_tokens, expected);
    ASSERT_EQ(match.full_blocks.size(), expected / kBlockSize);
    for (std::size_t i = 0; i < match.full_blocks.size(); ++i)
      check_block(match.full_blocks[i], root, query, (i + 1) * kBlockSize);
    ASSERT_EQ(match.partial_block >= 0, expected % kBlockSize != 0);
    if (match.partial_block >= 0) check_block(match.partial_block, root, query, expected);
  }

  void check_block(BlockId block, const Hash128& root, const std::vector<TokenId>& query,
                   std::size_t num_tokens) {
    const auto found = entries_.find(block);
    ASSERT_NE(found, entries_.end());
    ASSERT_EQ(found->second.root, root);
    ASSERT_GE(common_prefix(found->second.path, query), num_tokens);
    ASSERT_EQ((found->second.path.size() - 1) / kBlockSize, (num_tokens - 1) / kBlockSize);
  }

  std::mt19937 random_;
  BlockPool pool_{24};
  RadixIndex index_{pool_};
  std::array<Hash128, 2> roots_{hash_text("a"), hash_text("b")};
  std::vector<Writer> writers_;
  std::map<BlockId, Entry> entries_;
};

TEST(RadixProperty, EqualsANaiveMap) {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World(seed).run(500);
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace thaw::kv

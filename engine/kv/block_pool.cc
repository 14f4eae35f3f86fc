#include "engine/kv/block_pool.h"

#include <string>

#include "engine/base/error.h"

namespace thaw::kv {
namespace {

// A count that goes wrong here would let two sequences write one block, so it is checked always.
void require(bool condition, const char* what, BlockId block) {
  if (condition) return;
  throw Exception(
      make_error(Errc::kInternal, std::string("block ") + std::to_string(block) + " " + what));
}

}  // namespace

BlockPool::BlockPool(std::size_t num_blocks)
    : references_(num_blocks, 0), place_in_free_(num_blocks) {
  free_.reserve(num_blocks);
  for (std::size_t i = num_blocks; i > 0; --i) {
    place_in_free_[i - 1] = free_.size();
    free_.push_back(static_cast<BlockId>(i - 1));
  }
}

BlockId BlockPool::allocate() {
  if (free_.empty()) return -1;
  const BlockId block = free_.back();
  free_.pop_back();
  references_[static_cast<std::size_t>(block)] = 1;
  return block;
}

void BlockPool::add_reference(BlockId block) {
  int& count = references_[static_cast<std::size_t>(block)];
  require(count > 0, "is free and cannot be shared", block);
  ++count;
}

bool BlockPool::release(BlockId block) {
  int& count = references_[static_cast<std::size_t>(block)];
  require(count > 0, "is free and cannot be released", block);
  if (--count > 0) return false;
  place_in_free_[static_cast<std::size_t>(block)] = free_.size();
  free_.push_back(block);
  return true;
}

void BlockPool::take(BlockId block) {
  const auto index = static_cast<std::size_t>(block);
  require(block >= 0 && index < references_.size() && references_[index] == 0,
          "is not free and cannot be taken", block);
  const BlockId last = free_.back();
  free_[place_in_free_[index]] = last;
  place_in_free_[static_cast<std::size_t>(last)] = place_in_free_[index];
  free_.pop_back();
  references_[index] = 1;
}

}  // namespace thaw::kv

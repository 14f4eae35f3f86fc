#include "engine/ops/cuda/attention_plan.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <unordered_set>
#include <vector>

namespace thaw::ops::cuda {
namespace {

// Chunks of at least kChunkRows go to the tile kernel where they are kTileRowsOfBatch together: a
// tile takes as long for one row as for all it has room for, and for many chunks as for one. Below,
// splits fill the device better. Measured on a trunk of 4,000 tokens, 32 layers: 16 chunks of 20
// rows 8.1 ms by splits and 2.2 by tiles, one of 100 rows 2.8 and 2.3, four of 20 rows 2.10 and
// 2.15, one of 64 rows 1.6 and 2.3, one of 20 rows 0.9 and 2.2.
constexpr int kChunkRows = 8;
constexpr int kTileRowsOfBatch = 80;
constexpr std::size_t kWordBytes = 4;

/// Appends to the plan; remembers an overflow instead of writing past the end.
class Writer {
 public:
  explicit Writer(std::span<std::int32_t> words) : words_(words) {}

  template <typename T>
  std::int32_t append(const T* values, std::size_t count) {
    const std::size_t at = used_;
    static_assert(sizeof(T) % kWordBytes == 0);
    const std::size_t words = count * sizeof(T) / kWordBytes;
    used_ += words;
    if (used_ <= words_.size() && words != 0)
      std::memcpy(words_.data() + at, values, words * kWordBytes);
    return static_cast<std::int32_t>(at);
  }
  /// Begins the next array at a multiple of four words: it is read 16 bytes at a time.
  void align() {
    constexpr std::int32_t kZeros[3] = {};
    append(kZeros, (4 - used_ % 4) % 4);
  }
  bool fits() const { return used_ <= words_.size(); }
  std::size_t used() const { return used_; }

 private:
  std::span<std::int32_t> words_;
  std::size_t used_ = 0;
};

Result<void> check_shape(const AttentionShape& shape,
                         std::span<const AttentionSequence> sequences) {
  const auto wrong = [](const std::string& message) {
    return make_error(Errc::kInvalidArgument, "attention: " + message);
  };
  if (shape.head_dim != 64 && shape.head_dim != 128)
    return wrong("head_dim is " + std::to_string(shape.head_dim) + "; it must be 64 or 128");
  if (shape.num_kv_heads < 1 || shape.num_heads % shape.num_kv_heads != 0 ||
      shape.num_heads / shape.num_kv_heads < 1 || shape.num_heads / shape.num_kv_heads > 16)
    return wrong(std::to_string(shape.num_heads) + " query heads over " +
                 std::to_string(shape.num_kv_heads) + " KV heads; they must be 1 to 16 for each");
  if (shape.window < 0)
    return wrong("window is " + std::to_string(shape.window) +
                 "; it must be positive, or 0 for none");
  for (const AttentionSequence& sequence : sequences) {
    const int end = sequence.first_position + sequence.num_rows;
    if (sequence.num_rows < 1 || sequence.first_position < 0 || sequence.first_row < 0 ||
        sequence.block_table.size() < static_cast<std::size_t>(ceil_div(end, kBlockSize)))
      return wrong("a table of " + std::to_string(sequence.block_table.size()) + " blocks for " +
                   std::to_string(sequence.num_rows) + " rows from position " +
                   std::to_string(sequence.first_position) + "; it must cover them");
  }
  return {};
}

// Results that the sequence's rows leave to be merged.
std::size_t partials_of(const AttentionSequence& sequence, int window) {
  std::size_t partials = 0;
  for (int i = 0; i < sequence.num_rows; ++i)
    if (const int splits = num_splits(sequence.first_position + i, window); splits > 1)
      partials += static_cast<std::size_t>(splits);
  return partials;
}

// Which sequences go to the tile kernel: those of many rows, and so many of those with the most
// results to merge that the rest has room for its own.
std::vector<bool> choose_tiles(std::span<const AttentionSequence> sequences, int window,
                               std::size_t max_partials) {
  std::vector<bool> tiles(sequences.size());
  std::vector<std::pair<std::size_t, std::size_t>> merged;  // results, sequence
  std::size_t total = 0;
  int chunk_rows = 0;
  for (const AttentionSequence& sequence : sequences)
    if (sequence.num_rows >= kChunkRows) chunk_rows += sequence.num_rows;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    tiles[i] = sequences[i].num_rows >= kChunkRows && chunk_rows >= kTileRowsOfBatch;
    if (tiles[i]) continue;
    merged.emplace_back(partials_of(sequences[i], window), i);
    total += merged.back().first;
  }
  if (total <= max_partials) return tiles;
  std::sort(merged.begin(), merged.end());
  for (; total > max_partials; merged.pop_back()) {
    tiles[merged.back().second] = true;
    total -= merged.back().first;
  }
  return tiles;
}

// Of a row's splits, the one whose item merges them all: the last, which in a fork is the row's own
// and has least to read. Where one item is the last of more rows than its warps can merge at a
// time, each further group of them takes the split before.
int merging_split(const AttentionEntry& row, int rank, int group, int warps, int window) {
  const int splits = num_splits(row.position, window);
  const int back = rank * group / warps % splits;
  return first_split(row.position, window) + splits - 1 - back;
}

}  // namespace

Result<std::size_t> plan_attention(const AttentionShape& shape,
                                   std::span<const AttentionSequence> sequences,
                                   std::size_t max_partials, std::span<std::int32_t> words,
                                   std::optional<ItemWidth> width,
                                   std::span<const AttentionSequence> written) {
  if (Result<void> valid = check_shape(shape, sequences); !valid) return valid.error();
  const int group = shape.num_heads / shape.num_kv_heads;
  AttentionPlanHeader header;
  Writer writer(words);
  writer.append(&header, 1);

  std::vector<AttentionTile> tiles;
  // Blocks that the step writes to: keys in all others are read before the kernels that write.
  std::unordered_set<BlockId> unsettled;
  for (const AttentionSequence& sequence : written.empty() ? sequences : written) {
    const int end = sequence.first_position + sequence.num_rows;
    for (int block = sequence.first_position / kBlockSize; block * kBlockSize < end; ++block)
      unsettled.insert(sequence.block_table[block]);
  }
  // Entries of decode by split and by the blocks that hold it: equal keys share their reads.
  std::map<std::pair<int, std::vector<BlockId>>, std::vector<AttentionEntry>> groups;
  const int window = shape.window;
  std::int32_t counters = 0;  // for rows of several splits
  const std::vector<bool> by_tiles = choose_tiles(sequences, window, max_partials);
  for (std::size_t index = 0; index < sequences.size(); ++index) {
    const AttentionSequence& sequence = sequences[index];
    if (by_tiles[index]) {
      const std::int32_t table =
          writer.append(sequence.block_table.data(), sequence.block_table.size());
      const int step = kTileRows / group;
      for (int token = 0; token < sequence.num_rows; token += step)
        tiles.push_back({sequence.first_row + token, std::min(step, sequence.num_rows - token),
                         sequence.first_position + token, table});
      continue;
    }
    std::vector<AttentionEntry> rows;
    for (int i = 0; i < sequence.num_rows; ++i) {
      const int position = sequence.first_position + i;
      rows.push_back({sequence.first_row + i, position, header.num_partials, counters});
      if (const int splits = num_splits(position, window); splits > 1) {
        header.num_partials += splits;
        counters += shape.num_kv_heads;
      }
    }
    header.num_split_rows += sequence.num_rows;
    const int end = sequence.first_position + sequence.num_rows;
    for (int split = first_split(sequence.first_position, window); split * kSplitKeys < end;
         ++split) {
      const int first_block = split * kSplitBlocks;
      const int blocks = std::min(kSplitBlocks, ceil_div(end, kBlockSize) - first_block);
      const auto begin = sequence.block_table.begin() + first_block;
      auto& entries = groups[{split, std::vector<BlockId>(begin, begin + blocks)}];
      for (AttentionEntry row : rows) {
        const int first = first_split(row.position, window);
        if (split < first || split > row.position / kSplitKeys) continue;
        row.partial += split - first;
        entries.push_back(row);
      }
    }
  }
  // Tiles with the most keys first: the last ones to finish are then short.
  std::sort(tiles.begin(), tiles.end(), [](const AttentionTile& a, const AttentionTile& b) {
    return a.first_position != b.first_position ? a.first_position > b.first_position
                                                : a.first_row < b.first_row;
  });
  writer.align();
  const std::vector<std::int32_t> zeros(static_cast<std::size_t>(counters));
  const std::int32_t counters_at = writer.append(zeros.data(), zeros.size());
  std::vector<AttentionItem> items;
  int num_rows = 0;
  for (const AttentionSequence& sequence : sequences)
    num_rows = std::max(num_rows, sequence.first_row + sequence.num_rows);
  const bool shared = std::ranges::any_of(groups, [&](const auto& rows) {
    return rows.second.size() * static_cast<std::size_t>(group) > kItemRows;
  });
  header.width = width.value_or(shared ? ItemWidth::kWide : ItemWidth::kNarrow);
  const bool wide = header.width == ItemWidth::kWide;
  const int warps = wide ? kWideItemWarps : kItemWarps;
  const auto most = static_cast<std::size_t>((wide ? kWideItemRows : kItemRows) / group);
  std::vector<int> merging(static_cast<std::size_t>(num_rows));  // row -> split
  for (const auto& [key, entries] : groups)
    for (std::size_t i = 0; i < entries.size(); ++i)
      if (key.first == entries[i].position / kSplitKeys)
        merging[static_cast<std::size_t>(entries[i].row)] =
            merging_split(entries[i], static_cast<int>(i % most), group, warps, window);
  for (auto& [key, entries] : groups) {
    const std::vector<BlockId>& blocks = key.second;
    const std::int32_t table = writer.append(blocks.data(), blocks.size());
    const auto settled = std::find_if(blocks.begin(), blocks.end(),
                                      [&](BlockId block) { return unsettled.contains(block); });
    for (AttentionEntry& entry : entries)
      entry.counters_at += counters_at;
    for (std::size_t at = 0; at < entries.size(); at += most) {
      const std::size_t count = std::min(most, entries.size() - at);
      int last = 0;
      std::uint64_t merged = 0;
      for (std::size_t i = at; i < at + count; ++i) {
        last = std::max(last, entries[i].position);
        if (num_splits(entries[i].position, window) > 1 &&
            merging[static_cast<std::size_t>(entries[i].row)] == key.first)
          merged |= std::uint64_t{1} << (i - at);
      }
      writer.align();
      const std::int32_t entries_at = writer.append(entries.data() + at, count);
      items.push_back({key.first, std::min(kSplitKeys, last + 1 - key.first * kSplitKeys),
                       static_cast<std::int32_t>(count), entries_at, table,
                       static_cast<std::int32_t>(settled - blocks.begin()), merged});
    }
  }
  header.num_tiles = static_cast<std::int32_t>(tiles.size());
  header.num_items = static_cast<std::int32_t>(items.size());
  writer.align();
  header.tiles_at = writer.append(tiles.data(), tiles.size());
  writer.align();
  header.items_at = writer.append(items.data(), items.size());
  if (!writer.fits())
    return make_error(Errc::kResourceExhausted,
                      "an attention plan of " + std::to_string(writer.used()) +
                          " words; there is room for " + std::to_string(words.size()));
  std::memcpy(words.data(), &header, sizeof header);
  return writer.used();
}

}  // namespace thaw::ops::cuda

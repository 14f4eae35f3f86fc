#include "engine/model/batch_message.h"

#include <bit>
#include <cstddef>
#include <optional>
#include <string>

namespace thaw::model {
namespace {

static_assert(sizeof(TokenId) == 4 && sizeof(BlockId) == 4 && sizeof(int) == 4);

// A sequence: this header, its tokens, block table and logit rows.
constexpr std::size_t kHeaderWords = 16;
constexpr std::int32_t kHasDraw = 1;
constexpr std::int32_t kHasFirstToken = 2;

std::int32_t low(std::uint64_t value) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(value));
}
std::int32_t high(std::uint64_t value) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(value >> 32));
}
std::uint64_t joined(std::int32_t low, std::int32_t high) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(high)) << 32 |
         static_cast<std::uint32_t>(low);
}

Error broken(const std::string& what) {
  return make_error(Errc::kProtocol, "batch of another rank: " + what);
}

}  // namespace

void encode_batch(const Batch& batch, std::vector<std::int32_t>& words) {
  words.clear();
  words.push_back(static_cast<std::int32_t>(batch.sequences.size()));
  for (const SequenceRows& rows : batch.sequences) {
    const DeviceDraw draw = rows.draw.value_or(DeviceDraw{});
    const DrawnToken first = rows.first_token.value_or(DrawnToken{});
    const std::int32_t header[kHeaderWords] = {
        static_cast<std::int32_t>(rows.tokens.size()),
        static_cast<std::int32_t>(rows.block_table.size()),
        static_cast<std::int32_t>(rows.logit_rows.size()),
        rows.first_position,
        (rows.draw ? kHasDraw : 0) | (rows.first_token ? kHasFirstToken : 0),
        std::bit_cast<std::int32_t>(draw.temperature),
        std::bit_cast<std::int32_t>(draw.min_p),
        low(draw.seed),
        high(draw.seed),
        static_cast<std::int32_t>(draw.choice_index),
        low(draw.position),
        high(draw.position),
        low(first.step),
        high(first.step),
        first.row,
        0};
    words.insert(words.end(), header, header + kHeaderWords);
    words.insert(words.end(), rows.tokens.begin(), rows.tokens.end());
    words.insert(words.end(), rows.block_table.begin(), rows.block_table.end());
    words.insert(words.end(), rows.logit_rows.begin(), rows.logit_rows.end());
  }
}

Result<Batch> decode_batch(std::span<const std::int32_t> words) {
  std::size_t at = 0;
  const auto take = [&](std::int32_t count) -> std::optional<std::span<const std::int32_t>> {
    if (count < 0 || static_cast<std::size_t>(count) > words.size() - at) return std::nullopt;
    const auto taken = words.subspan(at, static_cast<std::size_t>(count));
    at += taken.size();
    return taken;
  };
  const auto count = take(1);
  if (!count) return broken("it is empty");
  Batch batch;
  for (std::int32_t i = 0; i < count->front(); ++i) {
    const auto header = take(kHeaderWords);
    if (!header) return broken("sequence " + std::to_string(i) + " is cut off");
    const std::span<const std::int32_t> h = *header;
    const auto tokens = take(h[0]);
    const auto table = tokens ? take(h[1]) : std::nullopt;
    const auto logit_rows = table ? take(h[2]) : std::nullopt;
    if (!logit_rows) return broken("sequence " + std::to_string(i) + " is cut off");
    SequenceRows rows{*tokens, h[3], *table, *logit_rows};
    if ((h[4] & kHasDraw) != 0)
      rows.draw =
          DeviceDraw{std::bit_cast<float>(h[5]), std::bit_cast<float>(h[6]), joined(h[7], h[8]),
                     static_cast<std::uint32_t>(h[9]), joined(h[10], h[11])};
    if ((h[4] & kHasFirstToken) != 0) rows.first_token = DrawnToken{joined(h[12], h[13]), h[14]};
    batch.sequences.push_back(rows);
  }
  if (at != words.size())
    return broken(std::to_string(words.size() - at) + " words follow its last sequence");
  return batch;
}

}  // namespace thaw::model

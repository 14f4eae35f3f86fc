#include "engine/ops/tile_packing.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/half.h"
#include "engine/checkpoint/dequantize.h"

namespace thaw::ops {
namespace {

using checkpoint::DType;
using cuda::kChunk;
using cuda::kWeightGroup;
using cuda::WeightRows;

constexpr int kInterleave = 8;  ///< rows of gate, then as many of up

/// The row of `part` that is row `row` of the tiled weight; -1 where it is another part's.
std::int64_t stored_row(const TilePart& part, std::int64_t row) {
  std::int64_t at = row - part.first_row;
  if (at < 0) return -1;
  if (part.placement != WeightRows::kPlain) {
    const bool is_up = at % kWeightGroup >= kInterleave;
    if (is_up != (part.placement == WeightRows::kUp)) return -1;
    at = at / kWeightGroup * kInterleave + at % kInterleave;
  }
  return at < part.rows ? at : -1;
}

std::size_t row_bytes(DType dtype, std::int64_t cols) {
  return static_cast<std::size_t>(cols / checkpoint::dtype_block_elements(dtype)) *
         checkpoint::dtype_block_bytes(dtype);
}

/// One stored row as bf16; false where one that was rounded is not finite.
bool round_row(DType dtype, std::span<const std::byte> stored, std::span<std::uint16_t> out) {
  if (dtype == DType::kBF16) {
    std::memcpy(out.data(), stored.data(), out.size_bytes());
    return true;
  }
  thread_local std::vector<float> expanded;
  expanded.resize(out.size());
  checkpoint::dequantize(dtype, stored, expanded);
  bool finite = true;
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = float_to_bf16(expanded[i]);
    finite = finite && std::isfinite(bf16_to_float(out[i]));
  }
  return finite;
}

Error wrong(const std::string& what) {
  return make_error(Errc::kInvalidArgument, "pack_tiles: " + what);
}

Result<void> check(std::span<const TilePart> parts, std::int64_t cols, std::int64_t first_row,
                   std::int64_t count, std::size_t out_bytes) {
  if (cols < 1 || cols % kChunk != 0)
    return wrong(std::to_string(cols) + " columns; a multiple of 64 is right");
  if (first_row < 0 || first_row % kWeightGroup != 0 || count < 1)
    return wrong(std::to_string(count) + " rows from " + std::to_string(first_row) +
                 "; at least one, from a multiple of 16, is right");
  const std::size_t needed = cuda::weight_elements(static_cast<int>(count), static_cast<int>(cols));
  if (out_bytes != needed * sizeof(std::uint16_t))
    return wrong("the output is " + std::to_string(out_bytes) + " bytes, needed are " +
                 std::to_string(needed * sizeof(std::uint16_t)));
  for (const TilePart& part : parts) {
    const int unit = checkpoint::dtype_block_elements(part.dtype);
    if (cols % unit != 0)
      return wrong("a matrix of " + std::string(checkpoint::dtype_name(part.dtype)) +
                   ": columns must be a multiple of " + std::to_string(unit));
    const std::size_t stored = row_bytes(part.dtype, cols) * static_cast<std::size_t>(part.rows);
    if (part.stored.size() != stored)
      return wrong("the input is " + std::to_string(part.stored.size()) + " bytes, needed are " +
                   std::to_string(stored));
    if (part.placement != WeightRows::kPlain && part.first_row % kWeightGroup != 0)
      return wrong("gate and up from row " + std::to_string(part.first_row) +
                   "; a multiple of 16 is right");
  }
  return {};
}

}  // namespace

Result<void> pack_tiles(std::span<const TilePart> parts, std::int64_t cols, std::int64_t first_row,
                        std::int64_t count, std::span<std::byte> out, ThreadPool& threads) {
  if (auto checked = check(parts, cols, first_row, count, out.size()); !checked) return checked;
  const std::size_t group_bytes = static_cast<std::size_t>(cols) * kWeightGroup * 2;
  std::atomic<bool> complete = true;
  threads.parallel_for(static_cast<int>(out.size() / group_bytes), [&](int group) {
    thread_local std::vector<std::uint16_t> row;
    row.resize(static_cast<std::size_t>(cols));
    std::byte* const to = out.data() + static_cast<std::size_t>(group) * group_bytes;
    for (int r = 0; r < kWeightGroup; ++r) {
      const std::int64_t index = static_cast<std::int64_t>(group) * kWeightGroup + r;
      std::ranges::fill(row, std::uint16_t{0});
      for (const TilePart& part : parts) {
        const std::int64_t from = index < count ? stored_row(part, first_row + index) : -1;
        if (from < 0) continue;
        const std::size_t bytes = row_bytes(part.dtype, cols);
        if (!round_row(part.dtype,
                       part.stored.subspan(static_cast<std::size_t>(from) * bytes, bytes), row)) {
          complete = false;
        }
        break;
      }
      // A core matrix keeps eight columns of a row together.
      for (int col = 0; col < cols; col += 8) {
        std::memcpy(to + 2 * cuda::weight_index(r, col, static_cast<int>(cols)), row.data() + col,
                    8 * sizeof(std::uint16_t));
      }
    }
  });
  if (!complete) {
    return make_error(Errc::kDataLoss, "pack_tiles: a weight is not finite, or too large for BF16");
  }
  return {};
}

}  // namespace thaw::ops

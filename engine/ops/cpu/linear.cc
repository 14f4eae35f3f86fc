#include "engine/ops/linear.h"

#include <algorithm>
#include <array>
#include <utility>

#include "engine/ops/cpu/dispatch.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/cpu/scratch.h"

namespace thaw::ops {
namespace {

using cpu::ActBlock;
using cpu::kBlockCols;
using cpu::kLanes;
using cpu::kTileRows;

std::int64_t num_panels(const WeightView& weight) {
  return (weight.rows + kLanes - 1) / kLanes;
}

/// x of one linear group in the forms its weights need, tile by tile.
struct Input {
  int num_rows = 0;
  std::int64_t cols = 0;
  const float* x = nullptr;
  ActBlock* blocks = nullptr;  ///< null where no weight is quantised
  float* columns = nullptr;  ///< null where no weight is float

  int num_tiles() const { return (num_rows + kTileRows - 1) / kTileRows; }
  int tile_rows(int tile) const { return std::min(kTileRows, num_rows - tile * kTileRows); }
  ActBlock* tile_blocks(int tile) const {
    return blocks + static_cast<std::int64_t>(tile) * kTileRows * (cols / kBlockCols);
  }
  float* tile_columns(int tile) const {
    return columns + static_cast<std::int64_t>(tile) * kTileRows * cols;
  }
};

void prepare_tile(const cpu::Kernels& kernels, const Input& input, int tile) {
  const int rows = input.tile_rows(tile);
  const float* x = input.x + static_cast<std::int64_t>(tile) * kTileRows * input.cols;
  if (input.blocks != nullptr)
    kernels.quantize_tile(x, input.cols, rows, input.cols, input.tile_blocks(tile));
  if (input.columns != nullptr) {
    float* out = input.tile_columns(tile);
    for (int row = 0; row < rows; ++row) {
      for (std::int64_t k = 0; k < input.cols; ++k)
        out[k * rows + row] = x[row * input.cols + k];
    }
  }
}

/// Panels [begin, end) of the concatenated outputs for one tile of rows.
void run_panels(const cpu::Kernels& kernels, const Input& input, int tile,
                std::span<const LinearOutput> outputs, std::int64_t begin, std::int64_t end) {
  std::int64_t base = 0;
  for (const LinearOutput& output : outputs) {
    const std::int64_t panels = num_panels(output.weight);
    const std::int64_t first = std::max<std::int64_t>(begin - base, 0);
    const std::int64_t last = std::min(end - base, panels);
    base += panels;
    if (first >= last) continue;
    cpu::PanelArgs args{};
    args.kind = static_cast<cpu::PanelKind>(output.weight.packing);
    args.data = output.weight.data;
    args.rows = output.weight.rows;
    args.cols = output.weight.cols;
    args.panel_begin = first;
    args.panel_end = last;
    args.x = is_quantized(output.weight.packing)
                 ? static_cast<const void*>(input.tile_blocks(tile))
                 : static_cast<const void*>(input.tile_columns(tile));
    args.num_tokens = input.tile_rows(tile);
    args.out = output.out + static_cast<std::int64_t>(tile) * kTileRows * output.weight.rows;
    args.out_stride = output.weight.rows;
    kernels.linear_panels(args);
  }
}

}  // namespace

void linear(Device& device, const float* x, int num_rows, std::span<const LinearOutput> outputs) {
  CpuDevice& cpu = cpu::require_cpu(device);
  if (num_rows == 0 || outputs.empty()) return;
  Input input;
  input.num_rows = num_rows;
  input.cols = outputs.front().weight.cols;
  input.x = x;
  std::int64_t total_panels = 0;
  bool quantized = false;
  bool plain = false;
  for (const LinearOutput& output : outputs) {
    if (output.weight.cols != input.cols || output.weight.packing == Packing::kVectorF32) {
      throw Exception(make_error(Errc::kInternal,
                                 "linear: weights of one group need equal columns and a panel "
                                 "packing"));
    }
    total_panels += num_panels(output.weight);
    (is_quantized(output.weight.packing) ? quantized : plain) = true;
  }
  const auto tiles = static_cast<std::size_t>(input.num_tiles());
  const auto cols = static_cast<std::size_t>(input.cols);
  if (quantized) {
    input.blocks = cpu.scratch().activations.reserve(tiles * kTileRows * (cols / kBlockCols));
  }
  if (plain) input.columns = cpu.scratch().columns.reserve(tiles * kTileRows * cols);

  const cpu::Kernels& kernels = cpu.kernels();
  const int num_tiles = input.num_tiles();
  if (num_tiles == 1) {
    prepare_tile(kernels, input, 0);
  } else {
    cpu::parallel_for(cpu, num_tiles, [&](int tile) { prepare_tile(kernels, input, tile); });
  }

  // Tasks are (range of panels, tile of rows), the tile fastest, so that neighbours share weights.
  const int threads = cpu.threads().num_threads();
  const int wanted_tasks = threads == 1 ? 1 : 8 * threads;
  const std::int64_t chunks = std::clamp<std::int64_t>((wanted_tasks + num_tiles - 1) / num_tiles,
                                                       1, std::max<std::int64_t>(1, total_panels));
  cpu::parallel_for(cpu, static_cast<int>(chunks) * num_tiles, [&](int task) {
    const std::int64_t chunk = task / num_tiles;
    run_panels(kernels, input, task % num_tiles, outputs, total_panels * chunk / chunks,
               total_panels * (chunk + 1) / chunks);
  });
}

namespace {

constexpr int kRowsPerTask = 16;

/// Calls body(row) for every row, in tasks of kRowsPerTask.
template <typename Body>
void for_each_row(CpuDevice& cpu, int num_rows, const Body& body) {
  cpu::parallel_for(cpu, (num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int task) {
    const int end = std::min(num_rows, (task + 1) * kRowsPerTask);
    for (int row = task * kRowsPerTask; row < end; ++row)
      body(row);
  });
}

/// What rounding one row leaves over. The product of an int8 and a float is exact in double, so
/// every instruction set gives the same bits without a fused operation.
void left_over(const cpu::Kernels& kernels, const float* x, std::int64_t cols, ActBlock* blocks,
               float* out) {
  kernels.quantize_tile(x, cols, 1, cols, blocks);
  for (std::int64_t k = 0; k < cols; ++k) {
    const ActBlock& block = blocks[k / kBlockCols];
    out[k] = static_cast<float>(static_cast<double>(x[k]) -
                                static_cast<double>(block.q[k % kBlockCols]) * block.scale);
  }
}

}  // namespace

void linear_two_step(Device& device, const float* x, int num_rows,
                     std::span<const LinearOutput> outputs) {
  CpuDevice& cpu = cpu::require_cpu(device);
  if (num_rows == 0 || outputs.empty()) return;
  constexpr std::size_t kMaxOutputs = 4;
  std::array<LinearOutput, kMaxOutputs> doubled;
  std::size_t count = 0;
  std::int64_t width = 0;
  for (const LinearOutput& output : outputs) {
    if (!is_quantized(output.weight.packing) || count == kMaxOutputs) {
      linear(device, x, num_rows, {&output, 1});
      continue;
    }
    doubled[count++] = output;
    width += output.weight.rows;
  }
  if (count == 0) return;

  const std::int64_t cols = doubled[0].weight.cols;
  const auto rows = static_cast<std::size_t>(num_rows);
  float* both = cpu.scratch().both_steps.reserve(2 * rows * static_cast<std::size_t>(cols));
  float* products = cpu.scratch().both_products.reserve(2 * rows * static_cast<std::size_t>(width));
  ActBlock* blocks =
      cpu.scratch().first_step.reserve(rows * static_cast<std::size_t>(cols / kBlockCols));
  for_each_row(cpu, num_rows, [&](int row) {
    std::copy_n(x + row * cols, cols, both + row * cols);
    left_over(cpu.kernels(), x + row * cols, cols, blocks + row * (cols / kBlockCols),
              both + (num_rows + row) * cols);
  });

  std::array<float*, kMaxOutputs> targets{};
  float* next = products;
  for (std::size_t i = 0; i < count; ++i) {
    targets[i] = std::exchange(doubled[i].out, next);
    next += 2 * num_rows * doubled[i].weight.rows;
  }
  linear(device, both, 2 * num_rows, std::span(doubled).first(count));
  for_each_row(cpu, num_rows, [&](int row) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t outs = doubled[i].weight.rows;
      const float* first = doubled[i].out + row * outs;
      const float* second = doubled[i].out + (num_rows + row) * outs;
      float* target = targets[i] + row * outs;
      for (std::int64_t j = 0; j < outs; ++j)
        target[j] = first[j] + second[j];
    }
  });
}

}  // namespace thaw::ops

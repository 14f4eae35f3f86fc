#include <algorithm>
#include <cstdint>

#include "engine/base/half.h"
#include "engine/ops/attention.h"
#include "engine/ops/cpu/dispatch.h"

namespace thaw::ops {
namespace {

struct ToBF16 {
  using Element = std::uint16_t;
  static Element round(float value) { return float_to_bf16(value); }
};
struct ToF16 {
  using Element = std::uint16_t;
  static Element round(float value) { return float_to_f16(value); }
};
struct ToF32 {
  using Element = float;
  static Element round(float value) { return value; }
};

/// One head of one token: K goes to column `slot` of [head_dim][kBlockSize], V to row `slot`.
template <class To>
void store_head(const float* k, const float* v, int head_dim, int slot, std::byte* k_slab,
                std::byte* v_slab) {
  using Element = typename To::Element;
  auto* keys = reinterpret_cast<Element*>(k_slab) + slot;
  auto* values = reinterpret_cast<Element*>(v_slab) + slot * head_dim;
  for (int d = 0; d < head_dim; ++d)
    keys[d * kBlockSize] = To::round(k[d]);
  for (int d = 0; d < head_dim; ++d)
    values[d] = To::round(v[d]);
}

void store_row(const PagedKv& kv, int layer, BlockId block, int slot, const float* k,
               const float* v) {
  for (int head = 0; head < kv.num_kv_heads; ++head, k += kv.head_dim, v += kv.head_dim) {
    std::byte* k_slab = kv.slab(block, layer, false, head);
    std::byte* v_slab = kv.slab(block, layer, true, head);
    switch (kv.dtype) {
      case KvDType::kBF16:
        store_head<ToBF16>(k, v, kv.head_dim, slot, k_slab, v_slab);
        break;
      case KvDType::kF16:
        store_head<ToF16>(k, v, kv.head_dim, slot, k_slab, v_slab);
        break;
      case KvDType::kF32:
        store_head<ToF32>(k, v, kv.head_dim, slot, k_slab, v_slab);
        break;
    }
  }
}

}  // namespace

void store_kv(Device& device, const PagedKv& kv, int layer,
              std::span<const AttentionSequence> sequences, const float* k, const float* v) {
  CpuDevice& cpu = cpu::require_cpu(device);
  const std::int64_t width = static_cast<std::int64_t>(kv.num_kv_heads) * kv.head_dim;
  for (const AttentionSequence& sequence : sequences) {
    // One task is one block, so that no two threads write the same cache lines.
    const int first_block = sequence.first_position / kBlockSize;
    const int end = sequence.first_position + sequence.num_rows;
    const int blocks = (end + kBlockSize - 1) / kBlockSize - first_block;
    const auto store_block = [&](int task) {
      const int index = first_block + task;
      const BlockId block = sequence.block_table[static_cast<std::size_t>(index)];
      const int from = std::max(sequence.first_position, index * kBlockSize);
      const int to = std::min(end, (index + 1) * kBlockSize);
      for (int position = from; position < to; ++position) {
        const std::int64_t row = sequence.first_row + position - sequence.first_position;
        store_row(kv, layer, block, position % kBlockSize, k + row * width, v + row * width);
      }
    };
    if (blocks <= 2) {
      for (int task = 0; task < blocks; ++task)
        store_block(task);
    } else {
      cpu::parallel_for(cpu, blocks, store_block);
    }
  }
}

}  // namespace thaw::ops

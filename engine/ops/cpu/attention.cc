#include "engine/ops/attention.h"

#include <algorithm>
#include <string>
#include <vector>

#include "engine/ops/cpu/dispatch.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/cpu/scratch.h"

namespace thaw::ops {
namespace {

using cpu::kSplitBlocks;
using cpu::SplitRow;

static_assert(kAttentionSplit == cpu::kSplitKeys);
static_assert(kBlockSize == cpu::kLanes);

/// Sequences with at least this many rows are computed split after split by one task for a range of
/// rows; shorter ones as (kv head, split) tasks whose results are merged afterwards. A choice of
/// speed only.
constexpr int kLongRows = 16;
constexpr int kTaskTokens = 64;

/// Rows [first, first + count) of a long sequence.
struct LongRange {
  const AttentionSequence* sequence;
  int first;
  int count;
};

/// Short sequences whose keys of one split lie in the same blocks.
struct Group {
  int split = 0;
  std::span<const BlockId> blocks;
  std::vector<int> members;  ///< indices into Plan::shorts
};

struct ShortSequence {
  const AttentionSequence* sequence;
  std::size_t first_partial;  ///< of its first row: [row][head][split that the row reaches]
};

/// Work of one call. Kept between calls so that its vectors are not allocated again.
struct Plan {
  std::vector<LongRange> ranges;
  std::vector<ShortSequence> shorts;
  std::vector<Group> groups;
  std::size_t num_groups = 0;
  std::size_t num_partials = 0;
};

/// The keys that a row at `position` sees: first .. position, in splits first_split .. last_split.
struct Keys {
  int first;
  int position;

  Keys(int at, int window) : first(window == 0 ? 0 : std::max(0, at + 1 - window)), position(at) {}
  int first_split() const { return first / kAttentionSplit; }
  int last_split() const { return position / kAttentionSplit; }
  int num_splits() const { return last_split() - first_split() + 1; }
  bool reaches(int split) const { return first_split() <= split && split <= last_split(); }
  /// Of a split that it reaches, as places in the split.
  int begin(int split) const { return std::max(0, first - split * kAttentionSplit); }
  int end(int split) const {
    return std::min(kAttentionSplit, position + 1 - split * kAttentionSplit);
  }
};

int last_position(const AttentionSequence& sequence) {
  return sequence.first_position + sequence.num_rows - 1;
}

std::span<const BlockId> blocks_of_split(const AttentionSequence& sequence, int split) {
  const int end = Keys(last_position(sequence), 0).end(split);
  return sequence.block_table.subspan(
      static_cast<std::size_t>(split) * kSplitBlocks,
      static_cast<std::size_t>((end + kBlockSize - 1) / kBlockSize));
}

/// Partials of all rows of a short sequence.
std::size_t count_partials(const AttentionSequence& sequence, const AttentionArgs& args) {
  std::size_t count = 0;
  for (int row = 0; row < sequence.num_rows; ++row)
    count +=
        static_cast<std::size_t>(Keys(sequence.first_position + row, args.window).num_splits());
  return count * static_cast<std::size_t>(args.num_heads);
}

void check_table(const AttentionSequence& sequence) {
  const int positions = sequence.first_position + sequence.num_rows;
  const auto covered = static_cast<std::int64_t>(sequence.block_table.size()) * kBlockSize;
  if (covered < positions) {
    throw Exception(make_error(Errc::kInternal, "attention: the block table covers " +
                                                    std::to_string(covered) + " of " +
                                                    std::to_string(positions) + " positions"));
  }
}

Group& new_group(Plan& plan, int split, std::span<const BlockId> blocks) {
  if (plan.num_groups == plan.groups.size()) plan.groups.emplace_back();
  Group& group = plan.groups[plan.num_groups++];
  group.split = split;
  group.blocks = blocks;
  group.members.clear();
  return group;
}

/// The group of (split, blocks), made where there is none. Groups of one split are adjacent.
Group& find_group(Plan& plan, std::size_t first_group, int split, std::span<const BlockId> blocks) {
  for (std::size_t i = first_group; i < plan.num_groups; ++i) {
    Group& group = plan.groups[i];
    if (std::ranges::equal(group.blocks, blocks)) return group;
  }
  return new_group(plan, split, blocks);
}

void make_plan(const AttentionArgs& args, Plan& plan) {
  plan.ranges.clear();
  plan.shorts.clear();
  plan.num_groups = 0;
  plan.num_partials = 0;
  int most_splits = 0;
  for (const AttentionSequence& sequence : args.sequences) {
    if (sequence.num_rows == 0) continue;
    check_table(sequence);
    if (sequence.num_rows >= kLongRows) {
      for (int row = 0; row < sequence.num_rows; row += kTaskTokens)
        plan.ranges.push_back({&sequence, row, std::min(kTaskTokens, sequence.num_rows - row)});
      continue;
    }
    plan.shorts.push_back({&sequence, plan.num_partials});
    plan.num_partials += count_partials(sequence, args);
    most_splits = std::max(most_splits, last_position(sequence) / kAttentionSplit + 1);
  }
  // The last ranges of a prefill see the most keys: start with them.
  std::ranges::reverse(plan.ranges);
  for (int split = 0; split < most_splits; ++split) {
    const std::size_t first_group = plan.num_groups;
    for (std::size_t i = 0; i < plan.shorts.size(); ++i) {
      const AttentionSequence& sequence = *plan.shorts[i].sequence;
      if (Keys(sequence.first_position, args.window).first_split() > split ||
          last_position(sequence) / kAttentionSplit < split) {
        continue;
      }
      find_group(plan, first_group, split, blocks_of_split(sequence, split))
          .members.push_back(static_cast<int>(i));
    }
  }
}

/// Shapes and pointers that all tasks of a call share.
struct Call {
  const AttentionArgs& args;
  const cpu::Kernels& kernels;
  int heads_per_kv;
  int partial_floats;
  float* partials;

  const float* q(std::int64_t row, int head) const {
    return args.q + (row * args.num_heads + head) * args.kv.head_dim;
  }
  float* out(std::int64_t row, int head) const {
    return args.out + (row * args.num_heads + head) * args.kv.head_dim;
  }
};

/// Per-thread memory of the tasks.
struct TaskMemory {
  cpu::GrowingBuffer<float> kernel;
  cpu::GrowingBuffer<float> states;
  std::vector<SplitRow> rows;
};

TaskMemory& task_memory() {
  thread_local TaskMemory memory;
  return memory;
}

/// `prefetch_heads`: kv heads from this one on whose keys the caller needs soon and has not read
/// yet.
void run_split(const Call& call, std::span<const BlockId> blocks, int kv_head,
               std::span<const SplitRow> rows, int prefetch_heads, TaskMemory& memory) {
  const PagedKv& kv = call.args.kv;
  cpu::SplitArgs split{};
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    split.k_slabs[b] = kv.slab(blocks[b], call.args.layer, false, kv_head);
    split.v_slabs[b] = kv.slab(blocks[b], call.args.layer, true, kv_head);
  }
  split.element = static_cast<cpu::KvElement>(kv.dtype);
  split.head_dim = kv.head_dim;
  split.prefetch_bytes = static_cast<int>(kv.slab_bytes()) * prefetch_heads;
  split.scale = call.args.scale;
  split.rows = rows.data();
  split.num_rows = static_cast<int>(rows.size());
  split.scratch =
      memory.kernel.reserve(static_cast<std::size_t>(cpu::attention_scratch_floats(kv.head_dim)));
  call.kernels.attention_split(split);
}

/// All splits of a range of rows for one kv head, merged as they come. A window slides by a row
/// from token to token, so that those which reach a split are neighbours.
void run_range(const Call& call, const LongRange& range, int kv_head) {
  TaskMemory& memory = task_memory();
  const AttentionSequence& sequence = *range.sequence;
  const int head_dim = call.args.kv.head_dim;
  const int group = call.heads_per_kv;
  const auto heads = static_cast<std::size_t>(group);
  const auto stride = static_cast<std::size_t>(call.partial_floats);
  const auto num_rows = static_cast<std::size_t>(range.count) * heads;
  float* states = memory.states.reserve(2 * num_rows * stride);
  float* partials = states + num_rows * stride;
  const int first_position = sequence.first_position + range.first;
  const auto keys_of = [&](int token) { return Keys(first_position + token, call.args.window); };

  const int last_split = keys_of(range.count - 1).last_split();
  for (int split = keys_of(0).first_split(); split <= last_split; ++split) {
    int most_keys = 0;
    memory.rows.clear();
    for (int token = 0; token < range.count; ++token) {
      const Keys keys = keys_of(token);
      if (!keys.reaches(split)) continue;
      most_keys = keys.end(split);
      float* to = split == keys.first_split() ? states : partials;
      const std::int64_t row = sequence.first_row + range.first + token;
      for (int h = 0; h < group; ++h) {
        memory.rows.push_back({call.q(row, kv_head * group + h),
                               to + (static_cast<std::size_t>(token) * heads + h) * stride,
                               keys.begin(split), keys.end(split)});
      }
    }
    const auto blocks = sequence.block_table.subspan(
        static_cast<std::size_t>(split) * kSplitBlocks,
        static_cast<std::size_t>((most_keys + kBlockSize - 1) / kBlockSize));
    run_split(call, blocks, kv_head, memory.rows, 1, memory);
    for (int token = 0; token < range.count; ++token) {
      if (!keys_of(token).reaches(split) || keys_of(token).first_split() == split) continue;
      for (std::size_t index = token * heads; index < (token + 1) * heads; ++index)
        call.kernels.attention_merge(states + index * stride, partials + index * stride, head_dim);
    }
  }
  for (int token = 0; token < range.count; ++token) {
    const std::int64_t row = sequence.first_row + range.first + token;
    for (int h = 0; h < group; ++h, states += stride)
      call.kernels.attention_finish(states, head_dim, call.out(row, kv_head * group + h));
  }
}

/// One split of all rows that read it from the same blocks, for one kv head.
void run_group(const Call& call, const Plan& plan, const Group& group, int kv_head,
               int prefetch_heads) {
  TaskMemory& memory = task_memory();
  memory.rows.clear();
  for (const int member : group.members) {
    const ShortSequence& entry = plan.shorts[static_cast<std::size_t>(member)];
    const AttentionSequence& sequence = *entry.sequence;
    std::size_t partial = entry.first_partial;
    for (int token = 0; token < sequence.num_rows; ++token) {
      const Keys keys(sequence.first_position + token, call.args.window);
      const auto splits = static_cast<std::size_t>(keys.num_splits());
      if (keys.reaches(group.split)) {
        for (int h = 0; h < call.heads_per_kv; ++h) {
          const int head = kv_head * call.heads_per_kv + h;
          const std::size_t index = partial + static_cast<std::size_t>(head) * splits +
                                    static_cast<std::size_t>(group.split - keys.first_split());
          memory.rows.push_back(
              {call.q(sequence.first_row + token, head),
               call.partials + index * static_cast<std::size_t>(call.partial_floats),
               keys.begin(group.split), keys.end(group.split)});
        }
      }
      partial += splits * static_cast<std::size_t>(call.args.num_heads);
    }
  }
  run_split(call, group.blocks, kv_head, memory.rows, prefetch_heads, memory);
}

/// Merges the splits of all heads of a short sequence's rows, in order.
void merge_short(const Call& call, const ShortSequence& entry) {
  const AttentionSequence& sequence = *entry.sequence;
  const auto stride = static_cast<std::size_t>(call.partial_floats);
  float* partial = call.partials + entry.first_partial * stride;
  for (int token = 0; token < sequence.num_rows; ++token) {
    const int splits = Keys(sequence.first_position + token, call.args.window).num_splits();
    for (int head = 0; head < call.args.num_heads; ++head) {
      float* state = partial;
      for (int split = 1; split < splits; ++split) {
        partial += stride;
        call.kernels.attention_merge(state, partial, call.args.kv.head_dim);
      }
      partial += stride;
      call.kernels.attention_finish(state, call.args.kv.head_dim,
                                    call.out(sequence.first_row + token, head));
    }
  }
}

}  // namespace

void attention(Device& device, const AttentionArgs& args) {
  CpuDevice& cpu = cpu::require_cpu(device);
  thread_local Plan plan;
  make_plan(args, plan);
  const int kv_heads = args.kv.num_kv_heads;
  Call call{args, cpu.kernels(), args.num_heads / kv_heads,
            cpu::attention_partial_floats(args.kv.head_dim), nullptr};
  call.partials = cpu.scratch().partials.reserve(plan.num_partials *
                                                 static_cast<std::size_t>(call.partial_floats));
  const int range_tasks = static_cast<int>(plan.ranges.size()) * kv_heads;
  // A block's slabs of neighbouring heads lie side by side: one task for all of them reads longer
  // runs of memory, where there are groups enough to share out.
  const int threads = cpu.threads().num_threads();
  const bool all_heads = threads == 1 || static_cast<int>(plan.num_groups) >= 3 * threads;
  const int group_tasks = static_cast<int>(plan.num_groups) * (all_heads ? 1 : kv_heads);
  const Plan& work = plan;  // tasks run on other threads: not their own thread_local
  cpu::parallel_for(cpu, range_tasks + group_tasks, [&](int task) {
    if (task < range_tasks) {
      run_range(call, work.ranges[static_cast<std::size_t>(task / kv_heads)], task % kv_heads);
      return;
    }
    task -= range_tasks;
    if (!all_heads) {
      run_group(call, work, work.groups[static_cast<std::size_t>(task / kv_heads)], task % kv_heads,
                1);
      return;
    }
    for (int kv_head = 0; kv_head < kv_heads; ++kv_head) {
      run_group(call, work, work.groups[static_cast<std::size_t>(task)], kv_head,
                kv_head == 0 ? kv_heads : 0);
    }
  });
  const auto merge = [&](int index) {
    merge_short(call, work.shorts[static_cast<std::size_t>(index)]);
  };
  const int merges = static_cast<int>(plan.shorts.size());
  if (plan.num_partials <= 128) {
    for (int index = 0; index < merges; ++index)
      merge(index);
  } else {
    cpu::parallel_for(cpu, merges, merge);
  }
}

}  // namespace thaw::ops

#include <algorithm>
#include <utility>

#include "engine/scheduler/scheduler_state.h"

namespace thaw::scheduler {

Result<void> Scheduler::State::run_step() {
  expire_deadlines();
  if (auto admitted = admit(); !admitted) return admitted;
  plan();
  if (planned.empty()) return {};

  batch.sequences.clear();
  for (const PlannedRows& rows : planned) {
    const Sequence& sequence = *rows.sequence;
    const std::uint32_t first = sequence.kv.computed;
    model::SequenceRows& added = batch.sequences.emplace_back();
    added.tokens = std::span(sequence.tokens).subspan(first, rows.num_rows);
    added.first_position = static_cast<int>(first);
    added.block_table = std::span(sequence.kv.blocks).first(blocks_for(first + rows.num_rows));
    if (rows.samples) added.logit_rows = {&rows.last_row, 1};
  }
  const auto handle = model.launch(batch);
  if (!handle) return handle.error();
  const auto logits = model.collect(*handle);
  if (!logits) return logits.error();
  ++stats.steps;

  int row = 0;
  for (const PlannedRows& rows : planned) {
    const bool gone = !rows.sequence->is_running();  // its request failed in this very step
    const int own_row = rows.samples ? row++ : -1;
    if (gone) continue;
    account(*rows.sequence, rows.num_rows);
    take_rows(rows, own_row >= 0 ? logits->row(own_row) : std::span<const float>());
  }
  return {};
}

void Scheduler::State::plan() {
  planned.clear();
  plan_decode_rows();
  plan_prefill_rows();
  if (!planned.empty() || running.empty()) return;
  // All that runs is out of blocks, and nobody will give any back: the least one does.
  preempt(
      **std::min_element(running.begin(), running.end(),
                         [](const Sequence* a, const Sequence* b) { return outranks(*b, *a); }));
}

void Scheduler::State::plan_decode_rows() {
  std::vector<Sequence*> decoding;
  for (Sequence* sequence : running) {
    if (sequence->state == SequenceState::kDecoding) decoding.push_back(sequence);
  }
  std::sort(decoding.begin(), decoding.end(),
            [](const Sequence* a, const Sequence* b) { return outranks(*a, *b); });
  for (Sequence* sequence : decoding) {
    if (sequence->state == SequenceState::kDecoding && grow_or_preempt(*sequence))
      add_rows(*sequence, 1);
  }
}

// Makes room for one more row of a decoding sequence, at the cost of those that it outranks. False:
// it had to give way itself.
bool Scheduler::State::grow_or_preempt(Sequence& sequence) {
  while (!kv.grow(sequence.kv, sequence.num_tokens())) {
    Sequence* victim = &sequence;
    for (Sequence* other : running) {
      if (other->state == SequenceState::kDecoding && outranks(*victim, *other)) victim = other;
    }
    preempt(*victim);
    if (victim == &sequence) return false;
  }
  return true;
}

void Scheduler::State::plan_prefill_rows() {
  std::map<std::int32_t, std::vector<DeficitRoundRobin::Job>> levels;
  std::unordered_map<std::uint64_t, Sequence*> by_order;
  for (Sequence* sequence : running) {
    if (sequence->state != SequenceState::kPrefilling) continue;
    levels[effective_priority(*sequence)].push_back(
        {sequence->request->call.tenant, sequence->ticket, sequence->num_pending(), 0});
    by_order[sequence->ticket] = sequence;
  }
  std::erase_if(shares, [&](const auto& share) { return !levels.contains(share.first); });
  std::uint32_t budget = options.prefill_chunk_tokens;
  for (auto& [priority, jobs] : levels) {
    budget = shares[priority].share(jobs, budget);
    for (const DeficitRoundRobin::Job& job : jobs) {
      if (job.grant == 0) continue;
      Sequence& sequence = *by_order.at(job.order);
      const std::uint32_t computed = sequence.kv.computed;
      // Admission has reserved these blocks; where someone outside holds them, fewer rows run.
      kv.grow(sequence.kv, computed + job.grant);
      const auto room = static_cast<std::uint32_t>(sequence.kv.blocks.size() * kBlockSize);
      if (room > computed) add_rows(sequence, std::min(job.grant, room - computed));
    }
  }
}

void Scheduler::State::add_rows(Sequence& sequence, std::uint32_t num_rows) {
  PlannedRows rows;
  rows.sequence = &sequence;
  rows.num_rows = num_rows;
  rows.last_row = static_cast<int>(num_rows) - 1;
  rows.samples = num_rows == sequence.num_pending();
  planned.push_back(rows);
}

// Each row is prompt computed for the first time, or something computed again, or decoded.
void Scheduler::State::account(Sequence& sequence, std::uint32_t num_rows) {
  const std::uint32_t begin = sequence.kv.computed;
  const std::uint32_t end = begin + num_rows;
  const std::uint32_t known = std::max(sequence.computed_once, sequence.resumed_below);
  stats.tokens_reprefilled += std::clamp(known, begin, end) - begin;
  const std::uint32_t prompt_end = std::clamp(sequence.generation_start, begin, end);
  stats.tokens_prefilled += prompt_end - std::clamp(known, begin, prompt_end);
  sequence.request->charged += prompt_end - std::clamp(sequence.computed_once, begin, prompt_end);
  sequence.kv.computed = end;
  sequence.computed_once = std::max(sequence.computed_once, end);
}

}  // namespace thaw::scheduler

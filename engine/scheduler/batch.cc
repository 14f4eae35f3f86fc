#include <algorithm>
#include <utility>

#include "engine/scheduler/scheduler_state.h"

namespace thaw::scheduler {
namespace {

bool has_forks(const Request& request) {
  return std::any_of(request.choices.begin(), request.choices.end(),
                     [](const auto& choice) { return choice->state == SequenceState::kForking; });
}

model::DeviceDraw draw_of(const Sequence& sequence, std::uint32_t position) {
  model::DeviceDraw draw = sequence.request->draw.value_or(model::DeviceDraw());
  draw.choice_index = sequence.choice_index;
  draw.position = position;
  return draw;
}

}  // namespace

// Launches the next step before it waits for the one that runs, so that the device never idles
// while the host counts. The oldest step is collected when there is nothing more to launch for now.
Result<void> Scheduler::State::run_step() {
  expire_deadlines();
  take_prepared();
  bool launched = false;
  if (may_launch()) {
    if (auto admitted = admit(); !admitted) return admitted;
    auto done = launch_step();
    if (!done) return done.error();
    launched = *done;
  }
  if (in_flight.empty() || (launched && may_launch())) {
    masks.finish();  // what they are of may be gone before the next call
    return {};
  }
  return collect_step();
}

// Planning ahead is of no use where a step in flight is about to tell what to do: a sequence whose
// token is sampled on the host would stand still for a step, and so would all that wait for a trunk
// which that step completes.
bool Scheduler::State::may_launch() const {
  if (in_flight.size() >= static_cast<std::size_t>(model.max_in_flight())) return false;
  if (!in_flight.empty() && in_flight.back().awaits_masks) return false;
  const auto decides_what_follows = [](const PlannedRows& rows) {
    if (rows.sequence == nullptr) return false;
    if (rows.samples && !rows.is_drawn) return true;
    const auto is_due = [&rows](const Sequence* waiter) {
      return waiter->wait_position <= rows.sequence->kv.launched;
    };
    return std::any_of(rows.sequence->waiters.begin(), rows.sequence->waiters.end(), is_due);
  };
  return std::none_of(in_flight.begin(), in_flight.end(), [&](const Step& step) {
    return std::any_of(step.rows.begin(), step.rows.end(), decides_what_follows);
  });
}

Result<bool> Scheduler::State::launch_step() {
  plan();
  if (planned.empty()) return false;
  batch.sequences.clear();
  for (const PlannedRows& rows : planned)
    add_to_batch(rows);
  start_masks();
  const auto handle = model.launch(batch);
  if (!handle) {
    masks.finish();
    return handle.error();
  }

  int num_drawn = 0;
  for (const PlannedRows& rows : planned) {
    rows.sequence->kv.launched += rows.num_rows;
    if (rows.is_drawn) rows.sequence->next_token = {*handle, num_drawn++};
  }
  if (idle.empty()) idle.emplace_back();
  in_flight.splice(in_flight.end(), idle, idle.begin());
  in_flight.back().handle = *handle;
  in_flight.back().rows.swap(planned);
  Step& step = in_flight.back();
  step.awaits_masks = std::any_of(step.rows.begin(), step.rows.end(),
                                  [](const PlannedRows& rows) { return rows.awaits_mask(); });
  if (!step.awaits_masks || in_flight.size() > 1) return true;
  if (auto given = give_masks(step); !given) return given.error();
  return true;
}

void Scheduler::State::add_to_batch(const PlannedRows& rows) {
  static constexpr TokenId kDrawnOnTheDevice = 0;
  const Sequence& sequence = *rows.sequence;
  const std::uint32_t first = sequence.kv.launched;
  const std::uint32_t end = first + rows.num_rows;
  model::SequenceRows& added = batch.sequences.emplace_back();
  if (first < sequence.num_tokens()) {
    added.tokens = std::span(sequence.tokens).subspan(first, rows.num_rows);
  } else {
    added.tokens = {&kDrawnOnTheDevice, 1};
    added.first_token = sequence.next_token;
  }
  added.first_position = static_cast<int>(first);
  added.block_table = std::span(sequence.kv.blocks).first(blocks_for(end));
  const bool gives_last = rows.samples && rows.num_scored == 0;
  if (gives_last) {
    added.logit_rows = std::span(row_numbers).subspan(rows.num_rows - 1, 1);
  } else {
    // The row that is sampled follows the last one that is scored.
    added.logit_rows =
        std::span(row_numbers).subspan(rows.first_scored, rows.num_scored + (rows.samples ? 1 : 0));
  }
  if (rows.is_drawn) added.draw = draw_of(sequence, end);
  added.awaits_mask = rows.awaits_mask();
}

Result<void> Scheduler::State::collect_step() {
  Step& step = in_flight.front();
  const auto output = model.collect(step.handle);
  if (!output) return output.error();
  masks.finish();
  ++stats.steps;
  int row = 0;
  std::size_t num_drawn = 0;
  for (const PlannedRows& rows : step.rows) {
    const TokenId drawn = rows.is_drawn ? output->drawn[num_drawn++] : -1;
    const int num_logits =
        static_cast<int>(rows.num_scored) + (rows.samples && !rows.is_drawn ? 1 : 0);
    const auto width = static_cast<std::size_t>(output->vocab_size);
    const auto logits = output->values.subspan(static_cast<std::size_t>(row) * width,
                                               static_cast<std::size_t>(num_logits) * width);
    row += num_logits;
    if (rows.sequence == nullptr) {
      stats.tokens_discarded += rows.num_rows;
      continue;
    }
    account(*rows.sequence, rows.num_rows);
    take_rows(rows, logits, drawn);
  }
  idle.splice(idle.end(), in_flight, in_flight.begin());
  if (in_flight.empty() || !in_flight.front().awaits_masks) return {};
  return give_masks(in_flight.front());
}

void Scheduler::State::abandon_rows(const Sequence& sequence) {
  for (Step& step : in_flight) {
    for (PlannedRows& rows : step.rows) {
      if (rows.sequence == &sequence) rows.sequence = nullptr;
    }
  }
}

void Scheduler::State::plan() {
  planned.clear();
  if (!plan_decode_rows()) {
    planned.clear();
    return;
  }
  plan_prefill_rows();
  draw_masked_rows_or_not();
  if (!planned.empty() || running.empty() || !in_flight.empty()) return;
  // All that runs is out of blocks, and nobody will give any back: the least one does.
  preempt(
      **std::min_element(running.begin(), running.end(),
                         [](const Sequence* a, const Sequence* b) { return outranks(*b, *a); }));
}

// False: blocks are short, and steps in flight may give some back. Nobody is preempted before they
// are collected, so that whoever gives way has nothing in flight.
bool Scheduler::State::plan_decode_rows() {
  decoding.clear();
  for (Sequence* sequence : running) {
    if (sequence->is_past_prefill() && may_decode(*sequence)) decoding.push_back(sequence);
  }
  std::sort(decoding.begin(), decoding.end(),
            [](const Sequence* a, const Sequence* b) { return outranks(*a, *b); });
  for (Sequence* sequence : decoding) {
    if (!sequence->is_running()) continue;  // it had to give way
    if (kv.grow(sequence->kv, sequence->kv.launched + 1) || make_room_for(*sequence)) {
      add_rows(*sequence, 1);
    } else if (!in_flight.empty()) {
      return false;
    }
  }
  return true;
}

// Whether one more token may follow those known and those in flight.
bool Scheduler::State::may_decode(const Sequence& sequence) const {
  const std::uint32_t drawn = sequence.num_drawn();
  return sequence.num_generated() + drawn < sequence.request->call.sampling.max_tokens &&
         sequence.num_tokens() + drawn < max_tokens;
}

// Makes room for one more row of a decoding sequence, at the cost of those that it outranks. False:
// it had to give way itself, or steps are in flight.
bool Scheduler::State::make_room_for(Sequence& sequence) {
  if (!in_flight.empty()) return false;
  do {
    Sequence* victim = &sequence;
    for (Sequence* other : running) {
      if (other->state == SequenceState::kDecoding && outranks(*victim, *other)) victim = other;
    }
    preempt(*victim);
    if (victim == &sequence) return false;
  } while (!kv.grow(sequence.kv, sequence.kv.launched + 1));
  return true;
}

void Scheduler::State::plan_prefill_rows() {
  std::map<std::int32_t, std::vector<DeficitRoundRobin::Job>> levels;
  std::unordered_map<std::uint64_t, Sequence*> by_order;
  for (Sequence* sequence : running) {
    if (sequence->state != SequenceState::kPrefilling || sequence->is_past_prefill()) continue;
    levels[effective_priority(*sequence)].push_back(
        {sequence->request->call.tenant, sequence->ticket, sequence->num_pending(), 0});
    by_order[sequence->ticket] = sequence;
  }
  std::erase_if(shares, [&](const auto& share) { return !levels.contains(share.first); });
  std::uint32_t budget = options.prefill_chunk_tokens;
  std::uint32_t logit_room = max_scored;
  for (auto& [priority, jobs] : levels) {
    budget = shares[priority].share(jobs, budget);
    for (const DeficitRoundRobin::Job& job : jobs) {
      if (job.grant == 0) continue;
      Sequence& sequence = *by_order.at(job.order);
      const std::uint32_t launched = sequence.kv.launched;
      // Admission has reserved these blocks; where someone outside holds them, fewer rows run.
      const std::uint32_t wanted = cut_to_logits(sequence, job.grant, logit_room);
      kv.grow(sequence.kv, launched + wanted);
      const auto room = static_cast<std::uint32_t>(sequence.kv.blocks.size() * kBlockSize);
      if (wanted > 0 && room > launched) add_rows(sequence, std::min(wanted, room - launched));
    }
  }
}

// Rows are scored as long as there is room for their logits.
std::uint32_t Scheduler::State::cut_to_logits(const Sequence& sequence, std::uint32_t num_rows,
                                              std::uint32_t& logit_room) const {
  const Request& request = *sequence.request;
  const std::uint32_t begin = std::max(sequence.kv.launched, request.num_scored);
  const std::uint32_t end = std::min(sequence.kv.launched + num_rows, request.num_to_score());
  if (begin >= end) return num_rows;
  const std::uint32_t taken = std::min(end - begin, logit_room);
  logit_room -= taken;
  return taken == end - begin ? num_rows : begin + taken - sequence.kv.launched;
}

void Scheduler::State::add_rows(Sequence& sequence, std::uint32_t num_rows) {
  PlannedRows rows;
  rows.sequence = &sequence;
  rows.num_rows = num_rows;
  const Request& request = *sequence.request;
  const std::uint32_t first = sequence.kv.launched;
  const std::uint32_t scored_begin = std::max(first, request.num_scored);
  const std::uint32_t scored_end = std::min(first + num_rows, request.num_to_score());
  if (scored_begin < scored_end) {
    rows.first_scored = scored_begin - first;
    rows.num_scored = scored_end - scored_begin;
  }
  rows.samples = num_rows == sequence.num_pending() && request.call.sampling.max_tokens > 0;
  // The other choices of a request start from its first row of logits.
  rows.is_drawn =
      rows.samples && request.draw && (sequence.is_past_prefill() || !has_forks(request));
  planned.push_back(rows);
}

// Where a step gives more logits than can wait for masks, constrained rows are sampled on the host.
void Scheduler::State::draw_masked_rows_or_not() {
  std::uint32_t num_logits = 0;
  for (const PlannedRows& rows : planned)
    num_logits += rows.num_scored + (rows.samples ? 1 : 0);
  if (num_logits <= static_cast<std::uint32_t>(model.max_masked_rows())) return;
  for (PlannedRows& rows : planned)
    if (rows.awaits_mask()) rows.is_drawn = false;
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

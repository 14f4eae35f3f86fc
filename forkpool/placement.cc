#include "forkpool/placement.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

namespace thaw::forkpool {
namespace {

constexpr double kNewShare = 0.2;  // of a new observation in an average

void average(double& value, double observed) {
  value += kNewShare * (observed - value);
}

/// How one worker gets the trunk, and what that costs.
struct TrunkSource {
  double seconds = 0;
  std::optional<std::uint32_t> from;  ///< index into the loads: by a transfer
};

TrunkSource trunk_source(const CostModel& model, const std::vector<WorkerLoad>& loads,
                         const Group& group, std::size_t to) {
  const double rate = model.prefill_tokens_per_second;
  const double alive = group.alive_tokens[to];
  TrunkSource best{(group.trunk_tokens - alive) / rate, std::nullopt};
  for (std::uint32_t from = 0; from < loads.size(); ++from) {
    const double published = group.published_tokens[from];
    if (from == to || published < model.fork_min_prefix_tokens || published <= alive) continue;
    const double bytes = published * static_cast<double>(loads[from].kv_bytes_per_token);
    const double move = loads[from].lends ? std::min(model.peer_move_seconds(bytes),
                                                     model.arena_move_seconds(bytes))
                                          : model.arena_move_seconds(bytes);
    const double seconds = move + (group.trunk_tokens - published) / rate;
    if (seconds < best.seconds) best = {seconds, from};
  }
  return best;
}

/// What a worker has to do if it takes these units, and when it is done.
struct Plan {
  double prefill_seconds = 0;  ///< the trunk's and the units'
  std::uint32_t sequences = 0;
  std::uint32_t decode_tokens = 0;

  void add(const CostModel& model, const Unit& unit, std::size_t load) {
    prefill_seconds +=
        (unit.prefill_tokens - unit.alive_tokens[load]) / model.prefill_tokens_per_second;
    sequences += unit.sequences;
    decode_tokens = std::max(decode_tokens, std::min(unit.decode_tokens, model.max_decode_tokens));
  }
  double done(const CostModel& model, const WorkerLoad& load) const {
    const double step = model.decode_step_seconds +
                        model.decode_seconds_per_sequence * (load.sequences + sequences);
    return load.queued_prefill_tokens / model.prefill_tokens_per_second + prefill_seconds +
           decode_tokens * step;
  }
  /// The time until it is done and the work it takes.
  double cost(const CostModel& model, const WorkerLoad& load) const {
    return done(model, load) + prefill_seconds;
  }
};

Placement place_whole(const CostModel& model, const std::vector<WorkerLoad>& loads,
                      const Group& group) {
  Placement best;
  auto best_key = std::tuple(std::numeric_limits<double>::infinity(), std::uint32_t{0});
  for (std::uint32_t load = 0; load < loads.size(); ++load) {
    if (group.only_load.value_or(load) != load) continue;
    const TrunkSource source = trunk_source(model, loads, group, load);
    Plan plan;
    plan.prefill_seconds = source.seconds;
    for (const Unit& unit : group.units)
      plan.add(model, unit, load);
    const double cost = plan.cost(model, loads[load]);
    const auto key = std::tuple(cost, loads[load].sequences);
    if (key >= best_key) continue;
    best_key = key;
    best = {std::vector<std::uint32_t>(group.units.size(), load), {}, cost};
    if (source.from) best.transfers.push_back({*source.from, load});
  }
  return best;
}

/// Longest unit first, each to the worker where it costs least.
Placement place_spread(const CostModel& model, const std::vector<WorkerLoad>& loads,
                       const Group& group) {
  std::vector<std::size_t> order(group.units.size());
  for (std::size_t i = 0; i < order.size(); ++i)
    order[i] = i;
  std::ranges::sort(order, [&](std::size_t a, std::size_t b) {
    const double left = group.units[a].prefill_tokens;
    const double right = group.units[b].prefill_tokens;
    return left != right ? left > right : a < b;
  });
  std::vector<TrunkSource> sources;
  sources.reserve(loads.size());
  for (std::size_t load = 0; load < loads.size(); ++load)
    sources.push_back(trunk_source(model, loads, group, load));

  Placement placement;
  placement.unit_load.resize(group.units.size());
  std::vector<Plan> plans(loads.size());
  for (const std::size_t unit : order) {
    std::uint32_t best = 0;
    double best_cost = std::numeric_limits<double>::infinity();
    for (std::uint32_t load = 0; load < loads.size(); ++load) {
      Plan plan = plans[load];
      if (plan.sequences == 0) plan.prefill_seconds = sources[load].seconds;
      plan.add(model, group.units[unit], load);
      // What the worker has been given before counts for when it is done, not as this unit's work.
      const double cost = plan.cost(model, loads[load]) - plans[load].prefill_seconds;
      if (cost >= best_cost) continue;
      best = load;
      best_cost = cost;
    }
    Plan& plan = plans[best];
    if (plan.sequences == 0) {
      plan.prefill_seconds = sources[best].seconds;
      if (const auto from = sources[best].from) placement.transfers.push_back({*from, best});
    }
    plan.add(model, group.units[unit], best);
    placement.unit_load[unit] = best;
  }
  double done = 0;
  for (std::size_t load = 0; load < loads.size(); ++load) {
    if (plans[load].sequences == 0) continue;
    done = std::max(done, plans[load].done(model, loads[load]));
    placement.cost_seconds += plans[load].prefill_seconds;
  }
  placement.cost_seconds += done;
  return placement;
}

}  // namespace

Placement place(const CostModel& model, const std::vector<WorkerLoad>& loads, const Group& group) {
  Placement whole = place_whole(model, loads, group);
  if (loads.size() == 1 || group.units.size() == 1 || group.only_load) return whole;
  Placement spread = place_spread(model, loads, group);
  return spread.cost_seconds < model.spread_below * whole.cost_seconds ? spread : whole;
}

CostModel CostModel::for_device(const std::string& device) {
  CostModel model;
  if (!device.starts_with("cuda")) return model;
  model.prefill_tokens_per_second = 35000;
  model.decode_step_seconds = 5.5e-3;
  model.decode_seconds_per_sequence = 5e-5;
  model.copy_bytes_per_second = 45e9;
  model.arena_passes = 1.2;  // by engines of two devices, each its own way
  model.peer_bytes_per_second = 300e9;
  return model;
}

void CostModel::observe_steps(const EngineStats& before, const EngineStats& now, double seconds) {
  if (seconds <= 0 || now.steps <= before.steps) return;
  const auto prefilled = static_cast<double>(now.tokens_prefilled - before.tokens_prefilled +
                                             now.tokens_reprefilled - before.tokens_reprefilled);
  const auto decoded = static_cast<double>(now.tokens_decoded - before.tokens_decoded);
  const auto steps = static_cast<double>(now.steps - before.steps);
  const double decoding = steps * decode_step_seconds + decoded * decode_seconds_per_sequence;
  // Only spans that are nearly all of one kind tell its rate.
  if (prefilled > 16 * decoded) {
    // Of the time that a token takes: a report that is read late makes this span too long and the
    // next one too short. Of their times the mean is right, of their rates it is far too large.
    double token_seconds = 1 / prefill_tokens_per_second;
    average(token_seconds, seconds / prefilled);
    prefill_tokens_per_second = 1 / token_seconds;
  } else if (prefilled == 0 && decoded > 0) {
    const double scale = seconds / decoding;
    average(decode_step_seconds, decode_step_seconds * scale);
    average(decode_seconds_per_sequence, decode_seconds_per_sequence * scale);
  }
}

void CostModel::observe_transfer(std::uint64_t bytes, double seconds) {
  if (seconds <= transfer_seconds || bytes == 0) return;
  average(copy_bytes_per_second,
          arena_passes * static_cast<double>(bytes) / (seconds - transfer_seconds));
}

void CostModel::observe_peer(std::uint64_t bytes, double seconds) {
  if (seconds <= peer_seconds || bytes == 0) return;
  average(peer_bytes_per_second, static_cast<double>(bytes) / (seconds - peer_seconds));
}

void CostModel::observe_file(std::uint64_t bytes, double seconds) {
  if (seconds <= file_seconds || bytes == 0) return;
  average(file_bytes_per_second, static_cast<double>(bytes) / (seconds - file_seconds));
}

void CostModel::observe_store(std::uint64_t bytes, double seconds) {
  if (seconds <= 0 || bytes == 0) return;
  // A small object tells what opening takes, a large one the rate.
  const double moving = static_cast<double>(bytes) / store_bytes_per_second;
  if (moving < store_seconds) {
    average(store_seconds, std::max(0.0, seconds - moving));
  } else if (seconds > store_seconds) {
    // As for prefill: the mean of the times, not of the rates.
    double byte_seconds = 1 / store_bytes_per_second;
    average(byte_seconds, (seconds - store_seconds) / static_cast<double>(bytes));
    store_bytes_per_second = 1 / byte_seconds;
  }
}

void CostModel::doubt_store() {
  const CostModel fresh;
  store_bytes_per_second = std::sqrt(store_bytes_per_second * fresh.store_bytes_per_second);
  store_seconds = (store_seconds + fresh.store_seconds) / 2;
}

double CostModel::restore_seconds(std::uint64_t bytes, Tier from) const {
  const auto size = static_cast<double>(bytes);
  double seconds = transfer_seconds / 2 + size / copy_bytes_per_second;
  if (from != Tier::kArena) seconds += file_seconds + size / file_bytes_per_second;
  if (from == Tier::kStore) seconds += store_seconds + size / store_bytes_per_second;
  return seconds;
}

double CostModel::patience_seconds(std::uint64_t tokens, Tier from) const {
  return from == Tier::kStore ? prefill_seconds(tokens) : std::numeric_limits<double>::infinity();
}

std::uint32_t CostModel::crossover_tokens(std::uint64_t kv_bytes_per_token, Tier from) const {
  constexpr std::uint32_t kNever = std::numeric_limits<std::uint32_t>::max();
  const double fixed = restore_seconds(0, from);
  const double saved_each =
      1 / prefill_tokens_per_second - (restore_seconds(kv_bytes_per_token, from) - fixed);
  if (saved_each <= 0 || fixed / saved_each >= static_cast<double>(kNever)) return kNever;
  return static_cast<std::uint32_t>(fixed / saved_each) + 1;
}

}  // namespace thaw::forkpool

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/scheduler/scheduler_state.h"

namespace thaw::scheduler {
namespace {

// Where nothing but compilation is under way. The caller has others to listen to.
constexpr std::chrono::milliseconds kPrepareWait{1};

}  // namespace

Result<void> Scheduler::State::prepare(Request& request) {
  if (options.grammars == nullptr)
    return make_error(Errc::kUnsupported,
                      "grammars need the texts of the model's tokens, which this engine was not "
                      "given");
  const std::vector<TokenId>& own = request.call.sampling.stop_token_ids;
  request.stops = model.config().eos_token_ids;
  for (const TokenId token : own)
    if (std::ranges::find(request.stops, token) == request.stops.end())
      request.stops.push_back(token);
  if (request.stops.empty())
    return make_error(Errc::kInvalidArgument,
                      "the model has no token that ends a text; with a grammar stop_token_ids must "
                      "name one");
  grammar::Order order;
  order.document = request.call.grammar;
  order.stop_token_ids = own;
  for (const ResumedChoice& resumed : request.call.resumed)
    order.generated.push_back(resumed.generated);
  if (order.generated.empty()) order.generated.emplace_back();  // the choices fork it
  auto preparation = options.grammars->prepare(std::move(order));
  if (!preparation) return preparation.error();
  request.preparation = *std::move(preparation);
  return {};
}

void Scheduler::State::take_prepared() {
  if (preparing.empty()) return;
  if (running.empty() && waiting.empty() && in_flight.empty()) options.grammars->wait(kPrepareWait);
  const std::vector<Request*> asked = preparing;
  for (Request* request : asked) {
    auto taken = options.grammars->take(*request->preparation);
    if (!taken) continue;
    request->preparation.reset();
    std::erase(preparing, request);
    if (!*taken) {
      fail(*request, taken->error());
      continue;
    }
    grammar::Preparation::Matchers& matchers = **taken;
    for (std::size_t i = 0; i < request->choices.size(); ++i) {
      auto constraint = std::make_unique<Constraint>();
      constraint->matcher = i < matchers.size() ? std::move(matchers[i])
                                                : request->choices[0]->constraint->matcher->fork();
      constraint->mask.resize(grammar::mask_words(model.config().vocab_size));
      request->choices[i]->constraint = std::move(constraint);
    }
    enter(*request);
    for (const std::uint32_t choice : std::exchange(request->unwanted, {}))
      end_choice(*request, choice);
  }
}

MaskJob Scheduler::State::mask_job(Sequence& sequence) const {
  const Request& request = *sequence.request;
  const SamplingParams& params = request.call.sampling;
  MaskJob job{sequence.constraint.get(), sequence.num_tokens(), {}};
  if (params.ignore_eos || sequence.num_generated() < params.min_tokens)
    job.barred_stops = request.stops;
  return job;
}

void Scheduler::State::start_masks() {
  mask_jobs.clear();
  for (const PlannedRows& rows : planned) {
    Sequence& sequence = *rows.sequence;
    if (rows.samples && sequence.constraint && sequence.num_drawn() == 0)
      mask_jobs.push_back(mask_job(sequence));
  }
  masks.start(mask_jobs);
}

Result<void> Scheduler::State::give_masks(Step& step) {
  masks.finish();
  mask_jobs.clear();
  for (const PlannedRows& rows : step.rows)
    if (rows.awaits_mask() && rows.sequence->constraint->filled_at != rows.sequence->num_tokens())
      mask_jobs.push_back(mask_job(*rows.sequence));
  masks.start(mask_jobs);
  masks.finish();
  for (const PlannedRows& rows : step.rows) {
    if (!rows.awaits_mask()) continue;
    if (const auto error = rows.sequence->constraint->error)
      fail(*rows.sequence->request, *error);  // its rows are nobody's then
  }
  given_masks.clear();
  for (const PlannedRows& rows : step.rows) {
    if (!rows.is_drawn) continue;
    given_masks.emplace_back();
    if (rows.awaits_mask()) given_masks.back() = rows.sequence->constraint->mask;
  }
  step.awaits_masks = false;
  return model.give_masks(step.handle, given_masks);
}

Result<std::span<const std::uint32_t>> Scheduler::State::mask_of(Sequence& sequence) {
  Constraint& constraint = *sequence.constraint;
  if (constraint.filled_at != sequence.num_tokens()) masks.fill(mask_job(sequence));
  if (constraint.error) return *constraint.error;
  return std::span<const std::uint32_t>(constraint.mask);
}

}  // namespace thaw::scheduler

#include "tests/scheduler/exactness.h"

#include <algorithm>
#include <cstdlib>

#include "engine/base/hash.h"

namespace thaw::scheduler {

ExactBed::ExactBed(model::Model& model, std::size_t blocks_in_memory, const BedOptions& options)
    : ahead_(model),
      pool_(options.num_blocks != 0 ? options.num_blocks : blocks_in_memory),
      index_(pool_) {
  SchedulerOptions scheduler;
  scheduler.prefill_chunk_tokens = options.chunk;
  scheduler.max_num_seqs = options.max_num_seqs;
  if (!options.look_ahead) {
    scheduler.on_logits = [this](RequestId id, std::uint32_t choice, std::uint32_t,
                                 std::span<const float> logits) {
      run_[{id - first_id_, choice}].logits.push_back(hash_bytes(std::as_bytes(logits)));
    };
  }
  scheduler_ = std::make_unique<Scheduler>(
      scheduler, options.look_ahead ? ahead_ : model, index_, pool_, clock_,
      [this](const GenerateEvent& event) {
        if (const auto* token = std::get_if<TokenEvent>(&event)) {
          run_[{token->request - first_id_, token->choice}].tokens.push_back(token->token);
        }
        num_completed_ += std::holds_alternative<CompletedEvent>(event) ? 1 : 0;
      });
}

Run ExactBed::run(const std::vector<GenerateRequest>& requests) {
  run_.clear();
  first_id_ = next_id_;
  num_completed_ = 0;
  for (GenerateRequest request : requests) {
    request.id = next_id_++;
    const auto added = scheduler_->add(std::move(request));
    EXPECT_TRUE(added) << added.error().message;
  }
  while (scheduler_->has_work()) {
    const auto stepped = scheduler_->step();
    EXPECT_TRUE(stepped) << stepped.error().message;
    if (!stepped) break;
  }
  EXPECT_EQ(num_completed_, requests.size());
  const auto checked = scheduler_->check_integrity();
  EXPECT_TRUE(checked) << checked.error().message;
  return run_;
}

ExactnessSuite::ExactnessSuite(const Options& options, bool seeded)
    : options_(options), seeded_(seeded), model_(make_model(1)) {
  for (std::size_t i = 0; i < options_.prompts.size(); ++i)
    reference_.push_back(alone(request(i)));
}

std::unique_ptr<model::Harness> ExactnessSuite::make_model(int threads) const {
  model::HarnessOptions options;
  options.threads = threads;
  options.num_blocks = options_.num_blocks;
  options.kv_dtype = options_.kv_dtype;
  // `make test-exact` runs the suite on the slower instruction sets too.
  if (const char* isa = std::getenv("THAW_TEST_ISA")) options.isa = isa;
  return std::make_unique<model::Harness>(options_.model_path, options);
}

GenerateRequest ExactnessSuite::request(std::size_t prompt) const {
  GenerateRequest request;
  request.prompt = options_.prompts[prompt];
  request.sampling.temperature = seeded_ ? 1.0F : 0.0F;
  request.sampling.seed = 100 + prompt;
  request.sampling.max_tokens = options_.max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

std::vector<GenerateRequest> ExactnessSuite::all_requests() const {
  std::vector<GenerateRequest> requests;
  for (std::size_t i = 0; i < options_.prompts.size(); ++i)
    requests.push_back(request(i));
  return requests;
}

ExactBed ExactnessSuite::bed(BedOptions options) const {
  options.look_ahead = options_.look_ahead;
  return {model_->model(), static_cast<std::size_t>(options_.num_blocks), options};
}

Generated ExactnessSuite::alone(const GenerateRequest& request) const {
  ExactBed cold(model_->model(), static_cast<std::size_t>(options_.num_blocks));
  Run run = cold.run({request});
  EXPECT_EQ(cold.cached(), 0U);
  EXPECT_EQ(run.size(), 1U);
  return run.begin()->second;
}

void ExactnessSuite::expect_reference(const Run& run, std::size_t skip) const {
  ASSERT_EQ(run.size(), reference_.size());
  for (const auto& [key, generated] : run) {
    const Generated& whole = reference_[key.first];
    const Generated rest{{whole.tokens.begin() + skip, whole.tokens.end()},
                         {whole.logits.begin() + skip, whole.logits.end()}};
    EXPECT_EQ(generated.tokens, rest.tokens) << "prompt " << key.first;
    EXPECT_TRUE(matches(generated, rest)) << "logit bits differ, prompt " << key.first;
  }
}

bool ExactnessSuite::matches(const Generated& generated, const Generated& reference) const {
  return generated.tokens == reference.tokens &&
         (options_.look_ahead ? generated.logits.empty() : generated.logits == reference.logits);
}

void ExactnessSuite::alone_warm() {
  for (std::size_t i = 0; i < options_.prompts.size(); ++i) {
    ExactBed warm = bed();
    warm.run({request(i)});
    const Run again = warm.run({request(i)});
    EXPECT_EQ(warm.cached(), options_.prompts[i].size() - 1);
    EXPECT_TRUE(matches(again.begin()->second, reference_[i])) << "prompt " << i;
  }
}

void ExactnessSuite::batched() {
  BedOptions options;
  options.max_num_seqs = 8;
  ExactBed together = bed(options);
  expect_reference(together.run(all_requests()));
  // Eight rows a step, or close to it.
  EXPECT_LT(together.stats().steps * 4, together.stats().tokens_decoded);
}

void ExactnessSuite::other_chunks() {
  for (std::uint32_t chunk : options_.chunks) {
    SCOPED_TRACE("chunk " + std::to_string(chunk));
    BedOptions options;
    options.chunk = chunk;
    ExactBed chunked = bed(options);
    expect_reference(chunked.run(all_requests()));
    EXPECT_GE(chunked.stats().steps, chunked.stats().tokens_prefilled / chunk);
  }
}

void ExactnessSuite::choices() {
  constexpr std::uint32_t kChoices = 4;
  // One prompt that ends inside a block, and the last one.
  for (std::size_t prompt : {std::size_t{0}, options_.prompts.size() - 1}) {
    GenerateRequest forked = request(prompt);
    forked.num_choices = kChoices;
    ExactBed bed_of_choices = bed();
    const Run run = bed_of_choices.run({forked});
    const std::size_t length = options_.prompts[prompt].size();
    EXPECT_EQ(bed_of_choices.stats().tokens_prefilled, length);
    EXPECT_EQ(bed_of_choices.stats().copied_blocks, length % kBlockSize == 0 ? 0 : kChoices - 1);
    ASSERT_EQ(run.size(), kChoices);
    for (std::uint32_t choice = 0; choice < kChoices; ++choice) {
      GenerateRequest single = request(prompt);
      single.resumed = {{choice, {}}};
      EXPECT_TRUE(matches(run.at({0, choice}), alone(single))) << "choice " << choice;
    }
  }
}

void ExactnessSuite::shared_trunk() {
  ExactBed forked = bed();
  std::size_t total = 0;
  for (const auto& prompt : options_.prompts)
    total += prompt.size();
  expect_reference(forked.run(all_requests()));
  EXPECT_GE(forked.stats().trunk_waits, options_.num_branches - 1);
  EXPECT_LE(forked.stats().tokens_prefilled,
            total - (options_.num_branches - 1) * options_.trunk_tokens);
  // A straggler finds the trunk warm and forks from it.
  ExactBed late = bed();
  late.run({request(1)});
  const Run straggler = late.run({request(0)});
  EXPECT_GE(late.cached(), options_.trunk_tokens);
  EXPECT_TRUE(matches(straggler.begin()->second, reference_[0]));
}

void ExactnessSuite::after_eviction() {
  std::size_t longest = 0;
  for (const auto& prompt : options_.prompts)
    longest = std::max(longest, prompt.size());
  BedOptions options;
  options.num_blocks = blocks_for(longest + options_.max_tokens) + 2;
  ExactBed small = bed(options);
  Run run;
  for (std::size_t i = 0; i < options_.prompts.size(); ++i)
    run[{i, 0}] = small.run({request(i)}).begin()->second;
  expect_reference(run);
  const std::uint64_t cached = small.cached();
  const Run again = small.run({request(0)});
  EXPECT_GT(small.stats().evicted_blocks, 0U);
  EXPECT_LT(small.cached() - cached, options_.prompts[0].size() - 1);
  EXPECT_TRUE(matches(again.begin()->second, reference_[0]));
}

void ExactnessSuite::after_preemption() {
  std::size_t longest = 0;
  for (const auto& prompt : options_.prompts)
    longest = std::max(longest, prompt.size());
  BedOptions options;
  // Room for the longest and for some growth of others.
  options.num_blocks = blocks_for(longest + options_.max_tokens) + blocks_for(longest) / 2 + 4;
  ExactBed small = bed(options);
  expect_reference(small.run(all_requests()));
  EXPECT_GT(small.stats().preemptions, 0U);
  EXPECT_GT(small.stats().tokens_reprefilled, 0U);
}

void ExactnessSuite::resumed() {
  for (std::size_t cut : {std::size_t{1}, std::size_t{options_.max_tokens} / 2,
                          std::size_t{options_.max_tokens} - 1}) {
    std::vector<GenerateRequest> requests;
    for (std::size_t i = 0; i < options_.prompts.size(); ++i) {
      const auto& tokens = reference_[i].tokens;
      requests.push_back(request(i));
      requests.back().resumed = {{0, {tokens.begin(), tokens.begin() + cut}}};
    }
    ExactBed successor = bed();
    expect_reference(successor.run(requests), cut);
    EXPECT_GT(successor.stats().tokens_reprefilled, 0U);
    EXPECT_EQ(successor.stats().tokens_prefilled, 0U);
  }
}

void ExactnessSuite::fed_again() {
  const std::size_t cut = options_.max_tokens / 2;
  std::vector<GenerateRequest> requests;
  for (std::size_t i = 0; i < options_.prompts.size(); ++i) {
    const auto& tokens = reference_[i].tokens;
    requests.push_back(request(i));
    requests.back().prompt.insert(requests.back().prompt.end(), tokens.begin(),
                                  tokens.begin() + cut);
    requests.back().sampling.max_tokens -= static_cast<std::uint32_t>(cut);
  }
  // Cold: what was decoded one by one is prefilled now.
  ExactBed cold = bed();
  expect_reference(cold.run(requests), cut);
  // Warm: the KV that decoding wrote is found.
  ExactBed warm = bed();
  warm.run(all_requests());
  const std::uint64_t prefilled = warm.stats().tokens_prefilled;
  expect_reference(warm.run(requests), cut);
  EXPECT_EQ(warm.stats().tokens_prefilled - prefilled, requests.size());
}

void ExactnessSuite::other_thread_counts() {
  const auto threaded = make_model(2);
  BedOptions options;
  options.look_ahead = options_.look_ahead;
  ExactBed together(threaded->model(), static_cast<std::size_t>(options_.num_blocks), options);
  expect_reference(together.run(all_requests()));
  ExactBed by_itself(threaded->model(), static_cast<std::size_t>(options_.num_blocks), options);
  EXPECT_TRUE(matches(by_itself.run({request(0)}).begin()->second, reference_[0]));
}

}  // namespace thaw::scheduler

#include "tests/scheduler/exactness.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "engine/base/hash.h"
#include "kvsnap/arena.h"
#include "kvsnap/snapshot_reader.h"
#include "kvsnap/snapshot_writer.h"

namespace thaw::scheduler {
namespace {

class CpuSuiteModel final : public SuiteModel {
 public:
  CpuSuiteModel(const std::string& path, const model::HarnessOptions& options)
      : harness_(path, options),
        threads_(options.threads),
        pipeline_(kvsnap::make_cpu_copy_pipeline(threads_)) {}
  model::Model& model() override { return harness_.model(); }
  kvsnap::CopyPipeline& pipeline() override { return *pipeline_; }

 private:
  model::Harness harness_;
  ThreadPool threads_;
  std::unique_ptr<kvsnap::CopyPipeline> pipeline_;
};

}  // namespace

ExactBed::ExactBed(model::Model& model, std::size_t blocks_in_memory, const BedOptions& options)
    : ahead_(model),
      pool_(options.num_blocks != 0 ? options.num_blocks : blocks_in_memory),
      index_(pool_) {
  SchedulerOptions scheduler;
  scheduler.prefill_chunk_tokens = options.chunk;
  scheduler.max_num_seqs = options.max_num_seqs;
  scheduler.grammars = options.grammars;
  if (!options.look_ahead) {
    scheduler.on_logits = [this](RequestId id, std::uint32_t choice, std::uint32_t,
                                 std::span<const float> logits) {
      run_[{id - first_id_, choice}].logits.push_back(hash_bytes(std::as_bytes(logits)));
    };
  }
  scheduler_ = std::make_unique<Scheduler>(
      // A GPU looks ahead by itself.
      scheduler, options.look_ahead && model.max_in_flight() == 1 ? ahead_ : model, index_, pool_,
      clock_, [this](const GenerateEvent& event) {
        if (const auto* token = std::get_if<TokenEvent>(&event)) {
          Generated& generated = run_[{token->request - first_id_, token->choice}];
          generated.tokens.push_back(token->token);
          generated.scored.push_back({token->logprob, 0, token->top_logprobs});
        } else if (const auto* prompt = std::get_if<PromptLogprobsEvent>(&event)) {
          auto& scored = run_[{prompt->request - first_id_, 0}].prompt;
          EXPECT_EQ(prompt->first, scored.size() + 1);
          scored.insert(scored.end(), prompt->tokens.begin(), prompt->tokens.end());
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

std::unique_ptr<SuiteModel> ExactnessSuite::make_model(int variant) const {
  if (options_.make_model) return options_.make_model(variant);
  model::HarnessOptions options;
  options.threads = variant;
  options.num_blocks = options_.num_blocks;
  options.kv_dtype = options_.kv_dtype;
  // `make test-exact` runs the suite on the slower instruction sets too.
  if (const char* isa = std::getenv("THAW_TEST_ISA")) options.isa = isa;
  return std::make_unique<CpuSuiteModel>(options_.model_path, options);
}

GenerateRequest ExactnessSuite::request(std::size_t prompt) const {
  GenerateRequest request;
  request.prompt = options_.prompts[prompt];
  request.sampling.temperature = seeded_ ? 1.0F : 0.0F;
  request.sampling.seed = 100 + prompt;
  request.sampling.max_tokens = options_.max_tokens;
  request.sampling.ignore_eos = true;
  if (prompt % 2 == 0) request.grammar = options_.grammar;
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
  options.grammars = options_.grammars.get();
  return {model_->model(), static_cast<std::size_t>(options_.num_blocks), options};
}

Generated ExactnessSuite::alone(const GenerateRequest& request) const {
  BedOptions options;
  options.grammars = options_.grammars.get();
  ExactBed cold(model_->model(), static_cast<std::size_t>(options_.num_blocks), options);
  Run run = cold.run({request});
  EXPECT_EQ(cold.cached(), 0U);
  EXPECT_EQ(run.size(), 1U);
  return run.begin()->second;
}

// An answer may end sooner than others, with its grammar.
std::ptrdiff_t ExactnessSuite::cut_of(std::size_t prompt, std::size_t cut) const {
  EXPECT_GT(reference_[prompt].tokens.size(), 1U);
  return static_cast<std::ptrdiff_t>(std::min(cut, reference_[prompt].tokens.size() - 1));
}

void ExactnessSuite::expect_reference(const Run& run, std::size_t skip) const {
  ASSERT_EQ(run.size(), reference_.size());
  for (const auto& [key, generated] : run) {
    const Generated& whole = reference_[key.first];
    const std::ptrdiff_t begin = skip == 0 ? 0 : cut_of(key.first, skip);
    const Generated rest{{whole.tokens.begin() + begin, whole.tokens.end()},
                         {whole.logits.begin() + begin, whole.logits.end()},
                         {},
                         {}};
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

void ExactnessSuite::batched_then_alone_warm() {
  BedOptions options;
  options.max_num_seqs = 8;
  ExactBed warm = bed(options);
  expect_reference(warm.run(all_requests()));
  EXPECT_LT(warm.stats().steps * 4, warm.stats().tokens_decoded);
  for (std::size_t i = 0; i < options_.prompts.size(); ++i) {
    const std::uint64_t cached = warm.cached();
    const Run again = warm.run({request(i)});
    EXPECT_EQ(warm.cached() - cached, options_.prompts[i].size() - 1);
    EXPECT_TRUE(matches(again.begin()->second, reference_[i])) << "prompt " << i;
  }
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
      requests.back().resumed = {{0, {tokens.begin(), tokens.begin() + cut_of(i, cut)}}};
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

void ExactnessSuite::scored_again() {
  constexpr std::int32_t kBest = 3;
  std::vector<GenerateRequest> requests;
  for (std::size_t i = 0; i < options_.prompts.size(); i += 5) {
    requests.push_back(request(i));
    requests.back().sampling.top_logprobs = kBest;
  }
  ExactBed decoding = bed();
  const Run decoded = decoding.run(requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto& tokens = decoded.at({i, 0}).tokens;
    EXPECT_EQ(tokens, reference_[i * 5].tokens);
    requests[i].prompt.insert(requests[i].prompt.end(), tokens.begin(), tokens.end());
    requests[i].prompt_logprobs = kBest;
    // Two choices, or none at all.
    requests[i].num_choices = 2;
    requests[i].sampling.max_tokens = i % 2;
  }
  const auto expect_same = [&](const Run& run) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const auto& generated = decoded.at({i, 0}).scored;
      const auto& scored = run.at({i, 0}).prompt;
      ASSERT_EQ(scored.size() + 1, requests[i].prompt.size());
      const std::size_t start = scored.size() - generated.size();
      for (std::size_t at = 0; at < generated.size(); ++at) {
        const PromptLogprob& again = scored[start + at];
        SCOPED_TRACE("prompt " + std::to_string(i * 5) + " token " + std::to_string(at));
        ASSERT_EQ(std::bit_cast<std::uint32_t>(again.logprob),
                  std::bit_cast<std::uint32_t>(generated[at].logprob));
        ASSERT_EQ(again.best.size(), static_cast<std::size_t>(kBest));
        for (std::size_t best = 0; best < again.best.size(); ++best) {
          ASSERT_EQ(again.best[best].token, generated[at].best[best].token);
          ASSERT_EQ(std::bit_cast<std::uint32_t>(again.best[best].logprob),
                    std::bit_cast<std::uint32_t>(generated[at].best[best].logprob));
        }
      }
    }
  };
  // Behind the KV that decoding wrote, which is not used; then cold, in other chunks.
  const std::uint64_t cached = decoding.cached();
  expect_same(decoding.run(requests));
  EXPECT_EQ(decoding.cached(), cached);
  BedOptions options;
  options.chunk = options_.chunks.front() + 4;
  ExactBed cold = bed(options);
  expect_same(cold.run(requests));
}

std::size_t ExactnessSuite::move_blocks(ExactBed& from, SuiteModel& from_model, ExactBed& to,
                                        SuiteModel& to_model,
                                        const std::vector<TokenId>& tokens) const {
  const Hash128 root = make_cache_root({}, "", "", "");
  const auto match = from.index().match(root, tokens);
  const std::size_t count = match.full_blocks.size();
  if (count == 0) {
    if (&from == &to) from.index().evict(from.pool().num_blocks());
    return 0;
  }
  const model::KvView& kv = from_model.model().kv();
  const kvsnap::KvFormat format{kv.layout, kBlockSize, kv.block_bytes, 0, 1};
  auto arena = std::move(kvsnap::Arena::create(count * kv.block_bytes + 65536)).value();
  const auto view = std::move(kvsnap::ArenaView::map(arena.fd())).value();
  kvsnap::Manifest manifest;
  manifest.cache_root = root;
  manifest.kv_layout = kv.layout;
  manifest.block_size = kBlockSize;
  manifest.block_bytes = kv.block_bytes;
  manifest.token_ids.assign(tokens.begin(),
                            tokens.begin() + static_cast<std::ptrdiff_t>(count * kBlockSize));
  manifest.extents = arena.lease_for_writing({}, count, kv.block_bytes).value().extents;
  const auto at = [](const model::KvView& memory, BlockId block) {
    return memory.base + memory.block_bytes * static_cast<std::size_t>(block);
  };
  std::vector<const std::byte*> sources;
  for (const BlockId block : match.full_blocks)
    sources.push_back(at(kv, block));
  kvsnap::SnapshotWriter writer(view, from_model.pipeline(), format);
  manifest = writer.finish(writer.start(manifest, root, sources).value()).value();
  if (&from == &to) {
    from.index().evict(from.pool().num_blocks());
    EXPECT_EQ(from.index().num_blocks(), 0U);
  }
  std::vector<BlockId> blocks;
  std::vector<std::byte*> destinations;
  for (std::size_t i = 0; i < count; ++i) {
    blocks.push_back(to.pool().allocate());
    destinations.push_back(at(to_model.model().kv(), blocks.back()));
  }
  // What lay there must not be what is found.
  if (&from == &to) std::ranges::reverse(blocks), std::ranges::reverse(destinations);
  kvsnap::SnapshotReader reader(view, to_model.pipeline(), format);
  reader.finish(reader.start(manifest, root, destinations).value()).value();
  to.index().insert(root, manifest.token_ids, blocks);
  for (const BlockId block : blocks)
    to.pool().release(block);
  return count * kBlockSize;
}

void ExactnessSuite::restored_elsewhere() {
  const auto other = make_model(1);
  BedOptions options;
  options.look_ahead = options_.look_ahead;
  options.grammars = options_.grammars.get();
  for (std::size_t i = 0; i < options_.prompts.size(); ++i) {
    SCOPED_TRACE("prompt " + std::to_string(i));
    ExactBed source = bed();
    ExactBed target(other->model(), static_cast<std::size_t>(options_.num_blocks), options);
    GenerateRequest again = request(i);
    EXPECT_TRUE(matches(source.run({again}).begin()->second, reference_[i]));
    // Half of the answer, which was decoded, is restored too, and fed again as a prompt.
    const std::size_t cut = options_.max_tokens / 2;
    again.prompt.insert(again.prompt.end(), reference_[i].tokens.begin(),
                        reference_[i].tokens.begin() + static_cast<std::ptrdiff_t>(cut));
    again.sampling.max_tokens -= static_cast<std::uint32_t>(cut);
    const std::size_t moved = move_blocks(source, *model_, target, *other, again.prompt);
    EXPECT_GE(moved + kBlockSize, again.prompt.size());
    const Run run = target.run({again});
    EXPECT_GE(target.cached() + 1, moved);
    const Generated rest{{reference_[i].tokens.begin() + static_cast<std::ptrdiff_t>(cut),
                          reference_[i].tokens.end()},
                         {reference_[i].logits.begin() + static_cast<std::ptrdiff_t>(cut),
                          reference_[i].logits.end()},
                         {},
                         {}};
    EXPECT_TRUE(matches(run.begin()->second, rest));
  }
}

void ExactnessSuite::restored_after_eviction() {
  ExactBed used = bed();
  for (std::size_t i = 0; i < options_.prompts.size(); ++i) {
    SCOPED_TRACE("prompt " + std::to_string(i));
    used.run({request(i)});
    const std::uint64_t cached = used.cached();
    const std::size_t moved = move_blocks(used, *model_, used, *model_, options_.prompts[i]);
    const Run run = used.run({request(i)});
    EXPECT_GE(used.cached() - cached + 1, moved);
    EXPECT_TRUE(matches(run.begin()->second, reference_[i]));
  }
}

void ExactnessSuite::other_thread_counts() {
  const auto threaded = make_model(2);
  BedOptions options;
  options.look_ahead = options_.look_ahead;
  options.grammars = options_.grammars.get();
  ExactBed together(threaded->model(), static_cast<std::size_t>(options_.num_blocks), options);
  expect_reference(together.run(all_requests()));
  ExactBed by_itself(threaded->model(), static_cast<std::size_t>(options_.num_blocks), options);
  EXPECT_TRUE(matches(by_itself.run({request(0)}).begin()->second, reference_[0]));
}

}  // namespace thaw::scheduler

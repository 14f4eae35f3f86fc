#include "coalescer/openai/completion.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

/// The field that a reply's grammar comes from.
std::string form_field(const ApiCall& call) {
  if (call.output.kind != OutputKind::kText) return call.output.field;
  return call.tools.specs.empty() ? "" : "tools";
}

/// Grammars are compiled by the worker, which knows no fields.
ApiError with_field(ApiError error, const std::string& form_field) {
  const bool is_form = error.status == 400 && error.message.starts_with("grammar: ");
  if (is_form && error.param.empty()) error.param = form_field;
  return error;
}

}  // namespace

Completion::Completion(const ApiCall& call, std::size_t num_prompts, const CompletionLabel& label,
                       const TextCodec* codec)
    : served_(call.served),
      codec_(codec),
      has_fingerprint_(!label.system_fingerprint.empty()),
      kind_(call.kind),
      streamed_(call.stream),
      logprobs_(call.logprobs),
      show_(call.show),
      form_field_(form_field(call)),
      num_choices_(call.num_choices),
      num_returned_(call.num_returned > 0 ? call.num_returned : call.num_choices),
      min_tokens_(call.sampling.min_tokens),
      writer_(make_answer_writer(call, label)),
      choices_(num_prompts * call.num_choices),
      prompt_open_(num_prompts, true),
      num_open_(num_prompts),
      markers_(call, *codec) {
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    choice.stream = codec->new_stream(call.keep_special);
    choice.matcher = StopMatcher(call.stop);
    choice.parser = std::make_unique<ReplyParser>(reply_reading(call.reply, i, *codec));
  }
}

void Completion::set_system_fingerprint(const std::string& fingerprint) {
  if (has_fingerprint_ || fingerprint.empty()) return;
  has_fingerprint_ = true;
  writer_->set_system_fingerprint(fingerprint);
}

void Completion::set_prompts(const ApiCall& call, std::span<const PreparedPrompt> prompts) {
  for (const PreparedPrompt& prompt : prompts) {
    prompt_tokens_ += prompt.tokens.size();
    usage_.kept_tokens += prompt.kept_tokens;
  }
  const AnswerOptions defaults;
  if (show_.echo == defaults.echo && show_.token_ids == defaults.token_ids &&
      show_.prompt_logprobs == defaults.prompt_logprobs &&
      show_.usage_in_chunks == defaults.usage_in_chunks)
    return;
  for (std::size_t i = 0; i < prompts.size(); ++i)
    reports_.emplace_back(call, i, prompts[i], codec_);
}

std::size_t Completion::choice_index(std::size_t prompt, std::uint32_t choice) const {
  return prompt * num_choices_ + choice;
}

void Completion::on_event(std::size_t prompt, const GenerateEvent& event) {
  if (ended() || !prompt_open_[prompt]) return;
  std::visit(
      [&](const auto& concrete) {
        using Event = std::decay_t<decltype(concrete)>;
        if constexpr (std::is_same_v<Event, FailedEvent>) {
          fail(with_field(to_api_error(concrete.error), form_field_));
        } else {
          begin();
          if constexpr (std::is_same_v<Event, PromptLogprobsEvent>) {
            if (!reports_.empty()) reports_[prompt].add(concrete);
          }
          show_prompt(prompt);
          if constexpr (std::is_same_v<Event, TokenEvent>) on_token(prompt, concrete);
          if constexpr (std::is_same_v<Event, FinishedEvent>) on_finished(prompt, concrete);
          if constexpr (std::is_same_v<Event, CompletedEvent>) on_completed(prompt, concrete);
        }
      },
      event);
}

void Completion::begin() {
  if (started_) return;
  started_ = true;
  starts_ = streamed_;
  if (!streamed_ || (kind_ != ApiKind::kChat && kind_ != ApiKind::kResponses)) return;
  // Sent at admission: clients give up on a stream that shows no chunk for two minutes.
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    Delta& delta = new_delta(i);
    delta.role = true;
    if (i == 0 && !reports_.empty()) delta.prompt_fields = reports_.front().fields();
  }
}

void Completion::show_prompt(std::size_t prompt) {
  if (reports_.empty() || !reports_[prompt].take_ready()) return;
  const PromptReport& report = reports_[prompt];
  // Those of a chat went with the role.
  const bool has_fields = streamed_ && show_.token_ids && kind_ == ApiKind::kCompletions;
  if (!show_.echo && !has_fields) return;
  for (std::uint32_t i = 0; i < num_choices_; ++i) {
    ReplyPieces echo;
    if (!report.text().empty()) append_piece(echo, PieceKind::kContent, report.text());
    choices_[choice_index(prompt, i)].text_length += count_characters(report.text());
    emit(choice_index(prompt, i), std::move(echo), report.logprobs());
    if (has_fields) pending_.back().prompt_fields = report.fields();
  }
}

Delta& Completion::new_delta(std::size_t index) {
  Delta& delta = pending_.emplace_back();
  delta.choice = index;
  delta.token_ids = std::exchange(choices_[index].token_ids, {});
  if (!show_.usage_in_chunks || reports_.empty()) return delta;
  delta.usage.emplace();
  for (const PromptReport& report : reports_)
    delta.usage->prompt_tokens += report.num_tokens();
  for (const Choice& choice : choices_)
    delta.usage->completion_tokens += choice.num_tokens;
  delta.usage->reasoning_tokens = usage_.reasoning_tokens;
  return delta;
}

void Completion::fail(ApiError error) {
  if (!ended()) error_ = std::move(error);
}

LogprobEntry Completion::logprob_entry(const TokenEvent& event) const {
  const auto candidate = [&](TokenId token, float logprob) {
    return LogprobEntry::Candidate{codec_->decode({&token, 1}, /*keep_special=*/true), logprob,
                                   token};
  };
  LogprobEntry entry;
  entry.chosen = candidate(event.token, event.logprob);
  for (const TokenLogprob& best : event.top_logprobs)
    entry.best.push_back(candidate(best.token, best.logprob));
  return entry;
}

void Completion::on_token(std::size_t prompt, const TokenEvent& event) {
  if (event.choice >= num_choices_) return;
  const std::size_t index = choice_index(prompt, event.choice);
  Choice& choice = choices_[index];
  if (choice.end || event.index < choice.num_tokens) return;
  if (event.index > choice.num_tokens) {
    fail(to_api_error(make_error(Errc::kInternal, "tokens of the stream were lost: index " +
                                                      std::to_string(event.index) + " came after " +
                                                      std::to_string(choice.num_tokens))));
    return;
  }
  const bool may_stop = ++choice.num_tokens > min_tokens_;
  choice.sum_logprobs += static_cast<double>(event.logprob);
  if (show_.token_ids) choice.token_ids.push_back(event.token);
  std::vector<LogprobEntry> logprobs;
  if (logprobs_) {
    logprobs.push_back(logprob_entry(event));
    logprobs.back().text_offset = choice.text_length;
    logprobs.back().given_offset = choice.given_length;
  }
  std::string text = choice.stream->push(event.token);
  text += markers_.text_of(event.token);
  choice.text_length += count_characters(text);
  // Text of the first min_tokens tokens cannot stop the choice and is not held back.
  if (may_stop) text = choice.matcher.push(text);
  if (const auto& stop = choice.matcher.matched(); show_.stop_in_text && stop) text += *stop;
  const bool was_thinking = choice.parser->is_thinking();
  ReplyPieces pieces = choice.parser->push(text);
  // With the markers around it.
  if (was_thinking || choice.parser->is_thinking()) ++usage_.reasoning_tokens;
  if (!pieces.empty() || !logprobs.empty() || show_.token_ids)
    emit(index, std::move(pieces), std::move(logprobs));
  if (choice.matcher.matched())
    end_choice(index, ChoiceEnd{"stop", std::nullopt, choice.matcher.matched()});
}

void Completion::on_finished(std::size_t prompt, const FinishedEvent& event) {
  if (event.choice >= num_choices_) return;
  const std::size_t index = choice_index(prompt, event.choice);
  Choice& choice = choices_[index];
  if (choice.end) return;
  if (event.stop_token) ++usage_.completion_tokens;
  if (event.stop_token && show_.token_ids) choice.token_ids.push_back(*event.stop_token);
  std::string text;
  if (event.stop_token && show_.stop_in_text) text = choice.stream->push(*event.stop_token);
  text += choice.stream->finish();
  text = choice.matcher.push(text);
  text += choice.matcher.finish();
  if (const auto& stop = choice.matcher.matched(); show_.stop_in_text && stop) text += *stop;
  if (ReplyPieces pieces = choice.parser->push(text); !pieces.empty())
    emit(index, std::move(pieces), {});
  ChoiceEnd end;
  end.reason = event.reason == FinishReason::kStop ? "stop" : "length";
  end.stop_token = event.stop_token;
  if (choice.matcher.matched()) end = ChoiceEnd{"stop", std::nullopt, choice.matcher.matched()};
  end_choice(index, std::move(end));
}

void Completion::on_completed(std::size_t prompt, const CompletedEvent& event) {
  usage_.prompt_tokens += event.usage.prompt_tokens;
  usage_.cached_tokens += event.usage.cached_tokens;
  prompt_open_[prompt] = false;
  --num_open_;
  for (std::uint32_t i = 0; i < num_choices_; ++i) {
    const std::size_t index = choice_index(prompt, i);
    // Cancelled below us without a word on this choice: what there is was cut off.
    if (!choices_[index].end) end_choice(index, ChoiceEnd{"length", std::nullopt, std::nullopt});
  }
}

void Completion::emit(std::size_t index, ReplyPieces pieces, std::vector<LogprobEntry> logprobs) {
  Choice& choice = choices_[index];
  if (!show_.reasoning) {
    const auto hidden = std::erase_if(
        pieces, [](const ReplyPiece& piece) { return piece.kind == PieceKind::kReasoning; });
    if (hidden > 0 && pieces.empty() && logprobs.empty()) return;
  }
  for (const ReplyPiece& piece : pieces)
    choice.given_length += count_characters(piece.text);
  if (streamed_) {
    Delta& delta = new_delta(index);
    delta.pieces = std::move(pieces);
    delta.logprobs = std::move(logprobs);
    return;
  }
  append_pieces(choice.pieces, std::move(pieces));
  for (LogprobEntry& entry : logprobs)
    choice.logprobs.push_back(std::move(entry));
}

bool Completion::have_ended(std::span<const Choice> choices) {
  return std::ranges::all_of(choices, [](const Choice& choice) { return choice.end.has_value(); });
}

void Completion::end_choice(std::size_t index, ChoiceEnd end) {
  Choice& choice = choices_[index];
  if (ReplyPieces pieces = choice.parser->finish(); !pieces.empty())
    emit(index, std::move(pieces), {});
  // A call that was cut off is not to be run, whatever other calls there are.
  const bool has_calls = choice.parser->num_calls() > 0 && !choice.parser->ends_in_call();
  if (has_calls && std::string_view(end.reason) == "stop") end.reason = "tool_calls";
  usage_.completion_tokens += choice.num_tokens;
  if (streamed_) {
    Delta& delta = new_delta(index);
    delta.end = end;
  }
  choice.end = std::move(end);
  choice.stream.reset();
  choice.parser.reset();
  const std::size_t prompt = index / num_choices_;
  const auto siblings =
      std::span<const Choice>(choices_).subspan(prompt * num_choices_, num_choices_);
  if (!prompt_open_[prompt]) return;
  // The worker knows no stop strings: it goes on with a choice that one has ended.
  const auto by_string = [](const Choice& one) { return one.end->stop_string.has_value(); };
  if (!have_ended(siblings)) {
    if (by_string(choice))
      unwanted_.push_back({prompt, static_cast<std::uint32_t>(index % num_choices_)});
  } else if (std::ranges::any_of(siblings, by_string)) {
    unwanted_.push_back({prompt, std::nullopt});
  }
}

std::vector<Completion::Unwanted> Completion::take_unwanted() {
  return std::exchange(unwanted_, {});
}

std::string Completion::take_frames() {
  std::string out;
  if (std::exchange(starts_, false)) writer_->append_start(out, prompt_tokens_);
  for (const Delta& delta : pending_)
    writer_->append_delta(out, delta);
  pending_.clear();
  return out;
}

std::string Completion::last_frames(const std::string& explanation) {
  std::string out;
  if (error_) {
    writer_->append_error(out, *error_);
    return out;
  }
  writer_->append_end(out, usage_, explanation);
  writer_->append_done(out);
  return out;
}

std::string Completion::end_frames(const std::string& explanation) {
  std::string out;
  writer_->append_end(out, usage_, explanation);
  return out;
}

std::vector<std::size_t> Completion::shown_choices(std::size_t prompt) const {
  std::vector<std::size_t> shown;
  shown.reserve(num_choices_);
  for (std::uint32_t i = 0; i < num_choices_; ++i)
    shown.push_back(choice_index(prompt, i));
  if (num_returned_ == num_choices_) return shown;
  const auto mean = [&](std::size_t index) {
    const Choice& choice = choices_[index];
    return choice.sum_logprobs / std::max<double>(1, choice.num_tokens);
  };
  std::ranges::sort(shown, [&](std::size_t a, std::size_t b) {
    return std::pair(-mean(a), a) < std::pair(-mean(b), b);
  });
  shown.resize(num_returned_);
  return shown;
}

std::string Completion::body(const std::string& explanation) {
  std::vector<WholeChoice> shown;
  for (std::size_t prompt = 0; prompt < prompt_open_.size(); ++prompt) {
    const std::string fields = reports_.empty() ? "" : reports_[prompt].fields();
    for (const std::size_t index : shown_choices(prompt)) {
      Choice& choice = choices_[index];
      WholeChoice& whole = shown.emplace_back();
      whole.pieces = std::move(choice.pieces);
      whole.logprobs = std::move(choice.logprobs);
      whole.end = choice.end.value_or(ChoiceEnd{});
      whole.token_ids = std::move(choice.token_ids);
      whole.prompt_fields = fields;
    }
  }
  return writer_->body(shown, usage_, explanation);
}

}  // namespace thaw::coalescer

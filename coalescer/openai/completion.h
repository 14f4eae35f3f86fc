#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "coalescer/openai/answer_writer.h"
#include "coalescer/openai/call.h"
#include "coalescer/openai/prompt_report.h"
#include "coalescer/openai/reply_parser.h"
#include "coalescer/openai/stop_matcher.h"
#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

/// One call while it runs: takes the events of its requests, makes text of the tokens, looks for
/// stop strings, and renders what the client reads, as one body or as a stream. Choice numbers run
/// over all prompts: prompt * n + choice. Streamed text is rendered when it is taken, so that a
/// client that reads slowly costs little more than its tokens. Not thread-safe.
class Completion {
 public:
  /// `codec` must outlive this.
  Completion(const ApiCall& call, std::size_t num_prompts, const CompletionLabel& label,
             const TextCodec* codec);

  /// The model that was asked for; null where the call was made without a table.
  const ServedModelPtr& served() const { return served_; }
  /// For a model that was not loaded yet when it was asked for; the first name stays. Call before
  /// anything is rendered.
  void set_system_fingerprint(const std::string& fingerprint);

  /// The prompts, where the answer says something of them. Call before the first event.
  void set_prompts(const ApiCall& call, std::span<const PreparedPrompt> prompts);

  /// An event of the request made from prompt `prompt`.
  void on_event(std::size_t prompt, const GenerateEvent& event);

  /// Ends the call from our side, such as at a shutdown.
  void fail(ApiError error);

  /// At least one request was accepted: a stream may begin.
  bool started() const { return started_; }
  /// Nothing more will come: all requests completed, or error() is set.
  bool ended() const { return error_.has_value() || num_open_ == 0; }
  const std::optional<ApiError>& error() const { return error_; }
  /// Every choice has its end: the replies are whole, though requests may not be completed yet.
  bool choices_ended() const { return have_ended(choices_); }

  /// What nobody wants more of, though its worker does not know: a choice that a stop string ended,
  /// or, where all choices of the prompt have ended, its request.
  struct Unwanted {
    std::size_t prompt = 0;
    std::optional<std::uint32_t> choice;
    bool operator==(const Unwanted&) const = default;
  };
  /// Each is given once.
  std::vector<Unwanted> take_unwanted();

  /// True while take_frames() has something to give.
  bool has_frames() const { return starts_ || !pending_.empty(); }
  /// SSE frames of what came since the last call. REQUIRES: call.stream.
  std::string take_frames();
  /// The end of a stream: usage, explanation (JSON text, empty for none), [DONE]. On an error the
  /// error frame instead.
  std::string last_frames(const std::string& explanation);

  /// The same without an error and without [DONE]: of one of several answers in a stream.
  std::string end_frames(const std::string& explanation);

  /// The body of an unstreamed answer; once. REQUIRES: ended() without error().
  std::string body(const std::string& explanation);

  const CompletionUsage& usage() const { return usage_; }
  /// The one that the call's kind has.
  AnswerWriter& writer() { return *writer_; }
  void set_session(SessionUsage session) { usage_.session = std::move(session); }

 private:
  struct Choice {
    std::unique_ptr<TextStream> stream;
    StopMatcher matcher{{}};
    std::unique_ptr<ReplyParser> parser;
    ReplyPieces pieces;  // unstreamed only
    std::vector<LogprobEntry> logprobs;  // unstreamed only
    std::vector<TokenId> token_ids;  // unstreamed: all; else those that no delta has yet
    double sum_logprobs = 0;
    std::uint32_t num_tokens = 0;
    std::size_t text_length = 0;  // characters of all text, for text_offset
    std::size_t given_length = 0;  // characters given out, for given_offset
    std::optional<ChoiceEnd> end;
  };

  static bool have_ended(std::span<const Choice> choices);
  void begin();
  /// Puts the prompt before its replies, once it is known.
  void show_prompt(std::size_t prompt);
  void on_token(std::size_t prompt, const TokenEvent& event);
  void on_finished(std::size_t prompt, const FinishedEvent& event);
  void on_completed(std::size_t prompt, const CompletedEvent& event);
  /// Gives pieces to the client's side: into the body or into the queue of deltas.
  void emit(std::size_t index, ReplyPieces pieces, std::vector<LogprobEntry> logprobs);
  void end_choice(std::size_t index, ChoiceEnd end);
  /// A delta of the choice with the tokens that wait for one. REQUIRES: streamed.
  Delta& new_delta(std::size_t index);
  /// Of a prompt, those that are shown, the best first where there are more of them.
  std::vector<std::size_t> shown_choices(std::size_t prompt) const;
  std::size_t choice_index(std::size_t prompt, std::uint32_t choice) const;
  LogprobEntry logprob_entry(const TokenEvent& event) const;

  ServedModelPtr served_;  // keeps the codec of a model that is unregistered meanwhile
  const TextCodec* codec_;
  bool has_fingerprint_;
  ApiKind kind_;
  bool streamed_;
  bool logprobs_;
  AnswerOptions show_;
  std::string form_field_;  // that errors of the reply's grammar name
  std::uint32_t num_choices_;
  std::uint32_t num_returned_;  // of these
  std::uint32_t min_tokens_;
  std::unique_ptr<AnswerWriter> writer_;
  std::vector<Choice> choices_;
  std::vector<PromptReport> reports_;  // by prompt; empty where nothing is said of them
  std::vector<bool> prompt_open_;
  std::size_t num_open_;
  HiddenMarkers markers_;
  std::vector<Unwanted> unwanted_;
  std::vector<Delta> pending_;
  std::uint64_t prompt_tokens_ = 0;
  bool started_ = false;
  bool starts_ = false;  // the stream's first frames are not written yet
  std::optional<ApiError> error_;
  CompletionUsage usage_;
};

}  // namespace thaw::coalescer

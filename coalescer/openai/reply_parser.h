#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/openai/reasoning.h"
#include "coalescer/openai/reply_piece.h"
#include "coalescer/openai/tool_call_reader.h"
#include "coalescer/openai/tool_form.h"
#include "coalescer/openai/tools.h"

namespace thaw::coalescer {

/// How a reply is to be read.
struct ReplyReading {
  ChatForm form;
  ThinkingStart thinking = ThinkingStart::kNone;
  /// Null or empty: nothing is a call.
  std::shared_ptr<const std::vector<ToolSpec>> tools;
  /// A grammar holds the model to the form: arguments are given out as they come. Otherwise a call
  /// is given out once it is whole, so that what only began like one is content.
  bool constrained = false;
  std::string id_seed;  ///< ids of calls follow from it
};

/// Parts the growing text of a reply into thinking, content and calls. What it gives does not
/// depend on how the text was cut, and no text is lost: a call that turns out to be none is
/// content. Whitespace next to calls and around the thinking belongs to neither. Not thread-safe.
class ReplyParser final : private CallSink {
 public:
  explicit ReplyParser(ReplyReading reading);
  ReplyParser(const ReplyParser&) = delete;
  ReplyParser& operator=(const ReplyParser&) = delete;

  /// `text` is valid UTF-8, cut between characters, and so are the pieces.
  ReplyPieces push(std::string_view text);
  /// What was held back, at the end of the reply. A call that the reply ends in has no kCallEnd.
  ReplyPieces finish();
  /// Calls that were begun.
  std::uint32_t num_calls() const { return num_given_; }
  /// After finish(): the reply ended inside of a call that was given, so that its arguments may be
  /// cut off.
  bool ends_in_call() const { return ends_in_call_; }
  /// What comes next goes on with the thinking, or is its end.
  bool is_thinking() const { return at_ == At::kThinking; }

 private:
  enum class At : std::uint8_t { kBeforeThinking, kThinking, kAfterThinking, kContent, kCall };

  bool begin_call(std::string_view name) override;
  void add_arguments(std::string_view json) override;
  void end_call() override;

  void byte(char c);
  void before_thinking(char c);
  void thinking(char c);
  void add_thought(char c);
  void settle_content();
  void begin_reader(std::string_view trigger);
  void add_content(char c);
  void in_call(char c);
  void give_run();
  void end_open_call();
  void drop_run();
  bool run_is_valid() const;
  std::string id_of(std::uint32_t call) const;

  ReplyReading reading_;
  bool reads_calls_;
  At at_ = At::kContent;
  ReplyPieces out_;
  std::string held_;  // may become a marker
  std::string space_;  // whitespace that content may go on behind
  std::string blank_;  // line feeds inside of the thinking, or at its end
  bool thought_ = false;  // some thinking was given out
  bool at_start_ = true;  // a bare call may begin
  bool after_call_ = false;  // no content since the last call

  // One run of a reader.
  std::unique_ptr<CallReader> reader_;
  std::string raw_;  // its text that is not in given pieces
  std::size_t trigger_length_ = 0;  // of raw_, which begins with it
  ReplyPieces run_;  // pieces that are not given yet
  std::uint32_t run_calls_ = 0;  // begun by the run
  bool run_given_ = false;
  bool run_open_ = false;  // a given call is not ended
  bool ends_in_call_ = false;
  std::uint32_t num_calls_ = 0;
  std::uint32_t num_given_ = 0;
};

}  // namespace thaw::coalescer

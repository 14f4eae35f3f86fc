#include "coalescer/openai/reply_parser.h"

#include <algorithm>
#include <span>
#include <utility>

#include <nlohmann/json.hpp>

#include "coalescer/openai/tool_call_json.h"
#include "engine/base/hash.h"

namespace thaw::coalescer {
namespace {

constexpr std::string_view kPythonTag = "<|python_tag|>";
constexpr std::size_t kIdLength = 24;
constexpr std::size_t kMistralIdLength = 9;  // its templates take no other
/// Longer text of what turned out to be no call is not searched for another one.
constexpr std::size_t kMaxReadAgain = 64;

}  // namespace

ReplyParser::ReplyParser(ReplyReading reading)
    : reading_(std::move(reading)),
      reads_calls_(reading_.tools != nullptr && !reading_.tools->empty()) {
  if (reading_.thinking == ThinkingStart::kOpen) at_ = At::kThinking;
  if (reading_.thinking == ThinkingStart::kMayBegin) at_ = At::kBeforeThinking;
}

ReplyPieces ReplyParser::push(std::string_view text) {
  if (at_ == At::kContent && !reads_calls_) {
    ReplyPieces pieces;
    if (!text.empty()) append_piece(pieces, PieceKind::kContent, text);
    return pieces;
  }
  for (const char c : text)
    byte(c);
  return std::exchange(out_, {});
}

void ReplyParser::byte(char c) {
  switch (at_) {
    case At::kBeforeThinking:
      return before_thinking(c);
    case At::kThinking:
      return thinking(c);
    case At::kAfterThinking:
      if (c == '\n' || c == '\r') return;
      at_ = At::kContent;
      return byte(c);
    case At::kContent:
      if (!reads_calls_) return append_piece(out_, PieceKind::kContent, {&c, 1});
      held_ += c;
      return settle_content();
    case At::kCall:
      return in_call(c);
  }
}

void ReplyParser::before_thinking(char c) {
  held_ += c;
  const std::size_t first = held_.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return;
  const std::string_view seen = std::string_view(held_).substr(first);
  if (seen == reading_.form.think_begin) {
    held_.clear();
    at_ = At::kThinking;
  } else if (!std::string_view(reading_.form.think_begin).starts_with(seen)) {
    at_ = At::kContent;
    for (const char held : std::exchange(held_, {}))
      byte(held);
  }
}

void ReplyParser::thinking(char c) {
  held_ += c;
  const std::string_view end = reading_.form.think_end;
  while (!held_.empty()) {
    if (held_ == end) {
      held_.clear();
      blank_.clear();
      at_ = At::kAfterThinking;
      return;
    }
    if (end.starts_with(held_)) return;
    add_thought(held_.front());
    held_.erase(0, 1);
  }
}

void ReplyParser::add_thought(char c) {
  if (c == '\n') {
    if (thought_) blank_ += c;
    return;
  }
  thought_ = true;
  append_piece(out_, PieceKind::kReasoning, std::exchange(blank_, {}) + c);
}

/// Gives out what of `held_` begins no marker.
void ReplyParser::settle_content() {
  const auto& triggers = call_triggers(reading_.form.tools);
  const char bare = bare_call_begin(reading_.form.tools);
  while (!held_.empty()) {
    if (bare != '\0' && at_start_) {
      if (held_.front() == bare) {
        const std::string rest = std::exchange(held_, {});
        begin_reader("");
        for (const char c : rest)
          byte(c);
        return;
      }
      if (held_ == kPythonTag) {
        held_.clear();
        return;
      }
      if (kPythonTag.starts_with(held_)) return;
      // Stands between calls.
      if (after_call_ && held_.front() == ';') {
        space_ += ';';
        held_.erase(0, 1);
        continue;
      }
    }
    for (const std::string& trigger : triggers) {
      if (held_ == trigger) {
        held_.clear();
        return begin_reader(trigger);
      }
    }
    if (std::any_of(triggers.begin(), triggers.end(),
                    [&](const std::string& trigger) { return trigger.starts_with(held_); }))
      return;
    const char first = held_.front();
    held_.erase(0, 1);
    add_content(first);
  }
}

void ReplyParser::add_content(char c) {
  if (is_json_space(c)) {
    space_ += c;
    return;
  }
  at_start_ = false;
  after_call_ = false;
  append_piece(out_, PieceKind::kContent, std::exchange(space_, {}) + c);
}

void ReplyParser::begin_reader(std::string_view trigger) {
  at_ = At::kCall;
  raw_ = trigger;
  trigger_length_ = trigger.size();
  run_.clear();
  run_calls_ = 0;
  run_given_ = false;
  run_open_ = false;
  reader_ = make_call_reader(reading_.form.tools, trigger, reading_.tools.get(), this);
}

void ReplyParser::in_call(char c) {
  const ReadState state = reader_->push(c);
  if (state == ReadState::kWrong) {
    end_open_call();
    drop_run();
    return byte(c);
  }
  raw_ += c;
  const bool done = state == ReadState::kDone;
  if (reading_.constrained) {
    if (!run_.empty()) give_run();
  } else if (done) {
    if (!run_is_valid()) return drop_run();
    give_run();
  }
  if (!done) return;
  reader_.reset();
  raw_.clear();
  at_ = At::kContent;
  at_start_ = true;
  after_call_ = true;
}

/// The pieces are final.
void ReplyParser::give_run() {
  space_.clear();
  raw_.clear();
  append_pieces(out_, std::exchange(run_, {}));
  num_given_ += std::exchange(run_calls_, 0);
  run_given_ = true;
}

/// Content follows a call that was given and is not ended.
void ReplyParser::end_open_call() {
  if (!run_open_ || run_calls_ > 0) return;
  ReplyPiece& piece = out_.emplace_back();
  piece.kind = PieceKind::kCallEnd;
  piece.call = num_given_ - 1;
}

/// The text is no call: what was not given is content.
void ReplyParser::drop_run() {
  reader_.reset();
  run_.clear();
  num_calls_ -= std::exchange(run_calls_, 0);
  run_open_ = false;
  at_ = At::kContent;
  const std::string raw = std::exchange(raw_, {});
  if (raw.empty()) return;
  // The next call may have begun in what followed the trigger.
  std::size_t settled = raw.size();
  if (!run_given_ && raw.size() <= trigger_length_ + kMaxReadAgain)
    settled = std::max<std::size_t>(trigger_length_, 1);
  at_start_ = false;
  after_call_ = false;
  append_piece(out_, PieceKind::kContent, std::exchange(space_, {}) + raw.substr(0, settled));
  for (const char c : raw.substr(settled))
    byte(c);
}

bool ReplyParser::run_is_valid() const {
  std::string arguments;
  for (const ReplyPiece& piece : run_) {
    if (piece.kind == PieceKind::kArguments) arguments += piece.text;
    if (piece.kind != PieceKind::kCallEnd) continue;
    if (!nlohmann::json::accept(arguments)) return false;
    arguments.clear();
  }
  return !run_.empty();
}

bool ReplyParser::begin_call(std::string_view name) {
  // A bare object or list is a call only where it names one of the tools; a tag says what it is.
  const bool bare = bare_call_begin(reading_.form.tools) != '\0';
  if (name.empty() || (bare && find_tool(*reading_.tools, name) == nullptr)) return false;
  ReplyPiece& piece = run_.emplace_back();
  piece.kind = PieceKind::kCallStart;
  piece.text = name;
  piece.call = num_calls_++;
  piece.id = id_of(piece.call);
  ++run_calls_;
  run_open_ = reading_.constrained;
  return true;
}

void ReplyParser::add_arguments(std::string_view json) {
  append_piece(run_, PieceKind::kArguments, json, num_calls_ - 1);
}

void ReplyParser::end_call() {
  ReplyPiece& piece = run_.emplace_back();
  piece.kind = PieceKind::kCallEnd;
  piece.call = num_calls_ - 1;
  run_open_ = false;
}

std::string ReplyParser::id_of(std::uint32_t call) const {
  const std::string seed = reading_.id_seed + "/" + std::to_string(call);
  const std::string hex = hash_bytes(std::as_bytes(std::span<const char>(seed))).to_hex();
  if (reading_.form.tools == ToolForm::kMistral) return hex.substr(0, kMistralIdLength);
  return "call_" + hex.substr(0, kIdLength);
}

ReplyPieces ReplyParser::finish() {
  while (at_ == At::kCall) {
    if (!reading_.constrained && reader_->may_end() && run_is_valid()) give_run();
    if (run_given_) raw_.clear();  // the rest is the form's
    const bool given = run_given_;
    ends_in_call_ = run_open_;
    drop_run();
    if (given) after_call_ = true;
  }
  const std::string held = std::exchange(held_, {});
  if (at_ == At::kThinking) {
    const std::string rest = std::exchange(blank_, {}) + held;
    if (!rest.empty()) append_piece(out_, PieceKind::kReasoning, rest);
  } else if (!held.empty()) {
    append_piece(out_, PieceKind::kContent, std::exchange(space_, {}) + held);
    after_call_ = false;
  }
  if (!after_call_ && !space_.empty()) append_piece(out_, PieceKind::kContent, space_);
  space_.clear();
  return std::exchange(out_, {});
}

}  // namespace thaw::coalescer

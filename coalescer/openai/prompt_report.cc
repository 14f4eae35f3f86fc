#include "coalescer/openai/prompt_report.h"

#include <algorithm>
#include <utility>

#include "coalescer/openai/chunk_writer.h"
#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

/// The last message, where the reply goes on in its role.
std::string open_message(const ChatPrompt& chat) {
  if (chat.messages.empty()) return "";
  const auto& message = chat.messages.back();
  if (message.value("role", "") != "assistant" || !message.contains("content")) return "";
  const auto& content = message["content"];
  return content.is_string() ? content.get<std::string>() : "";
}

}  // namespace

PromptReport::PromptReport(const ApiCall& call, std::size_t index, const PreparedPrompt& prompt,
                           const TextCodec* codec)
    : codec_(codec),
      show_(call.show),
      keep_special_(call.keep_special),
      num_tokens_(prompt.tokens.size()),
      num_best_(call.sampling.top_logprobs) {
  const bool is_chat = call.kind != ApiKind::kCompletions;
  echoes_scores_ = show_.echo && call.logprobs && !is_chat;
  is_scored_ = echoes_scores_ || show_.prompt_logprobs >= 0;
  if (is_scored_ || show_.token_ids) tokens_ = prompt.tokens;
  if (!show_.echo) return;
  const ApiPrompt& given = call.prompts[index];
  if (const auto* chat = std::get_if<ChatPrompt>(&given)) {
    text_ = open_message(*chat);
  } else if (const auto* text = std::get_if<std::string>(&given);
             text != nullptr && !call.truncate_prompt) {
    text_ = *text;
  } else {
    text_ = codec->decode(prompt.tokens, keep_special_);
  }
}

void PromptReport::add(const PromptLogprobsEvent& event) {
  scores_.insert(scores_.end(), event.tokens.begin(), event.tokens.end());
}

bool PromptReport::take_ready() {
  if (is_scored_ && scores_.size() + 1 < num_tokens_) return false;
  if (std::exchange(was_ready_, true)) return false;
  if (echoes_scores_) make_entries();
  return true;
}

void PromptReport::make_entries() {
  const auto stream = codec_->new_stream(keep_special_);
  std::size_t offset = 0;
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    const auto candidate = [&](TokenId token, float logprob) {
      return LogprobEntry::Candidate{codec_->decode({&token, 1}, /*keep_special=*/true), logprob,
                                     token};
    };
    LogprobEntry& entry = entries_.emplace_back();
    entry.text_offset = offset;
    entry.is_known = i > 0;
    entry.chosen = candidate(tokens_[i], i > 0 ? scores_[i - 1].logprob : 0.0F);
    offset += count_characters(stream->push(tokens_[i]));
    if (i == 0) continue;
    const auto& best = scores_[i - 1].best;
    for (std::size_t j = 0; j < best.size() && j < static_cast<std::size_t>(num_best_); ++j)
      entry.best.push_back(candidate(best[j].token, best[j].logprob));
  }
}

std::string PromptReport::fields() const {
  std::string out;
  if (show_.prompt_logprobs >= 0) append_scores(out);
  if (show_.token_ids) {
    out += R"(,"prompt_token_ids":)";
    append_token_ids(out, tokens_);
  }
  return out;
}

// vLLM's form: an object for each token, from token ids to what is known of them.
void PromptReport::append_scores(std::string& out) const {
  const auto append = [&](TokenId token, float logprob, std::size_t rank) {
    out += '"';
    append_json_integer(out, token);
    out += R"(":{"logprob":)";
    append_json_float(out, logprob);
    out += R"(,"rank":)";
    append_json_integer(out, static_cast<std::int64_t>(rank));
    out += R"(,"decoded_token":)";
    append_json_string(out, codec_->decode({&token, 1}, /*keep_special=*/true));
    out += '}';
  };
  out += R"(,"prompt_logprobs":[null)";
  for (std::size_t i = 0; i < scores_.size(); ++i) {
    const TokenId own = tokens_[i + 1];
    out += ",{";
    append(own, scores_[i].logprob, scores_[i].rank);
    const auto& best = scores_[i].best;
    for (std::size_t j = 0; j < best.size() && std::cmp_less(j, show_.prompt_logprobs); ++j) {
      if (best[j].token == own) continue;
      out += ',';
      append(best[j].token, best[j].logprob, j + 1);
    }
    out += '}';
  }
  out += ']';
}

}  // namespace thaw::coalescer

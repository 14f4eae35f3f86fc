#include "coalescer/openai/text_codec.h"

#include <algorithm>
#include <utility>

#include "coalescer/core/unix_time.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/tool_prompt.h"

namespace thaw::coalescer {
namespace {

class ModelTextStream final : public TextStream {
 public:
  ModelTextStream(const text::Tokenizer& tokenizer, bool keep_special)
      : decoder_(tokenizer, keep_special) {}
  std::string push(TokenId token) override { return decoder_.push(token); }
  bool is_inside_character() const override { return decoder_.is_inside_character(); }
  std::string finish() override { return decoder_.finish(); }

 private:
  text::IncrementalDecoder decoder_;
};

class ModelTextCodec final : public TextCodec {
 public:
  ModelTextCodec(const text::Tokenizer* tokenizer, const text::ChatTemplate* chat_template)
      : tokenizer_(tokenizer), chat_template_(chat_template) {
    if (chat_template != nullptr) form_ = form_of_template(chat_template->source());
  }

  Result<std::vector<TokenId>> encode_chat(const ChatPrompt& prompt) const override {
    if (prompt.continue_final_message) return encode_open(prompt);
    const auto rendered = render(prompt);
    if (!rendered) return rendered.error();
    return encode(*rendered);
  }

  Result<std::vector<TokenId>> encode_after(const ChatPrompt& prompt,
                                            std::size_t index) const override {
    // A word that stands nowhere else takes the content's place, so that the end of the content can
    // be told from the same text elsewhere.
    ChatPrompt marked = prompt;
    // The reply's ids have its calls and its thinking, whatever the template makes of them.
    marked.messages[index].erase("tool_calls");
    marked.messages[index].erase("reasoning_content");
    marked.messages[index]["content"] = "";
    const std::string word = unused_word(marked);
    marked.messages[index]["content"] = word;
    auto rendered = render(marked);
    if (!rendered) return std::move(rendered).error();
    auto& spans = *rendered;
    const auto found = find_once(spans, word);
    if (found == spans.end()) {
      return make_error(Errc::kUnsupported,
                        "this model's chat template does not write message " +
                            std::to_string(index) +
                            " as it is, so that nothing can be appended behind it; leave `append` "
                            "out");
    }
    found->text.erase(0, found->text.find(word) + word.size());
    spans.erase(spans.begin(), found);
    return encode(spans);
  }

  std::vector<TokenId> encode_text(std::string_view text, bool add_special) const override {
    std::vector<TokenId> tokens = tokenizer_->encode(text, /*parse_special=*/true);
    if (add_special && tokenizer_->add_bos() && tokenizer_->bos() >= 0)
      tokens.insert(tokens.begin(), tokenizer_->bos());
    return tokens;
  }

  std::string decode(std::span<const TokenId> tokens, bool keep_special) const override {
    // One token is shown as it stands inside a text: with its space.
    const auto as = tokens.size() == 1 ? text::DecodeAs::kContinuation : text::DecodeAs::kWholeText;
    return tokenizer_->decode(tokens, keep_special, as);
  }

  std::unique_ptr<TextStream> new_stream(bool keep_special) const override {
    return std::make_unique<ModelTextStream>(*tokenizer_, keep_special);
  }

  int vocab_size() const override { return tokenizer_->vocab_size(); }
  const ChatForm& form() const override { return form_; }

 private:
  using Spans = std::vector<text::RenderedSpan>;

  /// The rendering up to the end of the last message's content.
  Result<std::vector<TokenId>> encode_open(const ChatPrompt& prompt) const {
    ChatPrompt marked = prompt;
    marked.continue_final_message = false;
    marked.add_generation_prompt = false;
    const std::string word = unused_word(marked);
    auto& content = marked.messages.back()["content"];
    content = content.get<std::string>() + word;
    auto rendered = render(marked);
    if (!rendered) return std::move(rendered).error();
    auto& spans = *rendered;
    const auto found = find_once(spans, word);
    if (found == spans.end()) {
      return make_error(Errc::kUnsupported,
                        "this model's chat template does not write the last message as it is, so "
                        "that it cannot be continued; leave `continue_final_message` out");
    }
    found->text.erase(found->text.find(word));
    spans.erase(found + 1, spans.end());
    return encode(spans);
  }

  /// One that stands nowhere in the prompt.
  static std::string unused_word(const ChatPrompt& prompt) {
    const std::string all =
        dump_json(prompt.messages) + dump_json(prompt.tools) + dump_json(prompt.template_kwargs);
    const std::string word = "contentends";
    std::size_t longest = 0;  // of the texts that begin like it, what follows of the letter
    for (std::size_t at = all.find(word); at != std::string::npos; at = all.find(word, at)) {
      at += word.size();
      longest = std::max(longest, std::min(all.find_first_not_of('x', at), all.size()) - at + 1);
    }
    return word + std::string(longest, 'x');
  }

  /// The span that holds `word`; the end where none does, or it is there twice.
  static Spans::iterator find_once(Spans& spans, const std::string& word) {
    const auto holds_word = [&](const text::RenderedSpan& span) {
      return span.text.find(word) != std::string::npos;
    };
    const auto found = std::find_if(spans.begin(), spans.end(), holds_word);
    if (found == spans.end() || std::find_if(found + 1, spans.end(), holds_word) != spans.end() ||
        found->text.find(word, found->text.find(word) + 1) != std::string::npos)
      return spans.end();
    return found;
  }

  Result<std::vector<text::RenderedSpan>> render(const ChatPrompt& prompt) const {
    if (chat_template_ == nullptr) {
      return make_error(Errc::kUnsupported,
                        "this model has no chat template; use /v1/completions with the whole "
                        "prompt as text");
    }
    if (!form_.template_has_tools && speaks_of_tools(prompt)) return write(tools_as_text(prompt));
    return write(prompt);
  }

  Result<std::vector<text::RenderedSpan>> write(const ChatPrompt& prompt) const {
    text::RenderOptions options;
    options.messages = prompt.messages;
    options.tools = prompt.tools;
    options.add_generation_prompt = prompt.add_generation_prompt;
    options.extra = prompt.template_kwargs;
    if (tokenizer_->bos() >= 0)
      options.bos_token = tokenizer_->token_bytes(tokenizer_->bos(), true);
    if (!tokenizer_->eos().empty())
      options.eos_token = tokenizer_->token_bytes(tokenizer_->eos().front(), true);
    options.now_unix_seconds = unix_seconds();
    return chat_template_->render(options);
  }

  std::vector<TokenId> encode(const std::vector<text::RenderedSpan>& rendered) const {
    std::vector<text::TextSpan> spans;
    spans.reserve(rendered.size());
    for (const text::RenderedSpan& span : rendered)
      spans.push_back({span.text, span.from_template});
    return tokenizer_->encode_spans(spans);
  }

  const text::Tokenizer* tokenizer_;
  const text::ChatTemplate* chat_template_;
  ChatForm form_;
};

}  // namespace

const ChatForm& TextCodec::form() const {
  static const ChatForm plain;
  return plain;
}

std::unique_ptr<TextCodec> make_model_codec(const text::Tokenizer* tokenizer,
                                            const text::ChatTemplate* chat_template) {
  return std::make_unique<ModelTextCodec>(tokenizer, chat_template);
}

}  // namespace thaw::coalescer

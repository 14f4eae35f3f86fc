#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/openai/tool_form.h"
#include "engine/base/result.h"
#include "engine/base/types.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace thaw::coalescer {

/// What a chat template renders.
struct ChatPrompt {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  nlohmann::ordered_json tools;  ///< null: none
  bool add_generation_prompt = true;
  /// The rendering ends with the last message's content, which the reply goes on with.
  bool continue_final_message = false;
  nlohmann::ordered_json template_kwargs = nlohmann::ordered_json::object();
};

/// Text of one growing token sequence, cut only between characters.
class TextStream {
 public:
  virtual ~TextStream() = default;
  /// Text that became complete with `token`.
  virtual std::string push(TokenId token) = 0;
  /// The last token ended inside of a character, whose bytes wait for the rest.
  virtual bool is_inside_character() const = 0;
  /// What is left at the end.
  virtual std::string finish() = 0;
};

/// Between the text of requests and token ids. Thread-safe; the server's only view of the model.
class TextCodec {
 public:
  virtual ~TextCodec() = default;

  /// Errors: what the template refuses (kInvalidArgument), no template (kUnsupported).
  virtual Result<std::vector<TokenId>> encode_chat(const ChatPrompt& prompt) const = 0;
  /// Only what the template writes behind the content of message `index`: its end, the later
  /// messages, the call for a reply. This goes on a line of ids whose last message is not ended.
  /// Errors: those of encode_chat; kUnsupported where the content cannot be found in the rendering.
  virtual Result<std::vector<TokenId>> encode_after(const ChatPrompt& prompt,
                                                    std::size_t index) const = 0;
  /// Special tokens in `text` count as such; `add_special` puts BOS in front where the model has
  /// one.
  virtual std::vector<TokenId> encode_text(std::string_view text, bool add_special) const = 0;
  virtual std::string decode(std::span<const TokenId> tokens, bool keep_special) const = 0;
  virtual std::unique_ptr<TextStream> new_stream(bool keep_special) const = 0;
  virtual int vocab_size() const = 0;
  /// How the model writes calls and thinking; by default as one that was made for neither.
  virtual const ChatForm& form() const;
};

/// The codec of a loaded model. `chat_template` may be null; both must outlive the codec.
/// `chat_template`'s strftime_now sees the system clock.
std::unique_ptr<TextCodec> make_model_codec(const text::Tokenizer* tokenizer,
                                            const text::ChatTemplate* chat_template);

}  // namespace thaw::coalescer

#include <string>
#include <utility>
#include <variant>

#include "coalescer/openai/call.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/parse_messages.h"
#include "coalescer/openai/shapes.h"

namespace thaw::coalescer {
namespace {

/// The model that the body names; the body fits `shape` then.
ApiResult<ServedModelPtr> model_of(JsonFields& fields, const Shape& shape,
                                   const ServedModels& models) {
  std::string name;
  fields.read("model", name);
  if (auto error = fields.error()) return std::move(*error);
  auto model = require_model(models, name);
  if (std::holds_alternative<ApiError>(model)) return model;
  ShapeLimits limits;
  limits.vocab_size = std::get<ServedModelPtr>(model)->codec->vocab_size();
  if (auto error = check_shape(shape, fields.raw(), limits)) return std::move(*error);
  return model;
}

}  // namespace

ApiResult<std::string> tokenize(std::string_view body, const ServedModels& models) {
  JsonBody json;
  if (auto error = json.parse(body)) return std::move(*error);
  JsonFields fields(json.root());
  const auto model = model_of(fields, kTokenizeShape, models);
  if (const auto* error = std::get_if<ApiError>(&model)) return *error;
  const TextCodec& codec = *std::get<ServedModelPtr>(model)->codec;
  bool with_texts = false;
  fields.read("return_token_strs", with_texts);
  std::vector<TokenId> tokens;
  if (fields.find("messages")) {
    ChatPrompt prompt;
    read_chat_prompt(fields, prompt);
    if (auto error = fields.error()) return std::move(*error);
    auto encoded = codec.encode_chat(prompt);
    if (!encoded) return to_api_error(encoded.error());
    tokens = std::move(*encoded);
  } else {
    std::string prompt;
    bool add_special = true;
    fields.read("prompt", prompt);
    fields.read("add_special_tokens", add_special);
    // Not read with a text, but as right or wrong as with messages.
    nlohmann::ordered_json unused;
    read_tools(fields, unused, /*may_be_known=*/true);
    if (auto error = fields.error()) return std::move(*error);
    tokens = codec.encode_text(prompt, add_special);
  }
  nlohmann::ordered_json reply;
  reply["count"] = tokens.size();
  reply["max_model_len"] = std::get<ServedModelPtr>(model)->max_model_len;
  reply["tokens"] = tokens;
  reply["token_strs"] = nullptr;
  if (with_texts) {
    reply["token_strs"] = nlohmann::ordered_json::array();
    for (const TokenId token : tokens)
      reply["token_strs"].push_back(codec.decode({&token, 1}, /*keep_special=*/true));
  }
  return dump_json(reply);
}

ApiResult<std::string> detokenize(std::string_view body, const ServedModels& models) {
  JsonBody json;
  if (auto error = json.parse(body)) return std::move(*error);
  JsonFields fields(json.root());
  const auto model = model_of(fields, kDetokenizeShape, models);
  if (const auto* error = std::get_if<ApiError>(&model)) return *error;
  const TextCodec& codec = *std::get<ServedModelPtr>(model)->codec;
  const auto list = fields.array("tokens");
  if (auto error = fields.error()) return std::move(*error);
  auto tokens = token_list(list.value_or(simdjson::dom::array()), "tokens", codec.vocab_size());
  if (auto* error = std::get_if<ApiError>(&tokens)) return std::move(*error);
  nlohmann::ordered_json reply;
  reply["prompt"] = codec.decode(std::get<std::vector<TokenId>>(tokens), /*keep_special=*/true);
  return dump_json(reply);
}

}  // namespace thaw::coalescer

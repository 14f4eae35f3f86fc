#include "coalescer/openai/responses_prompt.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "coalescer/core/token_trie.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

/// The messages of a prompt, and how many in front are never left out.
struct Conversation {
  ordered_json messages = ordered_json::array();
  std::size_t num_fixed = 0;
};

Conversation conversation_of(const ResponsesRequest& request, const ResponsesPast& past,
                             std::vector<ContentBreakpoint>& breakpoints) {
  Conversation all;
  if (request.instructions) {
    all.messages.push_back({{"role", "system"}, {"content", *request.instructions}});
    all.num_fixed = 1;
  }
  if (past.line != nullptr) {
    const std::vector<std::string>& messages = past.line->messages;
    for (std::size_t i = past.has_instructions ? 1 : 0; i < messages.size(); ++i)
      all.messages.push_back(ordered_json::parse(messages[i]));
  }
  append_messages(request.input, all.messages, breakpoints);
  return all;
}

/// A conversation cannot begin with what a tool gave.
bool may_begin_with(const ordered_json& message) {
  return message.value("role", "") != "tool";
}

/// The rendering of what is left where the oldest messages are left out until it fits.
ApiResult<std::vector<TokenId>> render_truncated(const ApiCall& call, const Conversation& all,
                                                 ChatPrompt& prompt, const TextCodec& codec,
                                                 std::uint32_t max_model_len) {
  const std::uint64_t reply = call.max_tokens.value_or(1);
  // Places where what is kept may begin.
  std::vector<std::size_t> begins;
  for (std::size_t i = all.num_fixed; i < all.messages.size(); ++i)
    if (begins.empty() || may_begin_with(all.messages[i])) begins.push_back(i);
  std::vector<TokenId> tokens;
  std::optional<Error> refused;
  const auto render_from = [&](std::size_t begin) {
    prompt.messages = ordered_json::array();
    for (std::size_t i = 0; i < all.messages.size(); ++i)
      if (i < all.num_fixed || i >= begin) prompt.messages.push_back(all.messages[i]);
    auto rendered = codec.encode_chat(prompt);
    if (!rendered) {
      refused = rendered.error();
      return false;
    }
    refused.reset();
    tokens = std::move(*rendered);
    return tokens.size() + reply <= max_model_len;
  };
  // The first that fits; the fewer messages, the fewer tokens. Where none does the last one's
  // length is what the error tells.
  if (!render_from(begins.front())) {
    std::size_t low = 1;
    std::size_t high = std::max<std::size_t>(begins.size() - 1, low);
    while (low < high) {
      const std::size_t middle = (low + high) / 2;
      if (render_from(begins[middle]))
        high = middle;
      else
        low = middle + 1;
    }
    render_from(begins[std::min(low, begins.size() - 1)]);
  }
  if (!refused) return tokens;
  ApiError error = to_api_error(*refused);
  error.param = "input";
  return error;
}

}  // namespace

std::optional<ApiError> resolve_references(ApiCall& call, const ResponsesPast& past) {
  const std::vector<ResponsesItem>& given = call.responses->input;
  const auto is_reference = [](const ResponsesItem& item) {
    return item.kind == ItemKind::kReference;
  };
  if (std::ranges::none_of(given, is_reference)) return std::nullopt;
  auto request = std::make_shared<ResponsesRequest>(*call.responses);
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (!is_reference(given[i])) continue;
    const std::string name = "input[" + std::to_string(i) + "]";
    const auto found = past.items.find(given[i].id);
    if (found == past.items.end()) {
      ApiError error =
          invalid_field(name + ".id",
                        "`" + name + ".id` is \"" + given[i].id.substr(0, 100) +
                            "\", which is no item of a stored response; it may have been dropped",
                        "item_not_found");
      error.status = 404;
      return error;
    }
    auto item = item_of_json(found->second, name);
    if (auto* error = std::get_if<ApiError>(&item)) return std::move(*error);
    request->input[i] = std::move(std::get<ResponsesItem>(item));
  }
  call.responses = std::move(request);
  return std::nullopt;
}

std::optional<std::vector<TokenId>> put_on_line(std::span<const TokenId> line,
                                                std::span<const TokenId> rendered,
                                                const TextCodec& codec) {
  // Token by token, so that both sides are read alike whatever stands before them.
  const auto text_of = [&](TokenId token) {
    return codec.decode({&token, 1}, /*keep_special=*/true);
  };
  std::size_t next = 0;
  while (next < line.size() && next < rendered.size() && line[next] == rendered[next])
    ++next;
  std::string wanted;
  for (const TokenId token : line.subspan(next))
    wanted += text_of(token);
  std::size_t seen = 0;
  while (seen < wanted.size() && next < rendered.size()) {
    const std::string text = text_of(rendered[next++]);
    if (wanted.compare(seen, text.size(), text) != 0) return std::nullopt;
    seen += text.size();
  }
  if (seen != wanted.size()) return std::nullopt;
  std::vector<TokenId> tokens(line.begin(), line.end());
  tokens.insert(tokens.end(), rendered.begin() + static_cast<std::ptrdiff_t>(next), rendered.end());
  return tokens;
}

namespace {

/// Sets the call's messages and breakpoints.
ApiResult<std::vector<TokenId>> tokens_of(ApiCall& call, const ResponsesPast& past,
                                          const TextCodec& codec, std::uint32_t max_model_len) {
  auto& prompt = std::get<ChatPrompt>(call.prompts.front());
  call.cache.breakpoints.clear();
  const Conversation all = conversation_of(*call.responses, past, call.cache.breakpoints);
  if (all.messages.size() == all.num_fixed) {
    return invalid_field("input",
                         "`input` is empty and so is the previous response's conversation; "
                         "there is nothing to reply to");
  }
  std::vector<TokenId> tokens;
  if (call.responses->truncates) {
    auto rendered = render_truncated(call, all, prompt, codec, max_model_len);
    if (auto* error = std::get_if<ApiError>(&rendered)) return std::move(*error);
    tokens = std::move(std::get<std::vector<TokenId>>(rendered));
    if (prompt.messages.size() < all.messages.size()) call.cache.breakpoints.clear();
  } else {
    prompt.messages = all.messages;
    auto rendered = codec.encode_chat(prompt);
    if (!rendered) {
      ApiError error = to_api_error(rendered.error());
      error.param = "input";
      return error;
    }
    tokens = std::move(*rendered);
  }
  if (past.line != nullptr) {
    if (auto joined = put_on_line(past.line->tokens, tokens, codec)) tokens = std::move(*joined);
  }
  return tokens;
}

}  // namespace

ApiResult<PreparedPrompt> prepare_responses(ApiCall& call, const ResponsesPast& past,
                                            const TextCodec& codec, std::uint32_t max_model_len) {
  auto tokens = tokens_of(call, past, codec, max_model_len);
  if (auto* error = std::get_if<ApiError>(&tokens)) return std::move(*error);
  const auto& prompt = std::get<ChatPrompt>(call.prompts.front());
  auto fitted = fit_prompt(call, std::move(std::get<std::vector<TokenId>>(tokens)), max_model_len);
  if (auto* error = std::get_if<ApiError>(&fitted)) return std::move(*error);
  auto& ready = std::get<PreparedPrompt>(fitted);
  ready.kept_tokens = kept_tokens(call.cache, &prompt, ready.tokens, codec);
  return std::move(ready);
}

ApiResult<std::string> count_input_tokens(ApiCall& call, const ResponsesPast& past,
                                          const TextCodec& codec, std::uint32_t max_model_len) {
  auto tokens = tokens_of(call, past, codec, max_model_len);
  if (auto* error = std::get_if<ApiError>(&tokens)) return std::move(*error);
  return R"({"object":"response.input_tokens","input_tokens":)" +
         std::to_string(std::get<std::vector<TokenId>>(tokens).size()) + "}";
}

}  // namespace thaw::coalescer

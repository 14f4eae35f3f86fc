#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/openai/cache_fields.h"
#include "coalescer/openai/json_fields.h"

namespace thaw::coalescer {

enum class ItemKind : std::uint8_t {
  kMessage,
  kReasoning,
  kCall,
  kCallOutput,
  kReference,  ///< to an item of a stored response
};

/// One item of the conversation as the Responses API has it.
struct ResponsesItem {
  ItemKind kind = ItemKind::kMessage;
  std::string id;  ///< as the client gave it; empty: none
  std::string role;  ///< of a message
  std::string
      text;  ///< of a message or of thinking; of a call its arguments; of an output all of it
  std::vector<std::size_t> breakpoints;  ///< bytes of a message's text that a cache breakpoint ends
  std::string call_id;
  std::string name;  ///< of a call
  nlohmann::ordered_json shown;  ///< as GET .../input_items shows it, without an id that it lacks
};

/// Most items of one request.
inline constexpr std::size_t kMaxItems = 16384;

/// Reads `input`: a string, which is a user's message, or a list of items. Errors set `fields`',
/// and name the item: `input[3].content[0].text`.
std::vector<ResponsesItem> read_input(JsonFields& fields);

/// An item that a stored response has, from its JSON.
ApiResult<ResponsesItem> item_of_json(std::string_view json, const std::string& name);

/// What the items are as messages of a chat, behind those in `messages`. Thinking, text and calls
/// that follow one another become one message of the assistant's, as the model wrote them.
/// Breakpoints are added to `breakpoints`.
void append_messages(const std::vector<ResponsesItem>& items, nlohmann::ordered_json& messages,
                     std::vector<ContentBreakpoint>& breakpoints);

/// Ids of a response's items: "msg_", "fc_", "fco_" or "rs_", the response's own number, `side` and
/// the item's place, so that an item's id names its response.
std::string item_id(ItemKind kind, std::string_view response_id, char side, std::size_t index);
/// The response that the item's id names; empty where it is none of ours.
std::string response_of_item(std::string_view item);

}  // namespace thaw::coalescer

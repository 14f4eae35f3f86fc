#include "coalescer/openai/responses_items.h"

#include <array>
#include <optional>
#include <utility>

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

constexpr std::string_view kResponsePrefix = "resp_";
constexpr std::size_t kResponseDigits = 32;

/// Text parts in one string, with the places of their ends that are marked.
struct PartsText {
  std::string text;
  std::vector<std::size_t> breakpoints;
};

/// The text of a part; parts of one kind or another hold it under one key or another.
std::optional<std::string> part_text(JsonFields& part) {
  std::string type;
  part.read("type", type);
  if (part.failed()) return std::nullopt;
  const std::string type_name = part.full_name("type");
  if (type.empty()) {
    part.fail(invalid_field(type_name, "`" + type_name +
                                           "` is missing; it must be a word such as \"input_text\" "
                                           "or \"output_text\""));
    return std::nullopt;
  }
  const bool is_refusal = type == "refusal";
  constexpr std::array kTexts = {"input_text", "output_text", "text", "reasoning_text",
                                 "summary_text"};
  bool is_text = is_refusal;
  for (const std::string_view known : kTexts)
    is_text = is_text || type == known;
  if (!is_text) {
    part.fail(unsupported_field(type_name, "`" + type_name + "` is \"" + type.substr(0, 40) +
                                               "\"; this model reads text parts only"));
    return std::nullopt;
  }
  const char* key = is_refusal ? "refusal" : "text";
  std::string text;
  part.read(key, text);
  if (!part.failed() && !part.find(key)) {
    const std::string name = part.full_name(key);
    part.fail(invalid_field(name, "`" + name + "` must be a string"));
  }
  return text;
}

/// `name` of `item`: a string, null or a list of text parts, which line feeds join as in chats.
PartsText read_parts(JsonFields& item, std::string_view name) {
  PartsText result;
  const auto value = item.failed() ? std::nullopt : item.find(name);
  if (!value) return result;
  std::string_view text;
  if (value->get(text) == simdjson::SUCCESS) {
    result.text = text;
    return result;
  }
  simdjson::dom::array parts;
  if (value->get(parts) != simdjson::SUCCESS) {
    item.fail(name, *value, "a string or a list of text parts");
    return result;
  }
  std::size_t index = 0;
  for (const element element : parts) {
    const std::string part_name = item.full_name(name) + "[" + std::to_string(index) + "]";
    simdjson::dom::object object;
    if (element.get(object) != simdjson::SUCCESS) {
      item.fail(invalid_field(part_name, "`" + part_name + "` is " + json_type_name(element) +
                                             "; it must be an object with `type` and `text`"));
      return result;
    }
    JsonFields part(object, part_name + ".");
    const auto one = part_text(part);
    if (one) {
      if (index++ > 0) result.text += '\n';
      result.text += *one;
      if (read_cache_breakpoint(part)) result.breakpoints.push_back(result.text.size());
    }
    if (part.failed()) {
      item.fail_with(part);
      return result;
    }
  }
  return result;
}

void require(JsonFields& item, const char* name, const std::string& value, const char* right) {
  if (item.failed() || !value.empty()) return;
  const std::string full = item.full_name(name);
  item.fail(invalid_field(full, "`" + full + "` is missing; it must be " + right));
}

/// Content as the list of parts that answers always have.
ordered_json shown_content(JsonFields& item, const std::string& role, const std::string& text) {
  const auto given = item.find("content");
  if (given && given->is_array()) return to_ordered_json(*given);
  ordered_json part;
  part["type"] = role == "assistant" ? "output_text" : "input_text";
  part["text"] = text;
  if (role == "assistant") part["annotations"] = ordered_json::array();
  return ordered_json::array({std::move(part)});
}

void read_message(JsonFields& fields, ResponsesItem& item) {
  item.kind = ItemKind::kMessage;
  fields.read("role", item.role);
  require(fields, "role", item.role, "\"user\", \"assistant\", \"system\" or \"developer\"");
  if (fields.failed()) return;
  constexpr std::array kRoles = {"user", "assistant", "system", "developer"};
  bool is_known = false;
  for (const std::string_view role : kRoles)
    is_known = is_known || item.role == role;
  if (!is_known) {
    const std::string name = fields.full_name("role");
    return fields.fail(
        invalid_field(name, "`" + name + "` is \"" + item.role.substr(0, 40) +
                                "\"; it must be \"user\", \"assistant\", \"system\" or "
                                "\"developer\""));
  }
  // null counts as empty, as in chats.
  if (item.role != "assistant" && fields.raw().at_key("content").error() != simdjson::SUCCESS) {
    const std::string name = fields.full_name("content");
    return fields.fail(invalid_field(name, "`" + name + "` is missing"));
  }
  PartsText parts = read_parts(fields, "content");
  if (fields.failed()) return;
  item.shown["type"] = "message";
  item.shown["status"] = "completed";
  item.shown["role"] = item.role;
  item.shown["content"] = shown_content(fields, item.role, parts.text);
  item.text = std::move(parts.text);
  item.breakpoints = std::move(parts.breakpoints);
}

void read_call(JsonFields& fields, ResponsesItem& item) {
  item.kind = ItemKind::kCall;
  fields.read("call_id", item.call_id);
  fields.read("name", item.name);
  fields.read("arguments", item.text);
  require(fields, "call_id", item.call_id, "the id of the call");
  require(fields, "name", item.name, "the name of a function");
  item.shown["type"] = "function_call";
  item.shown["status"] = "completed";
  item.shown["call_id"] = item.call_id;
  item.shown["name"] = item.name;
  item.shown["arguments"] = item.text;
}

void read_call_output(JsonFields& fields, ResponsesItem& item) {
  item.kind = ItemKind::kCallOutput;
  fields.read("call_id", item.call_id);
  require(fields, "call_id", item.call_id, "the `call_id` of the call that it answers");
  const auto output = fields.find("output");
  if (!fields.failed() && !output) {
    const std::string name = fields.full_name("output");
    fields.fail(invalid_field(name, "`" + name + "` is missing; it must be what the call gave"));
  }
  item.text = read_parts(fields, "output").text;
  if (fields.failed() || !output) return;
  item.shown["type"] = "function_call_output";
  item.shown["status"] = "completed";
  item.shown["call_id"] = item.call_id;
  item.shown["output"] = to_ordered_json(*output);
}

void read_reasoning(JsonFields& fields, ResponsesItem& item) {
  item.kind = ItemKind::kReasoning;
  item.text = read_parts(fields, "content").text;
  if (fields.failed()) return;
  item.shown["type"] = "reasoning";
  for (const char* name : {"summary", "content"}) {
    const auto given = fields.find(name);
    item.shown[name] = given ? to_ordered_json(*given) : ordered_json::array();
  }
}

/// Reads an item whose object `fields` has.
ResponsesItem read_item(JsonFields& fields) {
  ResponsesItem item;
  fields.read("id", item.id);
  if (!item.id.empty()) item.shown["id"] = item.id;
  std::string type;
  fields.read("type", type);
  if (fields.failed()) return item;
  // The short form of a message; a reference may lack its type as well.
  if (!fields.find("type"))
    type = fields.find("role") || item.id.empty() ? "message" : "item_reference";
  if (type == "message") {
    read_message(fields, item);
  } else if (type == "function_call") {
    read_call(fields, item);
  } else if (type == "function_call_output") {
    read_call_output(fields, item);
  } else if (type == "reasoning") {
    read_reasoning(fields, item);
  } else if (type == "item_reference") {
    item.kind = ItemKind::kReference;
    require(fields, "id", item.id, "the id of an item of a stored response");
  } else {
    const std::string name = fields.full_name("type");
    fields.fail(unsupported_field(
        name, "`" + name + "` is \"" + type.substr(0, 40) +
                  "\"; items may be \"message\", \"function_call\", \"function_call_output\", "
                  "\"reasoning\" or \"item_reference\""));
  }
  return item;
}

/// The assistant's message that more items may belong to.
class OpenMessage {
 public:
  explicit OpenMessage(ordered_json& messages) : messages_(messages) {}

  void close() { is_open_ = false; }
  void add_thinking(const std::string& text) {
    if (text.empty()) return;
    ordered_json& message = with_room(!has_text_ && !has_calls_ && !has_thinking_);
    message["reasoning_content"] = text;
    has_thinking_ = true;
  }
  void add_text(const std::string& text) {
    with_room(!has_text_)["content"] = text;
    has_text_ = true;
  }
  void add_call(const ResponsesItem& item) {
    ordered_json call;
    call["id"] = item.call_id;
    call["type"] = "function";
    call["function"] = {{"name", item.name}, {"arguments", open_arguments(item.text)}};
    with_room(true)["tool_calls"].push_back(std::move(call));
    has_calls_ = true;
  }

 private:
  /// The open message where it still takes what comes, else a new one.
  ordered_json& with_room(bool has_room) {
    if (!is_open_ || !has_room) {
      messages_.push_back({{"role", "assistant"}, {"content", ""}});
      is_open_ = true;
      has_text_ = has_calls_ = has_thinking_ = false;
    }
    return messages_.back();
  }

  ordered_json& messages_;
  bool is_open_ = false;
  bool has_text_ = false;
  bool has_calls_ = false;
  bool has_thinking_ = false;
};

}  // namespace

std::vector<ResponsesItem> read_input(JsonFields& fields) {
  std::vector<ResponsesItem> items;
  const auto value = fields.failed() ? std::nullopt : fields.find("input");
  if (!value) return items;
  std::string_view text;
  if (value->get(text) == simdjson::SUCCESS) {
    ResponsesItem& item = items.emplace_back();
    item.role = "user";
    item.text = text;
    item.shown = {{"type", "message"}, {"status", "completed"}, {"role", "user"}};
    item.shown["content"] = ordered_json::array({{{"type", "input_text"}, {"text", text}}});
    return items;
  }
  simdjson::dom::array list;
  if (value->get(list) != simdjson::SUCCESS) {
    fields.fail("input", *value, "a string or a list of items");
    return items;
  }
  for (const element element : list) {
    const std::string name = "input[" + std::to_string(items.size()) + "]";
    simdjson::dom::object object;
    if (items.size() >= kMaxItems) {
      fields.fail(invalid_field("input", "`input` has more than " + std::to_string(kMaxItems) +
                                             " items, the most that are accepted"));
      return items;
    }
    if (element.get(object) != simdjson::SUCCESS) {
      fields.fail(invalid_field(
          name, "`" + name + "` is " + json_type_name(element) + "; it must be an object"));
      return items;
    }
    JsonFields item(object, name + ".");
    items.push_back(read_item(item));
    fields.fail_with(item);
    if (fields.failed()) return items;
  }
  return items;
}

ApiResult<ResponsesItem> item_of_json(std::string_view json, const std::string& name) {
  JsonBody body;
  if (auto error = body.parse(json)) return std::move(*error);
  JsonFields fields(body.root(), name + ".");
  ResponsesItem item = read_item(fields);
  if (const auto& error = fields.error()) return *error;
  return item;
}

void append_messages(const std::vector<ResponsesItem>& items, ordered_json& messages,
                     std::vector<ContentBreakpoint>& breakpoints) {
  OpenMessage open(messages);
  for (const ResponsesItem& item : items) {
    switch (item.kind) {
      case ItemKind::kReasoning:
        open.add_thinking(item.text);
        break;
      case ItemKind::kCall:
        open.add_call(item);
        break;
      case ItemKind::kCallOutput:
        open.close();
        messages.push_back(
            {{"role", "tool"}, {"tool_call_id", item.call_id}, {"content", item.text}});
        break;
      case ItemKind::kMessage:
        if (item.role == "assistant") {
          open.add_text(item.text);
        } else {
          open.close();
          messages.push_back(
              {{"role", item.role == "developer" ? "system" : item.role}, {"content", item.text}});
        }
        for (const std::size_t bytes : item.breakpoints)
          breakpoints.push_back({messages.size() - 1, bytes});
        break;
      case ItemKind::kReference:
        break;  // was looked up before
    }
  }
}

std::string item_id(ItemKind kind, std::string_view response_id, char side, std::size_t index) {
  const char* prefix = "msg_";
  if (kind == ItemKind::kReasoning) prefix = "rs_";
  if (kind == ItemKind::kCall) prefix = "fc_";
  if (kind == ItemKind::kCallOutput) prefix = "fco_";
  if (response_id.starts_with(kResponsePrefix)) response_id.remove_prefix(kResponsePrefix.size());
  std::string id = prefix;
  id += response_id;
  id += side;
  return id + std::to_string(index);
}

std::string response_of_item(std::string_view item) {
  const std::size_t begin = item.find('_');
  if (begin == std::string_view::npos || item.size() < begin + 1 + kResponseDigits) return "";
  const std::string_view digits = item.substr(begin + 1, kResponseDigits);
  if (digits.find_first_not_of("0123456789abcdef") != std::string_view::npos) return "";
  return std::string(kResponsePrefix) + std::string(digits);
}

}  // namespace thaw::coalescer

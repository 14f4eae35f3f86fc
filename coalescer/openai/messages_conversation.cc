#include "coalescer/openai/messages_conversation.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

/// Of a block that is marked without a time.
constexpr std::chrono::seconds kBlockTtl{5 * 60};
constexpr std::size_t kMaxMarks = 16;

/// Collects the turns of one request.
class ConversationReader {
 public:
  ConversationReader(JsonFields& fields, ChatPrompt& prompt, CacheFields& cache)
      : fields_(fields), prompt_(prompt), cache_(cache) {}

  void read_system() {
    const auto system = fields_.find("system");
    if (!system || fields_.failed()) return;
    begin_turn("system");
    read_blocks(*system, "system");
  }

  void read_messages(simdjson::dom::array messages) {
    std::size_t index = 0;
    for (const element value : messages) {
      const std::string name = item_name("messages", index++);
      simdjson::dom::object object;
      if (value.get(object) != simdjson::SUCCESS) {
        return fail(name, "`" + name + "` is " + json_type_name(value) +
                              "; it must be an object with `role` and `content`");
      }
      JsonFields message(object, name + ".");
      std::string role;
      message.read("role", role);
      if (message.failed()) return fields_.fail_with(message);
      if (role != "user" && role != "assistant" && role != "system") {
        return fail(name + ".role", "`" + name + ".role` is \"" + role.substr(0, 40) +
                                        "\"; it must be \"user\", \"assistant\" or \"system\"");
      }
      const auto content = message.find("content");
      if (!content) {
        return fail(name + ".content",
                    "`" + name + ".content` is missing; it must be a string or a list of blocks");
      }
      begin_turn(role);
      read_blocks(*content, name + ".content");
      if (fields_.failed()) return;
    }
  }

  /// `cache_control` of tools, which templates write in front of the conversation, and of the whole
  /// request.
  void read_other_marks() {
    if (const auto tools = fields_.array("tools")) {
      std::size_t index = 0;
      for (const element tool : *tools) {
        const std::string name = item_name("tools", index++);
        simdjson::dom::object object;  // what is none is said where tools are read
        if (tool.get(object) == simdjson::SUCCESS && is_marked(object, name))
          marks_.insert(marks_.begin(), start());
      }
    }
    if (is_marked(fields_.raw(), "") && !prompt_.messages.empty()) mark_here(/*at_next=*/false);
  }

  void finish() {
    if (fields_.failed()) return;
    if (marks_.size() > kMaxMarks) {
      return fail("cache_control", "the request has " + std::to_string(marks_.size()) +
                                       " `cache_control` marks; at most " +
                                       std::to_string(kMaxMarks) + " are accepted");
    }
    for (const Mark& mark : marks_) {
      if (mark.at_next && mark.message + 1 < prompt_.messages.size())
        cache_.breakpoints.push_back({mark.message + 1, 0});
      else if (mark.message < prompt_.messages.size())
        cache_.breakpoints.push_back({mark.message, mark.bytes});
    }
    if (!marks_.empty()) cache_.ttl = std::max(cache_.ttl, ttl_);
    if (prompt_.messages.empty() || prompt_.messages.back()["role"] != "assistant") return;
    if (prompt_.messages.back().contains("tool_calls")) {
      return fail("messages",
                  "the last message is an assistant's with `tool_use`; the results of its calls "
                  "must follow as `tool_result` blocks of a user's message");
    }
    prompt_.continue_final_message = true;
    prompt_.add_generation_prompt = false;
  }

 private:
  /// Where something that is to be kept ends.
  struct Mark {
    std::size_t message = 0;
    std::size_t bytes = 0;  // of its text
    /// Behind what templates write after the text: where the next message's text begins.
    bool at_next = false;
  };

  void fail(const std::string& name, std::string message) {
    fields_.fail(invalid_field(name, std::move(message)));
  }

  /// The first place behind tools and system messages.
  Mark start() const {
    std::size_t first = 0;
    while (first < prompt_.messages.size() && prompt_.messages[first]["role"] == "system")
      ++first;
    return {first, 0, false};
  }

  void mark_here(bool at_next) {
    const ordered_json& message = prompt_.messages.back();
    marks_.push_back({prompt_.messages.size() - 1,
                      message["content"].get_ref<const std::string&>().size(), at_next});
  }

  /// Whether `cache_control` stands in the object; takes its time.
  bool is_marked(simdjson::dom::object object, const std::string& name) {
    element value;
    if (fields_.failed() || object["cache_control"].get(value) != simdjson::SUCCESS ||
        value.is_null())
      return false;
    const std::string full = name.empty() ? "cache_control" : name + ".cache_control";
    simdjson::dom::object control;
    if (value.get(control) != simdjson::SUCCESS) {
      fail(full, "`" + full + "` is " + json_type_name(value) +
                     "; it must be {\"type\": \"ephemeral\"}, with a `ttl` or without");
      return false;
    }
    JsonFields inner(control, full + ".");
    std::string type;
    std::string ttl;
    inner.read("type", type);
    inner.read("ttl", ttl);
    if (!inner.failed() && type != "ephemeral") {
      inner.fail(invalid_field(full + ".type", "`" + full + ".type` is \"" + type.substr(0, 40) +
                                                   "\"; it must be \"ephemeral\""));
    }
    const auto time = inner.find("ttl") ? parse_ttl(ttl) : kBlockTtl;
    if (!inner.failed() && !time) {
      inner.fail(invalid_field(full + ".ttl", "`" + full + ".ttl` is \"" + ttl.substr(0, 40) +
                                                  "\"; it must be a time such as \"5m\" or \"1h\", "
                                                  "at most 24h"));
    }
    if (inner.failed() || !time) {
      fields_.fail_with(inner);
      return false;
    }
    ttl_ = std::max(ttl_, *time);
    return true;
  }

  /// A message of the role to add to: the last one where it goes on with that.
  void begin_turn(const std::string& role) {
    role_ = role;
    turn_is_bare_ = false;
    if (role != "system" && !prompt_.messages.empty() && prompt_.messages.back()["role"] == role)
      return;
    push_message(role);
    turn_is_bare_ = true;
  }

  void push_message(const std::string& role) {
    prompt_.messages.push_back({{"role", role}, {"content", ""}});
    has_text_ = false;
  }

  void add_text(std::string_view text) {
    auto& content = prompt_.messages.back()["content"].get_ref<std::string&>();
    if (has_text_) content += '\n';
    content += text;
    has_text_ = true;
  }

  /// Content: a string or blocks.
  void read_blocks(element content, const std::string& name) {
    std::string_view text;
    if (content.get(text) == simdjson::SUCCESS) {
      return_to_role();
      return add_text(text);
    }
    simdjson::dom::array blocks;
    if (content.get(blocks) != simdjson::SUCCESS) {
      return fail(name, "`" + name + "` is " + json_type_name(content) +
                            "; it must be a string or a list of blocks");
    }
    const std::size_t count = blocks.size();
    std::size_t index = 0;
    for (const element value : blocks) {
      const std::string block_name = item_name(name, index++);
      simdjson::dom::object object;
      if (value.get(object) != simdjson::SUCCESS) {
        return fail(block_name, "`" + block_name + "` is " + json_type_name(value) +
                                    "; it must be an object with a `type`");
      }
      JsonFields block(object, block_name + ".");
      const bool at_next = read_block(block, block_name);
      fields_.fail_with(block);
      if (is_marked(object, block_name))
        mark_here(at_next || (role_ == "system" && index == count));
      if (fields_.failed()) return;
    }
  }

  /// Gives whether templates write the block behind the message's text.
  bool read_block(JsonFields& block, const std::string& name) {
    std::string type;
    block.read("type", type);
    if (block.failed()) return false;
    if (type == "text") {
      return_to_role();
      add_text(required(block, "text"));
      return false;
    }
    if (type == "tool_result" && role_ == "user") {
      read_result(block, name);
      return false;
    }
    if (role_ == "assistant") {
      if (type == "redacted_thinking") return true;  // no model here can read it
      if (type == "thinking" || type == "tool_use") {
        return_to_role();
        if (type == "thinking")
          add_thought(required(block, "thinking"));
        else
          add_call(block);
        return true;
      }
    }
    const char* right = role_ == "user"        ? "`text` and `tool_result`"
                        : role_ == "assistant" ? "`text`, `thinking` and `tool_use`"
                                               : "`text`";
    block.fail(unsupported_field(
        name + ".type", "`" + name + ".type` is \"" + type.substr(0, 40) + "\"; this model reads " +
                            right + " blocks in messages of the role \"" + role_ + "\""));
    return false;
  }

  static std::string required(JsonFields& block, const char* field) {
    std::string text;
    if (!block.find(field)) {
      const std::string name = block.full_name(field);
      block.fail(invalid_field(name, "`" + name + "` is missing; it must be a string"));
    }
    block.read(field, text);
    return text;
  }

  /// Behind the result of a tool the turn needs a message of its own again.
  void return_to_role() {
    if (prompt_.messages.back()["role"] != role_) push_message(role_);
    turn_is_bare_ = false;
  }

  void add_thought(const std::string& text) {
    ordered_json& message = prompt_.messages.back();
    const std::string before =
        message.contains("reasoning_content") ? message["reasoning_content"] : ordered_json("");
    message["reasoning_content"] = before.empty() ? text : before + "\n" + text;
  }

  void add_call(JsonFields& block) {
    ordered_json call = {{"id", required(block, "id")}, {"type", "function"}};
    const std::string name = required(block, "name");
    auto arguments = ordered_json::object();
    if (const auto input = block.object("input")) arguments = to_ordered_json(input->raw());
    call["function"] = {{"name", name}, {"arguments", std::move(arguments)}};
    prompt_.messages.back()["tool_calls"].push_back(std::move(call));
  }

  void read_result(JsonFields& block, const std::string& name) {
    const std::string id = required(block, "tool_use_id");
    bool is_error = false;
    block.read("is_error", is_error);
    if (block.failed()) return;
    // The turn's own message stays where nothing of it has been said.
    if (turn_is_bare_) prompt_.messages.erase(prompt_.messages.size() - 1);
    turn_is_bare_ = false;
    push_message("tool");
    prompt_.messages.back()["tool_call_id"] = id;
    // Templates have no other way to say it.
    if (is_error) prompt_.messages.back()["content"] = "Error: ";
    if (const auto content = block.find("content")) read_result_text(*content, name + ".content");
  }

  void read_result_text(element content, const std::string& name) {
    std::string_view text;
    if (content.get(text) == simdjson::SUCCESS) return add_text(text);
    simdjson::dom::array parts;
    if (content.get(parts) != simdjson::SUCCESS) {
      return fail(name, "`" + name + "` is " + json_type_name(content) +
                            "; it must be a string or a list of text blocks");
    }
    std::size_t index = 0;
    for (const element part : parts) {
      const std::string part_name = item_name(name, index++);
      std::string_view type;
      simdjson::dom::object object;
      if (part.get(object) != simdjson::SUCCESS || object["type"].get(type) != simdjson::SUCCESS)
        return fail(part_name, "`" + part_name + "` must be an object with a `type`");
      if (type != "text") {
        return fields_.fail(
            unsupported_field(part_name + ".type", "`" + part_name + ".type` is \"" +
                                                       std::string(type.substr(0, 40)) +
                                                       "\"; this model reads `text` blocks only"));
      }
      if (object["text"].get(text) != simdjson::SUCCESS)
        return fail(part_name + ".text", "`" + part_name + ".text` must be a string");
      add_text(text);
      if (is_marked(object, part_name)) mark_here(/*at_next=*/false);
    }
  }

  JsonFields& fields_;
  ChatPrompt& prompt_;
  CacheFields& cache_;
  std::vector<Mark> marks_;
  std::chrono::seconds ttl_{0};
  std::string role_;  // of the turn that is read
  bool has_text_ = false;  // the last message has some
  bool turn_is_bare_ = false;  // the turn's message has just been made
};

}  // namespace

void read_conversation(JsonFields& fields, ChatPrompt& prompt, CacheFields& cache,
                       bool may_be_empty) {
  const auto messages = fields.array("messages");
  if (!fields.failed() && !may_be_empty && (!messages || messages->size() == 0)) {
    fields.fail(invalid_field("messages", messages
                                              ? "`messages` is empty; it must hold at least one"
                                              : "`messages` is missing; it must be a list"));
  }
  if (fields.failed()) return;
  ConversationReader reader(fields, prompt, cache);
  reader.read_system();
  if (messages && !fields.failed()) reader.read_messages(*messages);
  if (!fields.failed()) reader.read_other_marks();
  reader.finish();
}

}  // namespace thaw::coalescer

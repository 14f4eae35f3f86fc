// The table that the document is written from is the one that requests are checked with: for every
// field of every body, values inside of its bounds pass and values outside are the 400 that names
// it.

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "coalescer/openai/admin_bodies.h"
#include "coalescer/openai/call.h"
#include "coalescer/openai/fork_call.h"
#include "coalescer/openai/messages_call.h"
#include "coalescer/openai/messages_models.h"
#include "coalescer/openai/query.h"
#include "coalescer/openai/responses_call.h"
#include "coalescer/openai/session_call.h"
#include "coalescer/openai/shapes.h"
#include "tests/coalescer/http_fakes.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::int64_t kMaxChoices = 7;
constexpr std::int64_t kVocab = 258;  // ByteCodec's
constexpr std::int64_t kLongest = 5000;  // of lists and strings that are tried

struct Body {
  const Shape* shape;
  ordered_json base;  ///< passes as it is
  std::function<std::optional<ApiError>(const std::string&)> parse;
};

template <typename T>
std::optional<ApiError> error_of(const ApiResult<T>& result) {
  const auto* error = std::get_if<ApiError>(&result);
  return error == nullptr ? std::nullopt : std::optional<ApiError>(*error);
}

const ServedModels& models() {
  static const auto* const kModels = [] {
    auto* all = new ServedModels;
    ServedModel model;
    model.names = {"m"};
    model.max_model_len = 100'000;
    model.codec = std::make_shared<ByteCodec>();
    EXPECT_TRUE(all->add(std::move(model)));
    return all;
  }();
  return *kModels;
}

std::vector<Body> bodies() {
  const ordered_json messages = ordered_json::parse(R"([{"role": "user", "content": "x"}])");
  const auto call = [](ApiKind kind) {
    return [kind](const std::string& body) {
      return error_of(parse_call(kind, body, models(), kMaxChoices));
    };
  };
  return {
      {&kChatShape, {{"messages", messages}}, call(ApiKind::kChat)},
      {&kCompletionsShape, {{"prompt", "x"}}, call(ApiKind::kCompletions)},
      {&kResponsesShape, {{"input", "x"}}, call(ApiKind::kResponses)},
      {&kMessagesShape, {{"messages", messages}, {"max_tokens", 1}}, call(ApiKind::kMessages)},
      {&kCountTokensShape,
       {{"messages", messages}},
       [](const std::string& body) { return error_of(count_message_tokens(body, models())); }},
      {&kForksShape,
       {{"trunk", {{"messages", messages}}},
        {"forks", ordered_json::array({ordered_json::object()})}},
       [](const std::string& body) { return error_of(parse_forks(body, models(), kMaxChoices)); }},
      {&kTokenizeShape,
       {{"messages", messages}},
       [](const std::string& body) { return error_of(tokenize(body, models())); }},
      {&kDetokenizeShape,
       {{"tokens", {65}}},
       [](const std::string& body) { return error_of(detokenize(body, models())); }},
      {&kSessionCreateShape,
       {{"messages", messages}},
       [](const std::string& body) { return error_of(parse_create_session(body)); }},
      {&kSessionForkShape,
       {{"n", kMaxChoices}},
       [](const std::string& body) { return error_of(parse_fork_session(body, kMaxChoices)); }},
      {&kSessionCheckpointShape, ordered_json::object(),
       [](const std::string& body) { return error_of(parse_checkpoint(body)); }},
      {&kSessionRewindShape,
       {{"tokens", 1}},
       [](const std::string& body) { return error_of(parse_rewind(body)); }},
      {&kSessionExportShape, ordered_json::object(),
       [](const std::string& body) { return error_of(parse_session_file(body, false)); }},
      {&kSessionImportShape,
       {{"file", "x"}},
       [](const std::string& body) { return error_of(parse_session_file(body, true)); }},
      {&kRegisterShape,
       {{"name", "x"}, {"path", "y"}},
       [](const std::string& body) { return error_of(parse_registration(body)); }},
      {&kPreloadShape,
       {{"model", "m"}},
       [](const std::string& body) { return error_of(parse_preload(body, 1)); }},
  };
}

/// What some values only mean together with; stands beside the field, in the same object.
ordered_json companions(const Shape& shape, std::string_view field) {
  const ordered_json tools =
      ordered_json::parse(R"([{"type": "function", "function": {"name": "x"}}])");
  const bool is_chat = &shape == &kChatShape;
  const bool is_message = &shape == &kMessagesShape || &shape == &kCountTokensShape;
  if (field == "tool_choice" && is_message) {
    const ordered_json schema = {{"type", "object"}};
    return {{"tools", ordered_json::array({{{"name", "x"}, {"input_schema", schema}}})}};
  }
  if (field == "tool_choice" && &shape == &kResponsesShape)
    return {{"tools", ordered_json::array({{{"type", "function"}, {"name", "x"}}})}};
  if (field == "top_logprobs" && is_chat) return {{"logprobs", true}};
  if ((field == "append" || field == "replace") && (is_chat || &shape == &kMessagesShape))
    return {{"session_id", "s"}};
  if (field == "tool_choice") return {{"tools", tools}};
  if (field == "function_call") return {{"functions", ordered_json::array({tools[0]["function"]})}};
  if (field == "prompt" && &shape == &kTokenizeShape) return {{"messages", nullptr}};
  if (&shape == &kRegisterShape) return {{"name", "x"}, {"path", "y"}};
  if (field == "token" && shape.name == "ForkTrunk")
    return {{"messages", nullptr}, {"response_id", "r"}};
  return ordered_json::object();
}

/// Samples for each pattern: what it takes, and what it does not.
struct Samples {
  std::vector<ordered_json> inside;
  std::vector<ordered_json> outside;
};

const Samples& samples_of(std::string_view pattern) {
  static const std::map<std::string_view, Samples> kSamples = [] {
    std::map<std::string_view, Samples> all;
    for (const Shape* shape :
         {&kChatShape, &kResponsesShape, &kRegisterShape, &kSessionExportShape}) {
      std::function<void(const Field&)> visit = [&](const Field& field) {
        if (!field.pattern.empty()) all[field.pattern];
        if (field.item != nullptr) visit(*field.item);
        for (const Field& option : field.options)
          visit(option);
        if (field.shape != nullptr)
          for (const auto& part : field.shape->parts)
            for (const Field& inner : part)
              visit(inner);
      };
      for (const auto& part : shape->parts)
        for (const Field& field : part)
          visit(field);
    }
    for (auto& [pattern, samples] : all) {
      if (pattern.find("86400") != std::string_view::npos)
        samples = {{"90s", "86400s", "1440m", "24h", "1d"},
                   {"", "0s", "01s", "86401s", "1441m", "25h", "2d", "1", "s", "1.5h"}};
      else if (pattern.find("{0,127}") != std::string_view::npos)
        samples = {{"", "a_B-0.x", std::string(128, 'n')},
                   {".a", "a/b", "..", "a b", "\u00e4", std::string(129, 'n')}};
      else if (pattern.find("A-Za-z") != std::string_view::npos)
        samples = {{"a_B-0.:/"}, {"", "a b", "\u00e4"}};
      else if (pattern.find("{0,64}") != std::string_view::npos)
        samples = {{std::string(64, 'k')}, {std::string(65, 'k')}};
      else if (pattern.find("[0-9]{1,9}") != std::string_view::npos)
        samples = {{"0", "257"}, {"x", "-1", "258", ""}};
      else if (pattern.find("{\"") != std::string_view::npos ||
               pattern.find("\\{") != std::string_view::npos)
        samples = {{R"({"format": {"type": "any_text"}})"}, {"x", "[1]", "{"}};
      else if (pattern.find("u001f") != std::string_view::npos)
        samples = {{"x y"}, {"a\nb", std::string("a\x7f")}};
      else if (pattern.find("u0000") != std::string_view::npos)
        samples = {{"a\nb"}, {std::string("a\0b", 3)}};
    }
    return all;
  }();
  return kSamples.at(pattern);
}

/// A text of that length as the field counts it: in characters, or in bytes.
std::string umlauts(const Field& field, std::int64_t length) {
  std::string text;
  for (std::int64_t i = field.counts_bytes ? 2 : 1; i <= length; i += field.counts_bytes ? 2 : 1)
    text += "\u00e4";
  return text;
}

std::int64_t most_of(const Field& field) {
  return ShapeLimits{kMaxChoices, kVocab}.most(field);
}

ordered_json smallest(const Field& field, std::size_t number = 0);

ordered_json smallest(const Shape& shape, std::size_t number) {
  ordered_json out = ordered_json::object();
  for (const auto& part : shape.parts)
    for (const Field& field : part)
      if (field.is_needed) out[std::string(field.name)] = smallest(field, number);
  for (const ShapeRule& rule : shape.rules)
    if (rule.kind != ShapeRule::Kind::kNone)
      out[std::string(rule.names[0])] = smallest(*shape.find(rule.names[0]), number);
  return out;
}

/// A value that fits; `number` makes names differ.
ordered_json smallest(const Field& field, std::size_t number) {
  switch (field.kind) {
    case ValueKind::kBoolean:
      return false;
    case ValueKind::kString:
      if (!field.words.empty()) return field.words.front();
      if (field.name == "name" && number > 0) return "x" + std::to_string(number);
      if (field.name == "role") return "user";
      return std::string(static_cast<std::size_t>(std::max<std::int64_t>(field.least, 1)), 'x');
    case ValueKind::kWhole:
      return std::max<std::int64_t>(field.least, 0);
    case ValueKind::kNumber:
      return (field.minimum + field.maximum) / 2;
    case ValueKind::kList: {
      ordered_json out = ordered_json::array();
      while (out.size() < static_cast<std::size_t>(field.least))
        out.push_back(smallest(*field.item, out.size()));
      return out;
    }
    case ValueKind::kObject:
      return smallest(*field.shape, number);
    case ValueKind::kOneOf:
      return smallest(field.options.front(), number);
    case ValueKind::kNothing:
      return nullptr;
    default:
      return ordered_json::object();
  }
}

std::string key_of(const Field& map, std::size_t number) {
  return (map.pattern.empty() ? "k" : "") + std::to_string(number);
}

ordered_json list_of(const Field& list, std::int64_t size) {
  ordered_json out = ordered_json::array();
  for (std::int64_t i = 0; i < size; ++i)
    out.push_back(smallest(*list.item, out.size()));
  return out;
}

std::vector<ordered_json> inside(const Field& field) {
  std::vector<ordered_json> out;
  switch (field.kind) {
    case ValueKind::kAny:
      return {1, "x", true, ordered_json::object(), ordered_json::array()};
    case ValueKind::kBoolean:
      out = {false};
      if (field.most != 0) out.emplace_back(true);
      return out;
    case ValueKind::kString:
      if (!field.pattern.empty()) return samples_of(field.pattern).inside;
      for (const std::string_view word : field.words)
        out.emplace_back(word);
      if (!out.empty()) return out;
      out.emplace_back(std::string(static_cast<std::size_t>(field.least), 'x'));
      if (field.most < kLongest) out.emplace_back(umlauts(field, field.most));
      return out;
    case ValueKind::kWhole:
      return {field.least, most_of(field),
              static_cast<double>(
                  std::min<std::int64_t>(std::max<std::int64_t>(field.least, 1), most_of(field)))};
    case ValueKind::kNumber:
      out = {field.maximum, (field.minimum + field.maximum) / 2};
      out.emplace_back(field.is_above ? field.minimum + 1e-9 : field.minimum);
      return out;
    case ValueKind::kList:
      out = {list_of(field, field.least), list_of(field, std::max<std::int64_t>(field.least, 2))};
      if (most_of(field) < kLongest) out.push_back(list_of(field, most_of(field)));
      if (most_of(field) < 2) out.erase(out.begin() + 1);
      if (most_of(field) < 1) return out;
      for (const ordered_json& item : inside(*field.item))
        out.push_back(ordered_json::array({item}));
      return out;
    case ValueKind::kMap:
      out = {ordered_json::object()};
      for (const ordered_json& item : inside(*field.item))
        out.push_back({{key_of(field, 1), item}});
      return out;
    case ValueKind::kObject:
      return {smallest(*field.shape, 0)};
    case ValueKind::kOneOf:
      for (const Field& option : field.options)
        for (ordered_json& value : inside(option))
          out.push_back(std::move(value));
      return out;
    case ValueKind::kNothing:
      return {nullptr};
  }
  return out;
}

std::set<std::string> types_of(const Field& field) {
  switch (field.kind) {
    case ValueKind::kBoolean:
      return {"boolean"};
    case ValueKind::kString:
      return {"string"};
    case ValueKind::kWhole:
    case ValueKind::kNumber:
      return {"number"};
    case ValueKind::kList:
      return {"array"};
    case ValueKind::kMap:
    case ValueKind::kObject:
      return {"object"};
    case ValueKind::kOneOf: {
      std::set<std::string> out;
      for (const Field& option : field.options)
        out.merge(types_of(option));
      return out;
    }
    case ValueKind::kNothing:
      return {};
    default:
      return {"boolean", "string", "number", "array", "object"};
  }
}

std::vector<ordered_json> outside(const Field& field) {
  std::vector<ordered_json> out;
  const std::set<std::string> types = types_of(field);
  for (const ordered_json& value :
       {ordered_json(true), ordered_json("no such value"), ordered_json(5),
        ordered_json::array({nullptr}), ordered_json{{"no such name", 1}}})
    if (!types.contains(value.type_name())) out.push_back(value);
  switch (field.kind) {
    case ValueKind::kBoolean:
      if (field.most == 0) out.emplace_back(true);
      break;
    case ValueKind::kString:
      if (!field.words.empty()) {
        out.emplace_back("no such word");
        out.emplace_back("");
      }
      if (!field.pattern.empty())
        for (const ordered_json& sample : samples_of(field.pattern).outside)
          out.push_back(sample);
      if (field.least > 0) out.emplace_back("");
      if (field.most < kLongest) out.emplace_back(umlauts(field, field.most) + "x");
      break;
    case ValueKind::kWhole:
      out.emplace_back(1.5);
      out.emplace_back(1e300);
      if (field.least > std::numeric_limits<std::int64_t>::min()) out.emplace_back(field.least - 1);
      if (most_of(field) < std::numeric_limits<std::int64_t>::max())
        out.emplace_back(most_of(field) + 1);
      break;
    case ValueKind::kNumber:
      out.emplace_back(field.minimum - 0.001);
      out.emplace_back(field.maximum + 0.001);
      if (field.is_above) out.emplace_back(field.minimum);
      break;
    case ValueKind::kList:
      for (std::int64_t i = 0; i < field.least; ++i)
        out.push_back(list_of(field, i));
      if (most_of(field) < kLongest) out.push_back(list_of(field, most_of(field) + 1));
      for (const ordered_json& item : outside(*field.item))
        out.push_back(ordered_json::array({item}));
      break;
    case ValueKind::kMap:
      for (const ordered_json& item : outside(*field.item))
        out.push_back({{key_of(field, 1), item}});
      if (!field.pattern.empty())
        for (const ordered_json& key : samples_of(field.pattern).outside)
          out.push_back({{key.get<std::string>(), smallest(*field.item)}});
      break;
    case ValueKind::kObject:
      for (const auto& part : field.shape->parts) {
        for (const Field& inner : part) {
          if (!inner.is_needed) continue;
          ordered_json without = smallest(*field.shape, 0);
          without.erase(std::string(inner.name));
          out.push_back(std::move(without));
        }
      }
      break;
    case ValueKind::kOneOf:
      // Where only one of them has the type, nothing else can take the value.
      for (const Field& option : field.options) {
        for (const ordered_json& value : outside(option)) {
          int could_be = 0;
          for (const Field& other : field.options)
            could_be += static_cast<int>(types_of(other).contains(value.type_name()));
          if (could_be == 1 && types_of(option).contains(value.type_name())) out.push_back(value);
        }
      }
      break;
    default:
      break;
  }
  return out;
}

class Walk {
 public:
  explicit Walk(Body body) : body_(std::move(body)) {}

  void run() {
    EXPECT_EQ(body_.parse(body_.base.dump()), std::nullopt) << body_.shape->name;
    fields(*body_.shape, ordered_json::json_pointer(), "");
  }
  int tried() const { return tried_; }

 private:
  void fields(const Shape& shape, const ordered_json::json_pointer& at, const std::string& name) {
    for (const auto& part : shape.parts) {
      for (const Field& field : part) {
        if (shape.find(field.name) != &field) continue;  // an earlier one counts
        const std::string full = name + std::string(field.name);
        for (const ordered_json& value : inside(field))
          expect_good(shape, field, at, full, value);
        if (!field.is_needed) expect_good(shape, field, at, full, nullptr);
        for (const ordered_json& value : outside(field))
          expect_bad(shape, field, at, full, value);
        // Without a type it may be the sort of thing that needs none.
        if (field.is_needed && field.name != "type") expect_bad(shape, field, at, full, nullptr);
        descend(shape, field, at, full);
      }
    }
  }

  /// Into the objects that a field holds, each in a body of its own.
  void descend(const Shape& shape, const Field& field, const ordered_json::json_pointer& at,
               const std::string& name) {
    const ordered_json::json_pointer here = at / std::string(field.name);
    // A field that is there already keeps what it has.
    if (field.kind == ValueKind::kObject && body_.base.contains(here))
      return fields(*field.shape, here, name + ".");
    inside_of(field, here, name,
              [&](const ordered_json& value) { return with(shape, field, at, value); });
  }

  /// Into the objects that a value may be or hold; `wrapped` makes a body of one.
  void inside_of(const Field& one, const ordered_json::json_pointer& here, const std::string& name,
                 const std::function<json(const ordered_json&)>& wrapped) {
    if (one.kind == ValueKind::kObject) {
      const ordered_json old = std::exchange(body_.base, wrapped(smallest(*one.shape, 0)));
      fields(*one.shape, here, name + ".");
      body_.base = old;
    }
    if (one.kind == ValueKind::kList) {
      inside_of(*one.item, here / 0, name + "[0]",
                [&](const ordered_json& value) { return wrapped(ordered_json::array({value})); });
    }
    for (const Field& option : one.options)
      inside_of(option, here, name, wrapped);
  }

  ordered_json with(const Shape& shape, const Field& field, const ordered_json::json_pointer& at,
                    const ordered_json& value) const {
    ordered_json body = body_.base;
    ordered_json& object = body[at];
    object.update(companions(shape, field.name));
    // Of several names that exclude each other this one stays.
    for (const ShapeRule& rule : shape.rules) {
      const auto names = rule.given_names();
      if (rule.kind != ShapeRule::Kind::kExactlyOne || value.is_null() ||
          std::find(names.begin(), names.end(), field.name) == names.end())
        continue;
      for (const std::string_view name : names)
        object.erase(std::string(name));
    }
    object[std::string(field.name)] = value;
    return body;
  }

  void expect_good(const Shape& shape, const Field& field, const ordered_json::json_pointer& at,
                   const std::string& name, const ordered_json& value) {
    if (means_another_thing(shape, field, value)) return;
    ++tried_;
    const std::string text = with(shape, field, at, value).dump();
    const auto error = body_.parse(text);
    if (error && !is_absent(*error) && !is_of_several(*error)) {
      ADD_FAILURE() << body_.shape->name << " `" << name << "`: " << error->message << "\n"
                    << text.substr(0, 300);
    }
  }

  void expect_bad(const Shape& shape, const Field& field, const ordered_json::json_pointer& at,
                  const std::string& name, const ordered_json& value) {
    ++tried_;
    const std::string text = with(shape, field, at, value).dump();
    const auto error = body_.parse(text);
    if (!error && name == "forks[0].prompt") return;  // a chat's branch does not read it
    if (!error) {
      ADD_FAILURE() << body_.shape->name << " `" << name << "` passed\n" << text.substr(0, 300);
      return;
    }
    EXPECT_EQ(error->status, 400) << text.substr(0, 300);
    // What is of no known type may lack anything else.
    const std::string named = field.name == "type" ? name.substr(0, name.size() - 5) : name;
    // What stands beside the branches is each one's.
    EXPECT_TRUE(error->param.starts_with(named) || error->param.starts_with("forks[0]." + named) ||
                is_one_of_rule(shape, field, *error) || is_of_the_branch(name, *error))
        << body_.shape->name << " `" << name << "` is not `" << error->param
        << "`: " << error->message << "\n"
        << text.substr(0, 300);
  }

  /// A model that is not served, a session that is not there: well formed.
  static bool is_absent(const ApiError& error) { return error.status == 404; }

  /// What no field alone is wrong with.
  static bool is_of_several(const ApiError& error) {
    for (const char* reason :
         {"must follow as `tool_result`", "names the function", "`input` is empty",
          // A branch of forks is a chat or a completion.
          "but `session_id` is missing", "a chat shows all of its", "but `logprobs` is not true",
          "`forks[0].prompt` must be", "`messages` or `session_id` is missing"})
      if (error.message.find(reason) != std::string::npos) return true;
    return error.param.starts_with("forks[0].") &&
           (error.param.ends_with("max_tokens") || error.param.ends_with("max_completion_tokens") ||
            error.param.ends_with(".logprobs"));
  }

  /// A branch's conversation is the trunk's and its own.
  static bool is_of_the_branch(const std::string& name, const ApiError& error) {
    return (name.starts_with("trunk.") || name.starts_with("forks[0].messages")) &&
           error.param.starts_with("forks[0].");
  }

  /// The name is needed, or another one is: the error names one of them.
  static bool is_one_of_rule(const Shape& shape, const Field& field, const ApiError& error) {
    for (const ShapeRule& rule : shape.rules) {
      const auto names = rule.given_names();
      if (std::find(names.begin(), names.end(), field.name) == names.end()) continue;
      for (const std::string_view name : names)
        if (error.param.find(name) != std::string::npos) return true;
    }
    return false;
  }

  /// Values that say nothing where a rule asks for one of several names.
  static bool means_another_thing(const Shape& shape, const Field& field,
                                  const ordered_json& value) {
    for (const ShapeRule& rule : shape.rules) {
      const auto names = rule.given_names();
      if (rule.kind == ShapeRule::Kind::kUnless) {
        if (field.name == rule.names[0] && value.is_null()) return false;
        continue;
      }
      if (std::find(names.begin(), names.end(), field.name) == names.end()) continue;
      if (value.is_null()) return true;
      if (!rule.counts_empty && (value == "" || value == ordered_json::array())) return true;
    }
    return false;
  }

  Body body_;
  int tried_ = 0;
};

TEST(Shapes, EveryFieldOfEveryBodyIsWhatTheTableSays) {
  for (const Body& body : bodies()) {
    Walk walk(body);
    walk.run();
    EXPECT_GT(walk.tried(), 5) << body.shape->name;
  }
}

TEST(Shapes, RulesNeedOneOfTheirNames) {
  for (const Body& body : bodies()) {
    for (const ShapeRule& rule : body.shape->rules) {
      if (rule.kind == ShapeRule::Kind::kNone) continue;
      ordered_json none = body.base;
      ordered_json all = body.base;
      for (const std::string_view name : rule.given_names()) {
        none.erase(std::string(name));
        all[std::string(name)] = smallest(*body.shape->find(name));
        if (all[std::string(name)] == ordered_json::array())
          all[std::string(name)] = body.base["messages"];
      }
      EXPECT_EQ(body.parse(none.dump()).value().status, 400) << body.shape->name;
      EXPECT_EQ(body.parse(all.dump()).has_value(), rule.kind == ShapeRule::Kind::kExactlyOne)
          << body.shape->name;
    }
  }
}

TEST(Shapes, NumbersOfAnySizeAreJson) {
  const std::string big(60, '9');
  const auto parse = bodies().front().parse;
  EXPECT_EQ(parse(R"({"messages": [{"role": "user", "content": "1)" + big +
                  R"("}], "no_such_field": [)" + big + ", -" + big + "]}"),
            std::nullopt);
  EXPECT_EQ(parse(R"({"messages": [{"role": "user", "content": "x"}], "seed": )" + big + "}")
                .value()
                .param,
            "seed");
  EXPECT_NE(parse("{\"n\": 1-2}"), std::nullopt);
}

TEST(Shapes, QueriesAreWhatTheTableSays) {
  const auto page = [](const char* query) { return error_of(parse_session_page(query)); };
  EXPECT_EQ(page(""), std::nullopt);
  EXPECT_EQ(page("limit=1&after=%61b"), std::nullopt);
  EXPECT_EQ(std::get<SessionPage>(parse_session_page("after=%61b&limit=1000")).after, "ab");
  for (const char* query : {"limit=0", "limit=1001", "limit=x", "limit=", "limit", "limit=1.5"})
    EXPECT_EQ(page(query).value().param, "limit") << query;
  EXPECT_EQ(page("pages=1").value().param, "pages");
  const auto view = std::get<SessionView>(parse_session_view("include=messages%2Ctoken_ids"));
  EXPECT_TRUE(view.messages && view.token_ids);
  for (const char* query : {"include=messages,x", "include=", "include", "include=messages,"})
    EXPECT_EQ(error_of(parse_session_view(query)).value().param, "include") << query;
  EXPECT_EQ(error_of(parse_recursive("recursive=1")).value().param, "recursive");
  EXPECT_TRUE(std::get<bool>(parse_recursive("recursive=true")));
  const auto items = [](const char* query) { return error_of(parse_items_page(query)); };
  EXPECT_EQ(items("limit=101").value().param, "limit");
  EXPECT_EQ(items("order=up").value().param, "order");
  EXPECT_EQ(items("pages=1&limit=100"), std::nullopt);  // others are ignored
  EXPECT_FALSE(std::get<ItemsPage>(parse_items_page("order=asc")).newest_first);
  EXPECT_EQ(std::get<ResponseView>(parse_response_view("starting_after=7")).starting_after, 7);
  EXPECT_EQ(error_of(parse_response_view("starting_after=-1")).value().param, "starting_after");
  EXPECT_EQ(error_of(parse_response_view("stream=yes")).value().param, "stream");
  EXPECT_EQ(error_of(message_models_body(models(), "limit=1001")).value().param, "limit");
  EXPECT_EQ(percent_decode("%2F%-1%zz%"), "/%-1%zz%");
}

/// Names go to the workers, which count bytes.
TEST(Shapes, SaltsAreBoundedInBytes) {
  const Field& salt = *kChatShape.find("cache_salt");
  for (const Body& body : bodies()) {
    if (body.shape->find("cache_salt") == nullptr) continue;
    ordered_json request = body.base;
    request["cache_salt"] = umlauts(salt, 1024) + "x";
    const auto error = body.parse(request.dump());
    ASSERT_TRUE(error) << body.shape->name;
    EXPECT_EQ(error->message, "`cache_salt` has 1025 bytes of UTF-8; it must have at most 1024");
  }
}

}  // namespace
}  // namespace thaw::coalescer

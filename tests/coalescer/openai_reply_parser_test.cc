#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/json_text.h"
#include "coalescer/openai/message_json.h"
#include "coalescer/openai/reply_parser.h"
#include "coalescer/openai/tool_call_python.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

std::shared_ptr<const std::vector<ToolSpec>> some_tools() {
  ToolSpec weather;
  weather.name = "weather";
  weather.parameters = ordered_json::parse(
      R"({"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"},)"
      R"("note":{"type":["string","null"]}}})");
  ToolSpec clock;
  clock.name = "clock";
  clock.parameters = {{"type", "object"}};
  return std::make_shared<std::vector<ToolSpec>>(std::vector<ToolSpec>{weather, clock});
}

struct Case {
  ToolForm form = ToolForm::kHermes;
  ThinkingStart thinking = ThinkingStart::kNone;
  std::string text;
  std::string read;  ///< what `shown` makes of the pieces
  bool calls = true;
};

ReplyReading reading_of(const Case& one, bool constrained) {
  ReplyReading reading;
  reading.form.tools = one.form;
  reading.form.think_begin = "<think>";
  reading.form.think_end = "</think>";
  reading.thinking = one.thinking;
  if (one.calls) reading.tools = some_tools();
  reading.constrained = constrained;
  return reading;
}

/// `r(...)` thinking, `c(...)` content, `name(arguments)` calls; "..." for one without its end.
std::string shown(const ReplyPieces& pieces) {
  std::string out;
  std::string call;
  for (const ReplyPiece& piece : pieces) {
    switch (piece.kind) {
      case PieceKind::kReasoning:
        out += "r(" + piece.text + ")";
        break;
      case PieceKind::kContent:
        out += "c(" + piece.text + ")";
        break;
      case PieceKind::kCallStart:
        call = piece.text + "(";
        EXPECT_FALSE(piece.id.empty());
        break;
      case PieceKind::kArguments:
        call += piece.text;
        break;
      case PieceKind::kCallEnd:
        out += call + ")";
        call.clear();
        break;
    }
  }
  return call.empty() ? out : out + call + "...";
}

/// The text cut into pieces at `cuts`, joined as a reader of the stream would.
ReplyPieces read(const Case& one, const std::vector<std::size_t>& cuts, bool constrained) {
  ReplyParser parser(reading_of(one, constrained));
  ReplyPieces pieces;
  std::size_t begin = 0;
  for (const std::size_t end : cuts) {
    append_pieces(pieces, parser.push(std::string_view(one.text).substr(begin, end - begin)));
    begin = end;
  }
  append_pieces(pieces, parser.push(std::string_view(one.text).substr(begin)));
  append_pieces(pieces, parser.finish());
  return pieces;
}

bool is_cut(const std::string& text, std::size_t at) {
  return (static_cast<unsigned char>(text[at]) & 0xc0) != 0x80;
}

void check(const Case& one) {
  for (const bool constrained : {false, true}) {
    ASSERT_EQ(shown(read(one, {}, constrained)), one.read) << one.text << " " << constrained;
    std::vector<std::size_t> all;
    for (std::size_t i = 1; i < one.text.size(); ++i) {
      if (!is_cut(one.text, i)) continue;
      all.push_back(i);
      ASSERT_EQ(shown(read(one, {i}, constrained)), one.read) << one.text << " cut at " << i;
      for (std::size_t j = i + 1; j < one.text.size(); j += 3)
        if (is_cut(one.text, j)) {
          ASSERT_EQ(shown(read(one, {i, j}, constrained)), one.read)
              << one.text << " cut at " << i << ", " << j;
        }
    }
    ASSERT_EQ(shown(read(one, all, constrained)), one.read) << one.text << " byte by byte";
  }
}

TEST(ReplyParser, HermesCallsAtEveryCut) {
  check({ToolForm::kHermes,
         {},
         "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": "
         "\"Sch\xc3\xb6nau\"}}\n</tool_call>",
         "weather({\"city\": \"Sch\xc3\xb6nau\"})"});
  check({ToolForm::kHermes,
         {},
         "Let me see.\n<tool_call>{\"arguments\":{\"a\":\"}\\\"{\"},"
         "\"name\":\"clock\",\"id\":7}</tool_call>\n<tool_call>\n"
         "{\"name\": \"weather\"}\n</tool_call>\n",
         "c(Let me see.)clock({\"a\":\"}\\\"{\"})weather({})"});
  check({ToolForm::kHermes,
         {},
         "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}"
         "</tool_call> done",
         "f({\"a\": 1})c( done)"});
  // A list in the tag, as SmolLM2-1.7B writes it; function tags in it, as Qwen3-Coder does.
  check({ToolForm::kHermes,
         {},
         "<tool_call>[{\"name\": \"weather\", \"arguments\": {\"days\": 2}}, "
         "{\"name\": \"clock\", \"arguments\": {}}]</tool_call>",
         "weather({\"days\": 2})clock({})"});
  check({ToolForm::kHermesList,
         {},
         "<tool_call>[{\"name\": \"clock\", \"arguments\": {}}]"
         "</tool_call>",
         "clock({})"});
}

TEST(ReplyParser, TheEndTagMayBeMissingAtTheEnd) {
  check({ToolForm::kHermes,
         {},
         "<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n",
         "clock({})"});
  check({ToolForm::kHermes,
         {},
         "<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_",
         "clock({})"});
}

TEST(ReplyParser, TextWithoutCallsIsKeptToTheByte) {
  for (const std::string text :
       {"", "plain", "  with space around \n\n", "a < b <tool <tool_cal", "<tool_call",
        "\xe2\x9c\x93 <<tool_calls> {\"name\": 1}", "<tool_call"}) {
    check({ToolForm::kHermes, {}, text, text.empty() ? "" : "c(" + text + ")"});
    check({ToolForm::kFunctionTag, {}, text, text.empty() ? "" : "c(" + text + ")"});
    check({ToolForm::kMistral, {}, text, text.empty() ? "" : "c(" + text + ")"});
    check({ToolForm::kLlama3Json, {}, text, text.empty() ? "" : "c(" + text + ")"});
    check({ToolForm::kPythonic, {}, text, text.empty() ? "" : "c(" + text + ")"});
  }
}

TEST(ReplyParser, BrokenCallsAreContent) {
  for (const std::string text :
       {"<tool_call>no</tool_call>", "a\n<tool_call>\n{\"nam\": 1}", "<tool_call>{}</tool_call>",
        "<tool_call>[1]</tool_call>", "<tool_call>{\"name\": 3}", "<tool_call> <tool_call>",
        "x <tool_call> <tool_call> {\"arguments\": 2}"})
    check({ToolForm::kHermes, {}, text, "c(" + text + ")"});
  // A broken one hides no whole one behind it.
  check({ToolForm::kHermes,
         {},
         "<tool_call>oh <tool_call>{\"name\":\"clock\"}</tool_call>",
         "c(<tool_call>oh)clock({})"});
  check({ToolForm::kHermes,
         {},
         "<tool_call>\n<tool_call>{\"name\":\"clock\"}</tool_call>",
         "c(<tool_call>)clock({})"});
}

TEST(ReplyParser, WhatIsNotHeldByAGrammarIsACallOnceItIsWhole) {
  // Brackets match, but it is no JSON.
  const Case one{ToolForm::kHermes,
                 {},
                 "<tool_call>{\"name\": \"f\", \"arguments\": {oops}}"
                 "</tool_call>",
                 ""};
  EXPECT_EQ(shown(read(one, {}, false)), "c(" + one.text + ")");
  const Case odd{ToolForm::kHermes, {}, "<tool_call>{\"name\": \"f\" oops", ""};
  EXPECT_EQ(shown(read(odd, {}, false)), "c(" + odd.text + ")");
  EXPECT_EQ(shown(read(odd, {}, true)), "f()c( oops)");  // it is told already
  const Case cut{
      ToolForm::kHermes, {}, "Hm. <tool_call>{\"name\": \"f\", \"arguments\": {\"a\": ", ""};
  EXPECT_EQ(shown(read(cut, {}, false)), "c(" + cut.text + ")");
  EXPECT_EQ(shown(read(cut, {}, true)), "c(Hm.)f({\"a\": ...");
  for (const Case* ended : {&one, &odd, &cut}) {
    ReplyParser parser(reading_of(*ended, /*constrained=*/true));
    parser.push(ended->text);
    parser.finish();
    EXPECT_EQ(parser.ends_in_call(), ended == &cut) << ended->text;
  }
}

TEST(ReplyParser, ArgumentsOfAConstrainedCallComeAsTheyAre) {
  Case one{ToolForm::kHermes,
           {},
           "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"",
           ""};
  ReplyParser parser(reading_of(one, true));
  ReplyPieces pieces = parser.push(one.text);
  ASSERT_EQ(pieces.size(), 2U);
  EXPECT_EQ(pieces[0].kind, PieceKind::kCallStart);
  EXPECT_EQ(pieces[1].text, "{\"city\": \"");
  EXPECT_EQ(parser.num_calls(), 1U);
  pieces = parser.push("Rom");
  ASSERT_EQ(pieces.size(), 1U);
  EXPECT_EQ(pieces[0].kind, PieceKind::kArguments);
  EXPECT_EQ(pieces[0].text, "Rom");
}

TEST(ReplyParser, LlamaJson) {
  check({ToolForm::kLlama3Json,
         {},
         "{\"name\": \"weather\", \"parameters\": {\"city\": \"Bonn\"}}",
         "weather({\"city\": \"Bonn\"})"});
  check({ToolForm::kLlama3Json,
         {},
         "<|python_tag|>{\"type\": \"function\", \"name\": \"clock\", "
         "\"parameters\": {}}; {\"name\": \"clock\"}",
         "clock({})clock({})"});
  for (const std::string text : {"{\"name\": \"nobody\", \"parameters\": {}}", "{\"a\": [1, 2]}",
                                 "Well: {\"name\": \"clock\"}", "{{x}}", "{"})
    check({ToolForm::kLlama3Json, {}, text, "c(" + text + ")"});
}

TEST(ReplyParser, Pythonic) {
  check({ToolForm::kPythonic,
         {},
         "[weather(city='K\xc3\xb6ln', days=2, note=None), clock()]",
         "weather({\"city\":\"K\xc3\xb6ln\",\"days\":2,\"note\":null})clock({})"});
  check({ToolForm::kPythonic,
         {},
         "<|tool_call_start|>[clock(a=[1, (2, 3)], b={\"x\": \"]\"})]"
         "<|tool_call_end|>It is late.",
         "clock({\"a\":[1,[2,3]],\"b\":{\"x\":\"]\"}})c(It is late.)"});
  for (const std::string text : {"[1, 2]", "[clock(]", "[clock(a)]", "[nobody(a=1)]", "[clock(a=1"})
    check({ToolForm::kPythonic, {}, text, "c(" + text + ")"});
}

TEST(ReplyParser, PythonLiterals) {
  EXPECT_EQ(keywords_to_json("a=-1.5e3, b=True, c=false,d='it\\'s \\u00e9\\n'"),
            "{\"a\":-1500.0,\"b\":true,\"c\":false,\"d\":\"it's \xc3\xa9\\n\"}");
  EXPECT_EQ(keywords_to_json("a=1, a=2"), "{\"a\":2}");
  EXPECT_EQ(keywords_to_json(""), "{}");
  EXPECT_EQ(keywords_to_json("a='\\ud83d\\ude00'"), "{\"a\":\"\xf0\x9f\x98\x80\"}");
  for (const char* wrong :
       {"a", "a=", "=1", "a=b", "a=[1", "a={1: 2}", "a='", "a='\\ud83d'", "a=1 b=2"})
    EXPECT_EQ(keywords_to_json(wrong), std::nullopt) << wrong;
  std::string deep = "a=";
  for (int i = 0; i < 1000; ++i)
    deep += '[';
  EXPECT_EQ(keywords_to_json(deep), std::nullopt);
}

TEST(ReplyParser, FunctionTags) {
  check({ToolForm::kFunctionTag,
         {},
         "So:\n\n<tool_call>\n<function=weather>\n<parameter=city>\nNew\n"
         "York\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
         "<parameter=note>\nnull\n</parameter>\n</function>\n</tool_call>",
         "c(So:)weather({\"city\": \"New\\nYork\", \"days\": 3, \"note\": null})"});
  // A string stays one, whatever it looks like.
  check({ToolForm::kFunctionTag,
         {},
         "<function=weather><parameter=city>12</parameter></function>",
         "weather({\"city\": \"12\"})"});
  check({ToolForm::kFunctionTag, {}, "<function=clock>{\"a\": 1}</function>", "clock({\"a\": 1})"});
  check({ToolForm::kFunctionTag,
         {},
         "<tool_call>\n<function=clock>\n</function>\n</tool_call>",
         "clock({})"});
  for (const std::string text : {"<function=clock", "<tool_call><func>", "<function= x>"})
    check({ToolForm::kFunctionTag, {}, text, "c(" + text + ")"});
}

TEST(ReplyParser, Mistral) {
  check({ToolForm::kMistral,
         {},
         "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"days\": 1}},"
         " {\"name\": \"clock\", \"arguments\": {}}]",
         "weather({\"days\": 1})clock({})"});
  check({ToolForm::kMistral,
         {},
         "[TOOL_CALLS]clock[ARGS]{\"a\": {}}[TOOL_CALLS]weather{\"days\":1}",
         "clock({\"a\": {}})weather({\"days\":1})"});
  ReplyParser parser(reading_of({ToolForm::kMistral, {}, "", ""}, false));
  const ReplyPieces pieces = parser.push("[TOOL_CALLS][{\"name\": \"clock\"}]");
  ASSERT_FALSE(pieces.empty());
  EXPECT_EQ(pieces[0].id.size(), 9U);
}

TEST(ReplyParser, Thinking) {
  const std::string call = "<tool_call>{\"name\":\"clock\"}</tool_call>";
  check({ToolForm::kHermes, ThinkingStart::kOpen, "\nI must\n\nthink.\n</think>\n\nFour.",
         "r(I must\n\nthink.)c(Four.)"});
  check({ToolForm::kHermes, ThinkingStart::kOpen, "never </thin ends", "r(never </thin ends)"});
  check({ToolForm::kHermes, ThinkingStart::kMayBegin,
         "\n<think>\nhm " + call + "\n</think>\n" + call, "r(hm " + call + ")clock({})"});
  check({ToolForm::kHermes, ThinkingStart::kMayBegin, " <thin> no", "c( <thin> no)"});
  check({ToolForm::kHermes, ThinkingStart::kMayBegin, "Four. <think>", "c(Four. <think>)"});
  // The prompt closed it: all is the answer.
  check({ToolForm::kHermes, ThinkingStart::kNone, "Four </think>.", "c(Four </think>.)"});
  check(
      {ToolForm::kHermes, ThinkingStart::kOpen, "a</think>" + call, "r(a)c(" + call + ")", false});
  check({ToolForm::kHermes, ThinkingStart::kMayBegin, "<think></think>x", "c(x)", false});
}

TEST(ReplyParser, WithoutToolsAllIsContent) {
  check({ToolForm::kLlama3Json, {}, "{\"name\": \"clock\"}", "c({\"name\": \"clock\"})", false});
  check({ToolForm::kHermes,
         {},
         "<tool_call>{\"name\": \"clock\"}</tool_call> ",
         "c(<tool_call>{\"name\": \"clock\"}</tool_call> )",
         false});
}

TEST(ReplyParser, IdsFollowFromTheAnswer) {
  ReplyReading reading = reading_of({}, false);
  const std::string text =
      "<tool_call>{\"name\":\"a\"}</tool_call><tool_call>{\"name\":\"b\"}</tool_call>";
  const auto ids = [&](const std::string& seed) {
    reading.id_seed = seed;
    ReplyParser parser(reading);
    std::vector<std::string> found;
    for (const ReplyPiece& piece : parser.push(text))
      if (piece.kind == PieceKind::kCallStart) found.push_back(piece.id);
    return found;
  };
  const auto first = ids("chatcmpl-1/0");
  ASSERT_EQ(first.size(), 2U);
  EXPECT_EQ(first[0].substr(0, 5), "call_");
  EXPECT_EQ(first[0].size(), 29U);
  EXPECT_NE(first[0], first[1]);
  EXPECT_EQ(ids("chatcmpl-1/0"), first);
  EXPECT_NE(ids("chatcmpl-1/1")[0], first[0]);
}

TEST(MessageJson, DeltasHaveWhatClientsNeed) {
  ReplyParser parser(reading_of({}, true));
  std::string first;
  append_delta_fields(
      first, parser.push("Hi <tool_call>{\"name\": \"clock\", \"arguments\": {\"a\""), false);
  const auto begin = nlohmann::json::parse("{" + first + "}");
  EXPECT_EQ(begin["content"], "Hi");
  ASSERT_EQ(begin["tool_calls"].size(), 1U);
  EXPECT_EQ(begin["tool_calls"][0]["index"], 0);
  EXPECT_EQ(begin["tool_calls"][0]["type"], "function");
  EXPECT_EQ(begin["tool_calls"][0]["function"]["name"], "clock");
  EXPECT_EQ(begin["tool_calls"][0]["function"]["arguments"], "{\"a\"");
  std::string more;
  append_delta_fields(more, parser.push(": 1}}</tool_call>"), false);
  const auto rest = nlohmann::json::parse("{" + more + "}");
  EXPECT_EQ(rest, nlohmann::json::parse(
                      R"({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]})"));
}

TEST(MessageJson, WholeMessages) {
  const auto message = [](const Case& one, bool legacy) {
    std::string out;
    append_message_fields(out, read(one, {}, false), legacy);
    return nlohmann::json::parse("{" + out + "}");
  };
  const Case call{ToolForm::kHermes, ThinkingStart::kOpen,
                  "Why?</think><tool_call>{\"name\":\"clock\"}</tool_call>", ""};
  auto json = message(call, false);
  EXPECT_TRUE(json["content"].is_null());
  EXPECT_EQ(json["reasoning"], "Why?");
  EXPECT_EQ(json["reasoning_content"], "Why?");
  EXPECT_EQ(json["tool_calls"][0]["function"]["arguments"], "{}");
  EXPECT_FALSE(json["tool_calls"][0].contains("index"));
  json = message(call, true);
  EXPECT_EQ(json["function_call"], nlohmann::json::parse(R"({"name":"clock","arguments":"{}"})"));
  EXPECT_FALSE(json.contains("tool_calls"));
  EXPECT_EQ(message({ToolForm::kHermes, {}, "", ""}, false)["content"], "");
  const auto for_template = message_of_pieces(read(call, {}, false));
  EXPECT_TRUE(for_template["tool_calls"][0]["function"]["arguments"].is_object());
  EXPECT_EQ(for_template["reasoning_content"], "Why?");
}

}  // namespace
}  // namespace thaw::coalescer

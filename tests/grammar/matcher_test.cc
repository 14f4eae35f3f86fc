#include <random>
#include <string>
#include <vector>

#include "tests/grammar/small_vocabulary.h"

namespace thaw::grammar {
namespace {

std::vector<TokenId> allowed_tokens(Matcher& matcher) {
  const auto mask = mask_of(matcher);
  std::vector<TokenId> tokens;
  for (TokenId token = 0; token < kVocabSize; ++token)
    if (allows(mask, token)) tokens.push_back(token);
  return tokens;
}

/// A random text of the grammar, or what it has after `most` tokens.
std::vector<TokenId> random_text(Matcher& matcher, std::mt19937& random, std::size_t most) {
  std::vector<TokenId> text;
  while (text.size() < most) {
    const auto tokens = allowed_tokens(matcher);
    if (tokens.empty()) break;
    const TokenId token = tokens[random() % tokens.size()];
    if (token == kEnd) break;
    const auto accepted = matcher.accept(token);
    EXPECT_TRUE(accepted) << accepted.error().message;
    text.push_back(token);
  }
  return text;
}

const std::string kPerson =
    R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},)"
    R"("required":["name","age"]})";

TEST(MatcherTest, JsonOfASchemaHasOneForm) {
  const std::string document = schema(kPerson);
  EXPECT_TRUE(matches(document, R"({"name": "Ann", "age": 41})"));
  EXPECT_FALSE(matches(document, R"({"name":"Ann","age":41})"));
  EXPECT_FALSE(matches(document, "{\n\"name\": \"Ann\", \"age\": 41}"));
  EXPECT_FALSE(matches(document, R"({"name": "Ann"})"));
  EXPECT_FALSE(matches(document, R"({"name": "Ann", "age": "x"})"));
  const std::string loose =
      tag(R"({"type":"json_schema","max_whitespace_cnt":1,"json_schema":)" + kPerson + "}");
  EXPECT_TRUE(matches(loose, R"({"name":"Ann","age":41})"));
  EXPECT_TRUE(matches(loose, R"({ "name" : "Ann", "age":41})"));
  EXPECT_FALSE(matches(loose, R"({  "name":"Ann","age":41})"));
}

TEST(MatcherTest, StringsEscapesAndUnicode) {
  const std::string document = schema(R"({"type":"string"})");
  EXPECT_TRUE(matches(document, R"("a \" quote, \\ and \u00e9")"));
  EXPECT_TRUE(matches(document, "\"\xc3\xa9\xf0\x9f\x98\x80\""));
  EXPECT_FALSE(matches(document, "\"a\nb\""));
  EXPECT_FALSE(matches(document, R"("\x")"));
  EXPECT_FALSE(matches(document, "\"\xc3\""));  // half a character
  const std::string other = schema(R"({"enum":["caf\u00e9","na\"ive",7,null,[1,true]]})");
  EXPECT_TRUE(matches(other, "\"caf\xc3\xa9\""));
  EXPECT_TRUE(matches(other, R"("na\"ive")"));
  EXPECT_TRUE(matches(other, "7"));
  EXPECT_NE(matches(other, "[1, true]"), matches(other, "[1,true]"));
  EXPECT_FALSE(matches(other, "8"));
}

TEST(MatcherTest, BoundsOfNumbersStringsAndArrays) {
  const std::string number = schema(R"({"type":"integer","minimum":5,"maximum":120})");
  for (const char* text : {"5", "17", "120"})
    EXPECT_TRUE(matches(number, text)) << text;
  for (const char* text : {"4", "121", "-6", "05", "7.5"})
    EXPECT_FALSE(matches(number, text)) << text;
  const std::string bounded = schema(R"({"type":"string","minLength":2,"maxLength":3})");
  EXPECT_FALSE(matches(bounded, R"("a")"));
  EXPECT_TRUE(matches(bounded, R"("ab")"));
  EXPECT_TRUE(matches(bounded, R"("abc")"));
  EXPECT_FALSE(matches(bounded, R"("abcd")"));
  EXPECT_FALSE(matches(bounded, "\"a\x05\""));  // JSON allows no control character
  const std::string items =
      schema(R"({"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":2})");
  EXPECT_FALSE(matches(items, "[]"));
  EXPECT_TRUE(matches(items, "[true]"));
  EXPECT_TRUE(matches(items, "[true, false]"));
  EXPECT_FALSE(matches(items, "[true, false, true]"));
}

TEST(MatcherTest, RecursiveSchemas) {
  const std::string tree = schema(
      R"({"$defs":{"node":{"type":"object","properties":{"v":{"type":"integer"},)"
      R"("kids":{"type":"array","items":{"$ref":"#/$defs/node"}}},"required":["v","kids"]}},)"
      R"("$ref":"#/$defs/node"})");
  EXPECT_TRUE(matches(tree, R"({"v": 1, "kids": []})"));
  EXPECT_TRUE(matches(
      tree,
      R"({"v": 1, "kids": [{"v": 2, "kids": [{"v": 3, "kids": []}]}, {"v": 4, "kids": []}]})"));
  EXPECT_FALSE(matches(tree, R"({"v": 1, "kids": [2]})"));
}

TEST(MatcherTest, EveryFormat) {
  EXPECT_TRUE(matches(tag(R"({"type":"const_string","value":"yes"})"), "yes"));
  EXPECT_FALSE(matches(tag(R"({"type":"const_string","value":"yes"})"), "yesyes"));
  const std::string regex = tag(R"({"type":"regex","pattern":"[0-9]{3}-[a-f]+"})");
  EXPECT_TRUE(matches(regex, "123-abc"));
  EXPECT_FALSE(matches(regex, "12-abc"));
  const std::string ebnf = tag(
      R"({"type":"grammar","grammar":"root ::= item (\",\" item)*\nitem ::= [a-z]+ | \"(\" root \")\""})");
  EXPECT_TRUE(matches(ebnf, "a,(b,(c)),d"));
  EXPECT_FALSE(matches(ebnf, "a,(b"));
  const std::string either =
      tag(R"({"type":"or","elements":[{"type":"const_string","value":"cat"},)"
          R"({"type":"sequence","elements":[{"type":"const_string","value":"dog"},)"
          R"({"type":"regex","pattern":"[0-9]"}]}]})");
  EXPECT_TRUE(matches(either, "cat"));
  EXPECT_TRUE(matches(either, "dog4"));
  EXPECT_FALSE(matches(either, "dog"));
  const std::string tool =
      R"({"type":"tag","begin":"<tool_call>","content":{"type":"json_schema","json_schema":)" +
      kPerson + R"(},"end":"</tool_call>"})";
  EXPECT_TRUE(matches(tag(tool), R"(<tool_call>{"name": "f", "age": 1}</tool_call>)"));
  const std::string lazily =
      tag(R"({"type":"triggered_tags","triggers":["<tool_call>"],"tags":[)" + tool + "]}");
  EXPECT_TRUE(matches(lazily, "Nothing to call."));
  EXPECT_TRUE(matches(lazily, R"(Well: <tool_call>{"name": "f", "age": 1}</tool_call> done)"));
  EXPECT_FALSE(matches(lazily, "Well: <tool_call>no JSON"));
}

TEST(MatcherTest, MaskAndAcceptAgreeForEveryToken) {
  const auto grammar = compile(schema(kPerson)).value();
  std::mt19937 random(3);
  for (int round = 0; round < 30; ++round) {
    const auto matcher = grammar->start({});
    random_text(*matcher, random, random() % 25);
    const auto mask = mask_of(*matcher);
    for (TokenId token = 0; token < kVocabSize; ++token) {
      const auto other = matcher->fork();
      ASSERT_EQ(static_cast<bool>(other->accept(token)), allows(mask, token)) << token;
    }
  }
}

TEST(MatcherTest, ForksRollBacksAndReplaysArriveAtTheSameMasks) {
  for (const std::string& document : {schema(kPerson), schema("true"),
                                      tag(R"({"type":"regex","pattern":"(ab|a+b|[^x]{2,9})+"})")}) {
    const auto grammar = compile(document).value();
    std::mt19937 random(11);
    for (int round = 0; round < 20; ++round) {
      const auto first = grammar->start({});
      const auto text = random_text(*first, random, 30);
      const auto fork = first->fork();
      const auto before = mask_of(*first);
      const std::size_t more = random_text(*fork, random, 10).size();
      EXPECT_EQ(mask_of(*first), before) << "a fork changed what it was forked from";
      fork->roll_back(static_cast<std::uint32_t>(more));
      EXPECT_EQ(mask_of(*fork), before);
      const auto replayed = grammar->start({});
      for (const TokenId token : text)
        ASSERT_TRUE(replayed->accept(token));
      EXPECT_EQ(mask_of(*replayed), before);
      fork->roll_back(static_cast<std::uint32_t>(text.size()));
      EXPECT_EQ(mask_of(*fork), mask_of(*grammar->start({})));
    }
  }
}

TEST(MatcherTest, StopTokensComeExactlyWhereTheTextCanEnd) {
  const auto grammar = compile(schema(R"({"type":"integer","minimum":1,"maximum":99})")).value();
  const auto matcher = grammar->start({});
  EXPECT_FALSE(may_end(*matcher));
  ASSERT_TRUE(matcher->accept('4'));
  EXPECT_TRUE(may_end(*matcher));
  EXPECT_GT(allowed_tokens(*matcher).size(), 1U);  // or another digit
  ASSERT_TRUE(matcher->accept('2'));
  EXPECT_EQ(allowed_tokens(*matcher), std::vector<TokenId>{kEnd});

  const TokenId dot = '.';  // a stop token of the request, though it is text elsewhere
  const auto stopped = grammar->start(std::vector<TokenId>{dot, kTurn});
  EXPECT_FALSE(allows(mask_of(*stopped), dot));
  ASSERT_TRUE(stopped->accept('4'));
  ASSERT_TRUE(stopped->accept('2'));
  EXPECT_EQ(allowed_tokens(*stopped), (std::vector<TokenId>{dot, kEnd, kTurn}));
}

TEST(MatcherTest, ControlTokensComeOnlyWhereTheyAreNamed) {
  const auto any = compile(tag(R"({"type":"any_text"})")).value()->start({});
  auto mask = mask_of(*any);
  EXPECT_TRUE(allows(mask, 'x'));
  EXPECT_TRUE(allows(mask, kEnd));
  EXPECT_FALSE(allows(mask, kTurn));
  EXPECT_FALSE(allows(mask, kNameless));
  EXPECT_FALSE(allows(mask, kVocabSize - 1));
  EXPECT_FALSE(any->accept(kTurn));
  // Its name may be spelled: that is text.
  EXPECT_EQ(walk(*any, "<|turn|>"), 8U);
  const auto quoted = compile(schema(R"({"const":"<|turn|>"})")).value()->start({});
  ASSERT_TRUE(quoted->accept('"'));
  EXPECT_FALSE(allows(mask_of(*quoted), kTurn));
  const auto named =
      compile(tag(R"({"type":"const_string","value":"<|turn|>"})")).value()->start({});
  EXPECT_TRUE(allows(mask_of(*named), kTurn));
  ASSERT_TRUE(named->accept(kTurn));
  EXPECT_TRUE(may_end(*named));
}

TEST(MatcherTest, NothingFollowsAStopToken) {
  const auto matcher = compile(tag(R"({"type":"const_string","value":"a"})")).value()->start({});
  ASSERT_TRUE(matcher->accept('a'));
  ASSERT_TRUE(matcher->accept(kEnd));
  EXPECT_FALSE(matcher->accept('a'));
  matcher->roll_back(1);
  EXPECT_TRUE(may_end(*matcher));
}

TEST(MatcherTest, RandomTextsEnd) {
  const auto grammar = compile(schema(
      R"({"type":"object","properties":{"a":{"type":"string","maxLength":8},"b":{"type":"array",)"
      R"("items":{"type":"number"},"maxItems":3},"c":{"enum":[1,"x",null]}},"required":["a","c"]})"));
  ASSERT_TRUE(grammar);
  std::mt19937 random(17);
  int ended = 0;
  for (int round = 0; round < 40; ++round) {
    const auto matcher = (*grammar)->start({});
    ended += random_text(*matcher, random, 400).size() < 400 ? 1 : 0;
  }
  EXPECT_EQ(ended, 40);
}

}  // namespace
}  // namespace thaw::grammar

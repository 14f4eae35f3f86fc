#include "engine/text/hf_tokenizer.h"

#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/text/tokenizer.h"
#include "tests/text/hf_fixture.h"
#include "tests/text/tokenizer_parity.h"

namespace thaw::text {
namespace {

using ::testing::HasSubstr;
using Ids = std::vector<TokenId>;

std::unique_ptr<Tokenizer> make(const json& tokenizer, const std::string& config = {}) {
  return Tokenizer::create(read_json(tokenizer, config).value().spec).value();
}

std::string error_of(const json& tokenizer, const std::string& config = {}) {
  const auto read = read_json(tokenizer, config);
  return read ? "no error" : read.error().to_string();
}

Ids ids_of(const Tokenizer& tokenizer, std::initializer_list<const char*> tokens) {
  Ids ids;
  for (const char* token : tokens) {
    ids.push_back(tokenizer.find(token));
  }
  return ids;
}

class SmallHfVocabulary : public ::testing::TestWithParam<const char*> {};

TEST_P(SmallHfVocabulary, ReadsAsTheSameTokenizer) {
  const json tokenizer = small_byte_level(GetParam());
  const auto read = read_json(tokenizer);
  ASSERT_TRUE(read) << read.error().to_string();
  EXPECT_EQ(read->spec.pre_tokenizer, GetParam()) << "the fast rule is used";
  expect_parity(*make(tokenizer), read_fixture(std::string("tokenizer_") + GetParam() + ".json"));
}

// The same regular expression in other words has no rule of its own.
TEST_P(SmallHfVocabulary, SplitsByAnyRegularExpression) {
  json tokenizer = small_byte_level(GetParam());
  json& parts = tokenizer["pre_tokenizer"]["pretokenizers"];
  if (parts.size() == 1) {
    parts[0]["use_regex"] = false;
    const json split = {{"type", "Split"}, {"behavior", "Isolated"}, {"invert", false}};
    parts.insert(parts.begin(), split);
    parts[0]["pattern"]["Regex"] =
        R"((?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+))";
  } else {
    parts[0]["pattern"]["Regex"] = "(?:" + parts[0]["pattern"]["Regex"].get<std::string>() + ")";
  }
  const auto read = read_json(tokenizer);
  ASSERT_TRUE(read) << read.error().to_string();
  EXPECT_EQ(read->spec.pre_tokenizer, "");
  ASSERT_EQ(read->spec.splits.size(), 1u);
  // PCRE2's Unicode is older than Hugging Face's: a few characters have other classes there.
  const auto fast = make(small_byte_level(GetParam()));
  const auto slow = make(tokenizer);
  int different = 0;
  for (const std::string& line : fixture_lines(3)) {
    different += slow->encode(line, false) == fast->encode(line, false) ? 0 : 1;
  }
  EXPECT_LE(different, 17) << "one in a hundred of these random lines";
  EXPECT_EQ(slow->encode("Hello, it's 12345  spaces\n\n x\xFFy", false),
            fast->encode("Hello, it's 12345  spaces\n\n x\xFFy", false));
}

INSTANTIATE_TEST_SUITE_P(Families, SmallHfVocabulary,
                         ::testing::Values("llama-bpe", "qwen2", "gpt-2"),
                         [](const auto& info) -> std::string {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(SentencePiece, EncodesWithByteFallback) {
  const auto tokenizer = make(tiny_sentence_piece());
  EXPECT_EQ(tokenizer->encode("ab", false), ids_of(*tokenizer, {" ab"}));
  EXPECT_EQ(tokenizer->encode(" ab", false), ids_of(*tokenizer, {" ", " ab"}));
  EXPECT_EQ(tokenizer->encode("▁ab", false), ids_of(*tokenizer, {" ", " ab"}))
      << "U+2581 in a text is a space";
  EXPECT_EQ(tokenizer->encode("   b", false), ids_of(*tokenizer, {"  ", "  ", "b"}));
  EXPECT_EQ(tokenizer->encode("é漢", false), (Ids{259, 267, 3 + 0xE6, 3 + 0xBC, 3 + 0xA2}));
  EXPECT_EQ(tokenizer->encode("\xE6\xBC", false), (Ids{259, 3 + 0xE6, 3 + 0xBC}));
  EXPECT_EQ(tokenizer->encode("", false), Ids{});
  EXPECT_EQ(tokenizer->encode("<0x41>", false).size(), 7u) << "byte tokens match no text";
}

TEST(SentencePiece, PrefixesEveryPartBetweenSpecials) {
  const auto tokenizer = make(tiny_sentence_piece());
  EXPECT_EQ(tokenizer->encode("<s>ab</s>ab", true),
            ids_of(*tokenizer, {"<s>", " ab", "</s>", " ab"}));
  const TextSpan spans[] = {{"<s>", true}, {"a", false}, {"b", true}, {"</s>", false}};
  const Ids ids = tokenizer->encode_spans(spans);
  EXPECT_EQ((Ids{ids.begin(), ids.begin() + 2}), ids_of(*tokenizer, {"<s>", " ab"}));
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 0) << "text cannot be a control token";
}

TEST(SentencePiece, MetaspaceSchemes) {
  json tokenizer = tiny_sentence_piece();
  tokenizer["normalizer"] = nullptr;
  json& metaspace = tokenizer["pre_tokenizer"];
  metaspace = {{"type", "Metaspace"}, {"replacement", "▁"}, {"split", false}};
  const auto encoded = [&tokenizer](const char* scheme, const char* text) {
    tokenizer["pre_tokenizer"]["prepend_scheme"] = scheme;
    const auto made = make(tokenizer);
    std::string shown;
    for (const TokenId id : made->encode(text, true)) {
      shown += std::string(made->token_bytes(id, true)) + "|";
    }
    return shown;
  };
  EXPECT_EQ(encoded("always", "ab</s>ab"), " ab|</s>| ab|");
  EXPECT_EQ(encoded("always", " ab</s> ab"), " ab|</s>| ab|");
  EXPECT_EQ(encoded("first", "ab</s>ab"), " ab|</s>|ab|");
  EXPECT_EQ(encoded("first", "<s>ab"), "<s>|ab|");
  EXPECT_EQ(encoded("never", "ab</s>ab"), "ab|</s>|ab|");
  EXPECT_EQ(encoded("never", "a   b"), "a|  | |b|");
  metaspace["split"] = true;
  EXPECT_EQ(encoded("never", "a   b"), "a| | | |b|");
  metaspace.erase("prepend_scheme");
  metaspace["add_prefix_space"] = false;
  EXPECT_EQ(make(tokenizer)->encode("ab", false).front(), make(tokenizer)->find("ab"));
}

TEST(SentencePiece, UnknownCharactersWithoutByteTokens) {
  json tokenizer = tiny_sentence_piece();
  tokenizer["model"]["byte_fallback"] = false;
  EXPECT_EQ(make(tokenizer)->encode("a漢語b", false), (Ids{263, 0, 261}));
  tokenizer["model"]["fuse_unk"] = false;
  EXPECT_EQ(make(tokenizer)->encode("a漢語b", false), (Ids{263, 0, 0, 261}));
  tokenizer["model"]["unk_token"] = nullptr;
  EXPECT_EQ(make(tokenizer)->encode("a漢語b", false), Ids{265}) << "neighbours now";
}

// A whole text loses the space that encoding put before it; a continuation, which a stream is
// after its prompt and a fork after its cut, keeps it, so that the parts join to the whole.
TEST(SentencePiece, DecodesWholeTextsAndContinuations) {
  const auto tokenizer = make(tiny_sentence_piece());
  for (const std::string text : {"ab ab", " ab", "  a", "é漢字 a", "b\n\nc", "漢", "a "}) {
    const Ids ids = tokenizer->encode(text, false);
    EXPECT_EQ(tokenizer->decode(ids, false), text);
    EXPECT_EQ(tokenizer->decode(ids, false, DecodeAs::kContinuation), " " + text);
    for (std::size_t cut = 0; cut <= ids.size(); ++cut) {
      const std::span<const TokenId> all = ids;
      const std::string head = tokenizer->decode(all.first(cut), false);
      const std::string tail = tokenizer->decode(all.subspan(cut), false, DecodeAs::kContinuation);
      EXPECT_EQ(head + tail, cut > 0 ? text : " " + text) << "cut at " << cut;
      IncrementalDecoder stream(*tokenizer, false);
      std::string streamed;
      for (const TokenId id : all.subspan(cut)) {
        streamed += stream.push(id);
      }
      EXPECT_EQ(streamed + stream.finish(), replace_invalid_utf8(tail));
    }
    IncrementalDecoder whole(*tokenizer, false, DecodeAs::kWholeText);
    std::string streamed = whole.push(1);  // a control token that is not shown is no start
    for (const TokenId id : ids) {
      streamed += whole.push(id);
    }
    EXPECT_EQ(streamed + whole.finish(), text);
  }
  EXPECT_EQ(tokenizer->decode(ids_of(*tokenizer, {"<s>", " ab"}), true), "<s> ab");
}

TEST(SentencePiece, MetaspaceDecoderDropsTheFirstTokensSpaces) {
  json tokenizer = tiny_sentence_piece();
  tokenizer["decoder"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}};
  const auto made = make(tokenizer);
  EXPECT_EQ(made->decode(ids_of(*made, {"  ", " ab"}), false), " ab");
  EXPECT_EQ(made->decode(ids_of(*made, {" ab", " ab"}), false), "ab ab");
}

TEST(HfTokenizer, ComposesWhereTheNormalizerIsNfc) {
  json tokenizer = small_byte_level("qwen2");
  tokenizer["normalizer"] = {{"type", "NFC"}};
  const auto made = make(tokenizer);
  const auto text_of = [&made](const std::string& text) {
    return made->decode(made->encode(text, false), false);
  };
  EXPECT_EQ(text_of("e\u0301"), "é");
  EXPECT_EQ(text_of("\xFF"
                    "e\u0301\xFE"),
            "\xFF"
            "é\xFE")
      << "bytes that are not UTF-8 stay";
  EXPECT_EQ(text_of("\u1100\u1161\u11A8 가\u11A8"), "각 각");
  EXPECT_EQ(text_of("\u212B\u2126"), "Å\u03A9");
  EXPECT_EQ(text_of("e\u0323\u0302 e\u0302\u0323"), "ệ ệ");
  EXPECT_EQ(text_of("plain ünïcode 漢字 😀"), "plain ünïcode 漢字 😀");
}

TEST(HfTokenizer, AddedTokensMayStripTheSpaceAroundThem) {
  json tokenizer = small_byte_level("gpt-2");
  const std::size_t id = tokenizer["model"]["vocab"].size() + tokenizer["added_tokens"].size();
  tokenizer["added_tokens"].push_back(
      {{"id", id}, {"content", "<mask>"}, {"special", true}, {"lstrip", true}, {"rstrip", true}});
  const auto made = make(tokenizer);
  const auto mask = static_cast<TokenId>(id);
  Ids expected = made->encode("a", false);
  const Ids after = made->encode("b", false);
  expected.push_back(mask);
  expected.insert(expected.end(), after.begin(), after.end());
  EXPECT_EQ(made->encode("a \n\u3000<mask>\t b", true), expected);
  EXPECT_EQ(made->encode("  <mask> ", true), Ids{mask});
}

TEST(HfTokenizer, BosAndEosComeFromConfigThenPostProcessor) {
  const json tokenizer = tiny_sentence_piece();
  const auto spec_of = [&tokenizer](const std::string& config) {
    return read_json(tokenizer, config).value().spec;
  };
  EXPECT_EQ(spec_of("").bos, 1);
  EXPECT_TRUE(spec_of("").add_bos);
  EXPECT_TRUE(spec_of("").eos.empty());
  const TokenizerSpec spec = spec_of(
      R"({"bos_token": {"content": "</s>"}, "eos_token": "<unk>", "add_bos_token": false})");
  EXPECT_EQ(spec.bos, 2);
  EXPECT_FALSE(spec.add_bos);
  EXPECT_EQ(spec.eos, Ids{0});
  EXPECT_FALSE(spec.add_eos);
  EXPECT_TRUE(spec_of(R"({"eos_token": "</s>", "add_eos_token": true})").add_eos);
  EXPECT_THAT(error_of(tokenizer, R"({"eos_token": "<end>"})"),
              HasSubstr("eos_token \"<end>\" is not in the vocabulary"));

  const std::string text = tokenizer.dump();
  HfTokenizerFiles files;
  files.tokenizer_json = text;
  files.special_tokens_map_json = R"({"eos_token": {"content": "</s>"}})";
  EXPECT_EQ(read_hf_tokenizer(files).value().spec.eos, Ids{2});
  files.tokenizer_config_json = R"({"eos_token": null})";
  EXPECT_TRUE(read_hf_tokenizer(files).value().spec.eos.empty());
}

TEST(HfTokenizer, TokensOfTheConfigAreAdded) {
  const json tokenizer = tiny_sentence_piece();
  const std::string config =
      R"({"added_tokens_decoder": {"269": {"content": "[INST]", "special": true},
                                   "1": {"content": "<s>", "special": true}}})";
  EXPECT_EQ(make(tokenizer, config)->encode("[INST]ab", true), (Ids{269, 265}));
  EXPECT_THAT(error_of(tokenizer, R"({"added_tokens_decoder": {"1": {"content": "<t>"}}})"),
              HasSubstr("id 1 is given to \"<s>\" and to \"<t>\""));
  EXPECT_THAT(error_of(tokenizer, R"({"added_tokens_decoder": {"x": {"content": "<t>"}}})"),
              HasSubstr("has \"x\", which is not an id"));
}

TEST(HfTokenizer, ChatTemplatesByName) {
  const json tokenizer = tiny_sentence_piece();
  EXPECT_FALSE(read_json(tokenizer).value().chat_template);
  EXPECT_EQ(read_json(tokenizer, R"({"chat_template": "x"})").value().chat_template, "x");
  const auto read = read_json(tokenizer, R"({"tokenizer_class": "LlamaTokenizer", "chat_template": [
      {"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(read->chat_template, "d");
  EXPECT_EQ(read->named_templates,
            (std::vector<std::pair<std::string, std::string>>{{"tool_use", "t"}}));
  EXPECT_EQ(read->tokenizer_class, "LlamaTokenizer");
  EXPECT_THAT(error_of(tokenizer, R"({"chat_template": 5})"), HasSubstr("neither a string nor"));
  EXPECT_THAT(error_of(tokenizer, R"({"chat_template": [{"name": "a"}]})"),
              HasSubstr("an entry without"));
  const std::string text = tokenizer.dump();
  HfTokenizerFiles files;
  files.tokenizer_json = text;
  files.tokenizer_config_json = R"({"chat_template": "x"})";
  files.chat_template_jinja = "file";
  EXPECT_EQ(read_hf_tokenizer(files).value().chat_template, "file");
}

TEST(HfTokenizer, NamesWhatIsNotSupported) {
  const auto with = [](auto change) {
    json tokenizer = tiny_sentence_piece();
    change(tokenizer);
    return error_of(tokenizer);
  };
  EXPECT_THAT(with([](json& t) { t["model"]["type"] = "Unigram"; }),
              HasSubstr("model type \"Unigram\" is not supported; supported is BPE"));
  EXPECT_THAT(with([](json& t) {
                t["normalizer"] = {{"type", "Lowercase"}};
              }),
              HasSubstr("Lowercase"));
  EXPECT_THAT(with([](json& t) {
                t["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
              }),
              HasSubstr("BertPreTokenizer"));
  EXPECT_THAT(with([](json& t) {
                t["decoder"] = {{"type", "WordPiece"}};
              }),
              HasSubstr("WordPiece"));
  EXPECT_THAT(with([](json& t) {
                t["post_processor"] = {{"type", "BertProcessing"}};
              }),
              HasSubstr("BertProcessing"));
  EXPECT_THAT(with([](json& t) { t["model"]["dropout"] = 0.5; }), HasSubstr("dropout"));
  EXPECT_THAT(with([](json& t) { t["model"]["end_of_word_suffix"] = "</w>"; }),
              HasSubstr("end_of_word_suffix \"</w>\""));
  EXPECT_THAT(with([](json& t) { t["added_tokens"][0]["single_word"] = true; }),
              HasSubstr("single_word"));
  EXPECT_THAT(with([](json& t) { t["normalizer"] = nullptr; }), HasSubstr("no ByteLevel"));
  json split = small_byte_level("qwen2");
  split["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext";
  EXPECT_THAT(error_of(split), HasSubstr("MergedWithNext"));
  split["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Isolated";
  split["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a(?<!b+)(";
  EXPECT_THAT(Tokenizer::create(read_json(split).value().spec).error().to_string(),
              HasSubstr("regular expression \"a(?<!b+)(\" is not supported"));
  json nested = {{"type", "NFC"}};
  for (int i = 0; i < 20; ++i) {
    nested = {{"type", "Sequence"}, {"normalizers", json::array({nested})}};
  }
  EXPECT_THAT(with([&nested](json& t) { t["normalizer"] = nested; }), HasSubstr("too deep"));
}

TEST(HfTokenizer, NamesWhatDoesNotFit) {
  const auto with = [](auto change) {
    json tokenizer = tiny_sentence_piece();
    change(tokenizer);
    const auto read = read_json(tokenizer);
    if (!read) return read.error().to_string();
    const auto made = Tokenizer::create(read->spec);
    return made ? std::string("no error") : made.error().to_string();
  };
  EXPECT_THAT(with([](json& t) { t["model"]["vocab"]["x"] = 260; }),
              HasSubstr("id 260 is given to"));
  EXPECT_THAT(with([](json& t) { t["model"]["vocab"]["x"] = 1'000'000'000; }),
              HasSubstr("has id 1000000000; with this many tokens"));
  EXPECT_THAT(with([](json& t) { t["model"]["vocab"]["x"] = -1; }), HasSubstr("has id -1"));
  EXPECT_THAT(with([](json& t) { t["model"]["vocab"]["x"] = "y"; }), HasSubstr("right shape"));
  EXPECT_EQ(with([](json& t) { t["model"]["vocab"]["x"] = 300; }), "no error") << "holes are fine";
  EXPECT_THAT(with([](json& t) { t["model"]["merges"].push_back("x y"); }),
              HasSubstr("merge 5 \"x y\" has a left side that is not in the vocabulary"));
  EXPECT_THAT(with([](json& t) { t["model"]["merges"].push_back("a"); }),
              HasSubstr("is not two tokens"));
  EXPECT_THAT(with([](json& t) {
                t["model"]["merges"].push_back(json::array({"a", "b", "c"}));
              }),
              HasSubstr("merge 5 has 3 sides"));
  EXPECT_THAT(with([](json& t) { t["model"]["unk_token"] = "<none>"; }),
              HasSubstr("unk_token \"<none>\""));
  EXPECT_THAT(with([](json& t) { t.erase("model"); }), HasSubstr("no \"model\""));
  EXPECT_THAT(error_of(json::array()), HasSubstr("right shape"));
  EXPECT_THAT(read_hf_tokenizer({}).error().to_string(), HasSubstr("empty or not there"));
  EXPECT_THAT(error_of(tiny_sentence_piece(), "{"), HasSubstr("tokenizer_config.json is not JSON"));
}

}  // namespace
}  // namespace thaw::text

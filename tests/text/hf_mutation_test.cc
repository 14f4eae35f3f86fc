// Damaged tokenizer files: an error or a tokenizer that works, never a crash.

#include <random>
#include <string>

#include <gtest/gtest.h>

#include "engine/text/tokenizer.h"
#include "tests/text/hf_fixture.h"

namespace thaw::text {
namespace {

/// Whether the files give a tokenizer; if so it is used a little.
bool survives(const std::string& tokenizer, const std::string& config) {
  HfTokenizerFiles files;
  files.tokenizer_json = tokenizer;
  files.tokenizer_config_json = config;
  auto read = read_hf_tokenizer(files);
  if (!read) {
    EXPECT_FALSE(read.error().message.empty());
    return false;
  }
  const auto made = Tokenizer::create(std::move(read->spec));
  if (!made) {
    EXPECT_FALSE(made.error().message.empty());
    return false;
  }
  const auto ids = (*made)->encode("ab  a <s>é漢\xFF</s> 12'll", true);
  for (const TokenId id : ids) {
    EXPECT_TRUE(id >= 0 && id < (*made)->vocab_size()) << id;
  }
  (*made)->decode(ids, true);
  return true;
}

std::string mutated(std::string text, std::mt19937& random) {
  static const std::string kPieces[] = {"null", "{}", "[]", "-1", "1e99", "\"\"",   "true",
                                        "[[[[", "}",  "\"", ",",  "\\u0", "<0x41>", "\xE2\x96\x81"};
  const auto below = [&random](std::size_t n) { return random() % n; };
  for (std::size_t i = 0, count = 1 + below(3); i < count && !text.empty(); ++i) {
    const std::size_t at = below(text.size());
    switch (below(5)) {
      case 0:
        text[at] = static_cast<char>(below(256));
        break;
      case 1:
        text.erase(at, 1 + below(20));
        break;
      case 2:
        text.insert(at, kPieces[below(std::size(kPieces))]);
        break;
      case 3:
        text.insert(at, text.substr(below(text.size()), below(60)));
        break;
      default: {  // another digit: ids and flags change their meaning
        const std::size_t digit = text.find_first_of("0123456789", at);
        if (digit != std::string::npos) text[digit] = static_cast<char>('0' + below(10));
      }
    }
  }
  return text;
}

TEST(HfMutation, DamagedFilesNeverCrash) {
  const unsigned seed = 77;
  std::mt19937 random(seed);
  const std::string config =
      R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true,
          "added_tokens_decoder": {"269": {"content": "[I]", "special": true, "lstrip": true}},
          "chat_template": [{"name": "default", "template": "{{ x }}"}]})";
  int good = 0;
  int bad = 0;
  for (const json& tokenizer : {tiny_sentence_piece(), small_byte_level("qwen2")}) {
    const std::string text = tokenizer.dump();
    ASSERT_TRUE(survives(text, ""));
    for (int i = 0; i < 1500; ++i) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " case " + std::to_string(i));
      ++(survives(mutated(text, random), "") ? good : bad);
      if (i < 300) survives(text, mutated(config, random));
    }
    for (std::size_t size = 0; size < text.size(); size += 1 + text.size() / 200) {
      EXPECT_FALSE(survives(text.substr(0, size), "")) << "cut to " << size << " bytes";
    }
  }
  EXPECT_GT(good, 100);
  EXPECT_GT(bad, 100);
}

}  // namespace
}  // namespace thaw::text

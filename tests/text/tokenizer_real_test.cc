// Real vocabularies against Hugging Face `tokenizers` (scripts/fixtures/tokenizer_real.py). Those
// named Long need scripts/get_tokenizers.py --long and run in `make test-tokenizers`.

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/text/real_tokenizers.h"
#include "tests/text/tokenizer_parity.h"

namespace thaw::text {
namespace {

std::string bytes_hash(std::string_view text) {
  std::uint32_t value = 0x811C9DC5u;
  for (const char c : text) {
    value = (value ^ static_cast<std::uint8_t>(c)) * 0x01000193u;
  }
  char hash[9];
  std::snprintf(hash, sizeof(hash), "%08x", value);
  return hash;
}

/// Counts what differs and shows the first few.
class Differences {
 public:
  void check(bool equal, const std::string& line, const std::vector<TokenId>& ids) {
    if (!equal && ++count_ <= 5) ADD_FAILURE() << describe(line, ids);
  }
  int count() const { return count_; }

 private:
  int count_ = 0;
};

void expect_real_parity(const std::string& name, TokenizerSpec spec) {
  const auto created = Tokenizer::create(std::move(spec));
  ASSERT_TRUE(created) << created.error().to_string();
  const Tokenizer& tokenizer = **created;
  const nlohmann::json expected = read_fixture("tokenizer_real_" + name + ".json");
  const std::vector<std::string> lines = fixture_lines(1);
  const std::string plain = expected.at("plain");
  const std::string decoded = expected.at("decoded");
  const std::string wrapped = expected.at("wrapped");
  const auto specials = expected.at("specials").get<std::vector<std::string>>();
  ASSERT_GE(lines.size(), 5000u);
  ASSERT_EQ(plain.size(), 8 * lines.size());
  ASSERT_EQ(decoded.size(), 8 * lines.size());
  ASSERT_GE(wrapped.size(), 8u * 500);

  Differences differences;
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::vector<TokenId> ids = tokenizer.encode(lines[i], false);
    tokens += ids.size();
    differences.check(ids_hash(ids) == plain.substr(8 * i, 8), lines[i], ids);
    const std::string text = tokenizer.decode(ids, false);
    differences.check(bytes_hash(text) == decoded.substr(8 * i, 8), "decoded: " + lines[i], ids);
    IncrementalDecoder decoder(tokenizer, false, DecodeAs::kWholeText);
    std::string streamed;
    for (const TokenId id : ids) {
      streamed += decoder.push(id);
    }
    streamed += decoder.finish();
    ASSERT_EQ(streamed, text) << lines[i];
  }
  EXPECT_EQ(tokens, expected.at("tokens").get<std::size_t>());
  for (std::size_t i = 0; i < wrapped.size() / 8; ++i) {
    const std::string line = specials[i % specials.size()] + lines[i] +
                             specials[(i + 1) % specials.size()] + lines[i + 1];
    const std::vector<TokenId> ids = tokenizer.encode(line, true);
    differences.check(ids_hash(ids) == wrapped.substr(8 * i, 8), line, ids);
  }
  EXPECT_EQ(differences.count(), 0);
}

class RealVocabulary : public ::testing::TestWithParam<const char*> {};

TEST_P(RealVocabulary, EqualsHuggingFace) {
  const std::string name = GetParam();
  expect_real_parity(name, spec_from_json(read_vocabulary_file(name, "tokenizer.json")));
}

INSTANTIATE_TEST_SUITE_P(Wheel, RealVocabulary,
                         ::testing::Values("mistral-v1", "mistral-v3", "tekken"),
                         [](const auto& info) -> std::string {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(RealVocabularyByScores, EqualsTheMergesOfTheSameModel) {
  for (const char* name : {"mistral-v1", "mistral-v3"}) {
    expect_real_parity(name, scored_spec(name));
  }
}

class DISABLED_LongVocabulary : public ::testing::TestWithParam<const char*> {};

TEST_P(DISABLED_LongVocabulary, EqualsHuggingFace) {
  expect_real_parity(GetParam(), spec_from_vocabulary_gguf(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Sdist, DISABLED_LongVocabulary,
                         ::testing::Values("llama-spm", "llama-bpe", "qwen2", "gpt-2"),
                         [](const auto& info) -> std::string {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace thaw::text

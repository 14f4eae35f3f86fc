#include "tests/text/tokenizer_parity.h"

namespace thaw::text {
namespace {

class SmallVocabulary : public ::testing::TestWithParam<const char*> {};

TEST_P(SmallVocabulary, EqualsHuggingFace) {
  expect_parity(*small_tokenizer(GetParam()),
                read_fixture(std::string("tokenizer_") + GetParam() + ".json"));
}

INSTANTIATE_TEST_SUITE_P(Families, SmallVocabulary,
                         ::testing::Values("llama-bpe", "qwen2", "gpt-2"),
                         [](const auto& info) -> std::string {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace thaw::text

// The default model's own tokenizer, read from its GGUF.

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/text/model_tokenizer.h"
#include "tests/text/tokenizer_parity.h"

namespace thaw::text {
namespace {

TEST(DefaultModel, EqualsHuggingFace) {
  ASSERT_GE(fixture_lines(1).size(), 5000u);
  expect_parity(*default_model_tokenizer(), read_fixture("tokenizer_smollm.json"));
}

TEST(DefaultModel, LinesInATemplateEqualTheirJoinedText) {
  const std::unique_ptr<Tokenizer> tokenizer = default_model_tokenizer();
  int checked = 0;
  for (const std::string& line : fixture_lines(3)) {
    if (tokenizer->encode(line, true) != tokenizer->encode(line, false)) continue;
    const std::string before = "<|im_start|>user\n";
    const std::string after = "<|im_end|>\n<|im_start|>assistant\n";
    const TextSpan spans[] = {{before, true}, {line, false}, {after, true}};
    ASSERT_EQ(tokenizer->encode_spans(spans), tokenizer->encode(before + line + after, true))
        << line;
    ++checked;
  }
  EXPECT_GT(checked, 1000);
}

TEST(DefaultModel, RoundTripsWhatItsBytesCanSpell) {
  const std::unique_ptr<Tokenizer> tokenizer = default_model_tokenizer();
  // Its vocabulary has no token for some control characters and for lead bytes F1 and F2.
  const std::string missing = "\x04\x06\x13\x14\x16\x1d";
  int checked = 0;
  for (const std::string& line : fixture_lines(1)) {
    if (line.find_first_of(missing) != std::string::npos) continue;
    if (line.find('\xF1') != std::string::npos || line.find('\xF2') != std::string::npos) continue;
    ASSERT_EQ(tokenizer->decode(tokenizer->encode(line, false), false), line);
    ++checked;
  }
  EXPECT_GT(checked, 4000);
}

}  // namespace
}  // namespace thaw::text

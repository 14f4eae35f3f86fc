// tokenizer.json and, after a zero byte, tokenizer_config.json: an error or a tokenizer that works.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "engine/text/hf_tokenizer.h"
#include "engine/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw::text;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t zero = input.find('\0');
  HfTokenizerFiles files;
  files.tokenizer_json = input.substr(0, zero);
  if (zero != std::string_view::npos) files.tokenizer_config_json = input.substr(zero + 1);
  auto read = read_hf_tokenizer(files);
  if (!read) return 0;
  const auto tokenizer = Tokenizer::create(std::move(read->spec));
  if (!tokenizer) return 0;
  const auto ids = (*tokenizer)->encode("ab  a <s>\xC3\xA9 \xE6\xBC\xA2\xFF</s> 12'll\n", true);
  for (const thaw::TokenId id : ids) {
    if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
  }
  (*tokenizer)->decode(ids, true);
  return 0;
}

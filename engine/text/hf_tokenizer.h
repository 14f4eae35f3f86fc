#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/result.h"
#include "engine/text/tokenizer_spec.h"

namespace thaw::text {

/// Contents of the files that a Hugging Face model directory keeps its tokenizer in; empty: not
/// there. This room reads no files.
struct HfTokenizerFiles {
  std::string_view tokenizer_json;
  std::string_view tokenizer_config_json;
  std::string_view special_tokens_map_json;
  std::string_view chat_template_jinja;  ///< goes before a template in tokenizer_config.json
};

struct HfTokenizer {
  TokenizerSpec spec;
  /// The template for chats without a name of its own ("default").
  std::optional<std::string> chat_template;
  /// Templates by name ("tool_use", "rag"), in the file's order, "default" left out.
  std::vector<std::pair<std::string, std::string>> named_templates;
  /// tokenizer_config.json's tokenizer_class; empty where it names none.
  std::string tokenizer_class;
};

/// What the files describe, for Tokenizer::create. Byte-level BPE and BPE with byte fallback, with
/// the normalizers, pre-tokenizers, decoders and post-processors that decoder-only models use.
/// BOS and whether it is added: tokenizer_config.json says so before the post-processor does.
/// `normalized` of added tokens is read as false: they match in the text as it is given.
/// Errors: kInvalidArgument for what is not JSON of the right shape or does not fit together (ids
/// given twice, ids far beyond the number of tokens), kUnsupported, naming the construct and what
/// is supported. Memory stays within a small multiple of the files.
Result<HfTokenizer> read_hf_tokenizer(const HfTokenizerFiles& files);

}  // namespace thaw::text

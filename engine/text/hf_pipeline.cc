#include "engine/text/hf_pipeline.h"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/tokenizer_normalize.h"
#include "engine/text/tokenizer_split.h"

namespace thaw::text {
namespace {

using nlohmann::json;
using Style = TokenizerSpec::Style;
using SpacePrefix = TokenizerSpec::SpacePrefix;
using DecodeStart = TokenizerSpec::DecodeStart;

constexpr int kMaxNesting = 8;

std::string shown(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 200);
}

std::string text_of(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

bool flag_of(const json& object, const char* key, bool otherwise) {
  const auto it = object.find(key);
  return it != object.end() && it->is_boolean() ? it->get<bool>() : otherwise;
}

/// The parts of nested Sequences, one after the other; `list` is the key of a Sequence's parts.
Result<void> flatten(const json& part, const char* list, int nesting, std::vector<json>& out) {
  if (part.is_null()) return {};
  if (!part.is_object())
    return unsupported_tokenizer_json("a part of the pipeline is " + shown(part));
  if (text_of(part, "type") != "Sequence") {
    out.push_back(part);
    return {};
  }
  if (nesting == 0) return unsupported_tokenizer_json("Sequences are nested too deep");
  const auto parts = part.find(list);
  if (parts == part.end() || !parts->is_array()) {
    return unsupported_tokenizer_json("a Sequence has no list \"" + std::string(list) + "\"");
  }
  for (const json& inner : *parts) {
    if (auto flat = flatten(inner, list, nesting - 1, out); !flat) return flat;
  }
  return {};
}

Result<std::vector<json>> flattened(const json& part, const char* list) {
  std::vector<json> out;
  if (auto flat = flatten(part, list, kMaxNesting, out); !flat) return flat.error();
  return out;
}

bool is_space_mark(const std::string& text) {
  return text == kSpaceMark;
}

/// {"String": " "} replaced by the space mark, or the other way round.
bool replaces(const json& part, std::string_view from, std::string_view to) {
  const auto pattern = part.find("pattern");
  return pattern != part.end() && pattern->is_object() && text_of(*pattern, "String") == from &&
         text_of(part, "content") == to;
}

Result<void> apply_normalizer(const json& normalizer, TokenizerSpec& spec, bool& marks_spaces) {
  const auto parts = flattened(normalizer, "normalizers");
  if (!parts) return parts.error();
  for (const json& part : *parts) {
    const std::string type = text_of(part, "type");
    const std::string prepended = text_of(part, "prepend");
    if (type == "NFC") {
      spec.normalize_nfc = true;
    } else if (type == "Prepend" && (is_space_mark(prepended) || prepended == " ")) {
      spec.space_prefix = SpacePrefix::kEveryPart;
    } else if (type == "Replace" && replaces(part, " ", kSpaceMark)) {
      marks_spaces = true;
    } else {
      return unsupported_tokenizer_json(
          "normalizer " + shown(part) +
          " is not supported; supported are NFC, Prepend of a space, Replace of "
          "\" \" by \"\u2581\", and Sequence");
    }
  }
  return {};
}

/// A literal text as a regular expression.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}-/#&~ ").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

Result<SplitRegex> split_of(const json& part) {
  SplitRegex split;
  if (text_of(part, "type") == "Digits") {
    split.pattern = flag_of(part, "individual_digits", false) ? "\\p{N}" : "\\p{N}+";
    return split;
  }
  const auto pattern = part.find("pattern");
  if (pattern != part.end() && pattern->is_object()) {
    split.pattern = text_of(*pattern, "Regex");
    if (split.pattern.empty()) split.pattern = escaped(text_of(*pattern, "String"));
  }
  const std::string behavior = text_of(part, "behavior");
  const bool invert = flag_of(part, "invert", false);
  if (behavior == "Removed") {
    split.keep_matches = invert;
    split.keep_gaps = !invert;
  } else if (behavior != "Isolated") {
    return unsupported_tokenizer_json("pre-tokenizer Split has behavior \"" + behavior +
                                      "\"; supported are Isolated and Removed");
  }
  if (split.pattern.empty())
    return unsupported_tokenizer_json("pre-tokenizer " + shown(part) + " has no pattern");
  return split;
}

Result<void> apply_metaspace(const json& part, TokenizerSpec& spec) {
  const std::string replacement = text_of(part, "replacement");
  if (!is_space_mark(replacement)) {
    return unsupported_tokenizer_json("Metaspace replaces spaces by \"" + replacement +
                                      "\"; supported is \"\u2581\"");
  }
  const std::string scheme = part.contains("prepend_scheme") ? text_of(part, "prepend_scheme")
                             : flag_of(part, "add_prefix_space", true) ? "always"
                                                                       : "never";
  if (scheme == "always") {
    spec.space_prefix = SpacePrefix::kEveryPartUnlessThere;
  } else if (scheme == "first") {
    spec.space_prefix = SpacePrefix::kFirstPartUnlessThere;
  } else if (scheme != "never") {
    return unsupported_tokenizer_json("Metaspace has prepend_scheme \"" + scheme +
                                      "\"; supported are always, first and never");
  }
  spec.split_at_spaces = flag_of(part, "split", true);
  return {};
}

/// The name of the rule that equals these splits, or nothing.
std::string rule_of(const std::vector<SplitRegex>& splits) {
  std::vector<std::string_view> patterns;
  for (const SplitRegex& split : splits) {
    if (!split.keep_matches) return {};
    patterns.push_back(split.pattern);
  }
  return std::string(pre_tokenizer_by_patterns(patterns));
}

Result<void> apply_pre_tokenizer(const json& pre_tokenizer, TokenizerSpec& spec,
                                 bool& marks_spaces) {
  const auto parts = flattened(pre_tokenizer, "pretokenizers");
  if (!parts) return parts.error();
  bool byte_level = false;
  bool metaspace = false;
  for (const json& part : *parts) {
    const std::string type = text_of(part, "type");
    if (byte_level || metaspace) {
      return unsupported_tokenizer_json("pre-tokenizer " + shown(part) +
                                        " comes after ByteLevel or Metaspace, " +
                                        "which have to be the last");
    }
    if (type == "Split" || type == "Digits") {
      auto split = split_of(part);
      if (!split) return split.error();
      spec.splits.push_back(std::move(*split));
    } else if (type == "ByteLevel") {
      byte_level = true;
      if (flag_of(part, "add_prefix_space", true)) {
        if (!spec.splits.empty()) {
          return unsupported_tokenizer_json(
              "ByteLevel with add_prefix_space after a Split is not supported");
        }
        spec.space_prefix = SpacePrefix::kEveryPartUnlessThere;
      }
      if (flag_of(part, "use_regex", true)) {
        spec.splits.push_back({std::string(gpt2_pattern()), true, true});
      }
    } else if (type == "Metaspace") {
      metaspace = true;
      if (auto applied = apply_metaspace(part, spec); !applied) return applied;
    } else {
      return unsupported_tokenizer_json(
          "pre-tokenizer " + shown(part) +
          " is not supported; supported are ByteLevel, Digits, Metaspace, Split and "
          "Sequence");
    }
  }
  marks_spaces = marks_spaces || metaspace;
  spec.style = byte_level ? Style::kByteLevel : Style::kSentencePiece;
  if (byte_level && marks_spaces) {
    return unsupported_tokenizer_json(
        "ByteLevel together with \"\u2581\" for spaces is not supported");
  }
  if (!byte_level && !marks_spaces) {
    return unsupported_tokenizer_json(
        "the pre-tokenizer has no ByteLevel, and nothing writes spaces as \"\u2581\"; one of them "
        "is needed");
  }
  if (!byte_level && !spec.splits.empty()) {
    return unsupported_tokenizer_json("Split and Digits are supported with ByteLevel only");
  }
  if (const std::string rule = rule_of(spec.splits); !rule.empty()) {
    spec.pre_tokenizer = rule;
    spec.splits.clear();
  }
  return {};
}

Result<void> apply_decoder(const json& decoder, TokenizerSpec& spec) {
  const auto parts = flattened(decoder, "decoders");
  if (!parts) return parts.error();
  const bool byte_level = spec.style == Style::kByteLevel;
  for (const json& part : *parts) {
    const std::string type = text_of(part, "type");
    if (byte_level) {
      if (type == "ByteLevel") continue;
    } else if (type == "ByteFallback" || type == "Fuse" ||
               (type == "Replace" && replaces(part, kSpaceMark, " "))) {
      continue;
    } else if (type == "Strip" && text_of(part, "content") == " " && part.value("start", 0) <= 1 &&
               part.value("stop", 0) == 0) {
      if (part.value("start", 0) == 1) spec.decode_start = DecodeStart::kDropSpace;
      continue;
    } else if (type == "Metaspace" && is_space_mark(text_of(part, "replacement"))) {
      const bool drops = part.contains("prepend_scheme")
                             ? text_of(part, "prepend_scheme") != "never"
                             : flag_of(part, "add_prefix_space", true);
      if (drops) spec.decode_start = DecodeStart::kDropFirstTokenSpaces;
      continue;
    }
    return unsupported_tokenizer_json(
        "decoder " + shown(part) + " is not supported here; supported are " +
        (byte_level ? "ByteLevel"
                    : "Replace of \"\u2581\" by \" \", ByteFallback, Fuse, Strip of "
                      "one space at the start, and Metaspace"));
  }
  return {};
}

/// The ids of a special token of a TemplateProcessing.
Result<std::vector<TokenId>> template_ids(const json& part, const std::string& name) {
  const auto tokens = part.find("special_tokens");
  if (tokens != part.end() && tokens->is_object()) {
    const auto token = tokens->find(name);
    if (token != tokens->end() && token->is_object() && token->contains("ids") &&
        (*token)["ids"].is_array()) {
      std::vector<TokenId> ids;
      for (const json& id : (*token)["ids"]) {
        if (!id.is_number_integer()) break;
        ids.push_back(id.get<TokenId>());
      }
      if (!ids.empty() && ids.size() == (*token)["ids"].size()) return ids;
    }
  }
  return make_error(Errc::kInvalidArgument, "tokenizer.json: the post-processor's token \"" + name +
                                                "\" has no ids in special_tokens");
}

Result<void> apply_template(const json& part, TokenizerSpec& spec) {
  std::vector<TokenId> before;
  std::vector<TokenId> after;
  bool text_seen = false;
  const auto single = part.find("single");
  if (single == part.end() || !single->is_array()) {
    return unsupported_tokenizer_json("post-processor " + shown(part) + " has no list \"single\"");
  }
  for (const json& piece : *single) {
    if (piece.is_object() && piece.contains("Sequence")) {
      text_seen = true;
      continue;
    }
    const auto special = piece.is_object() ? piece.find("SpecialToken") : piece.end();
    if (!piece.is_object() || special == piece.end() || !special->is_object()) {
      return unsupported_tokenizer_json("post-processor has the piece " + shown(piece) +
                                        "; supported are Sequence and SpecialToken");
    }
    const auto ids = template_ids(part, text_of(*special, "id"));
    if (!ids) return ids.error();
    std::vector<TokenId>& side = text_seen ? after : before;
    side.insert(side.end(), ids->begin(), ids->end());
  }
  if (before.size() > 1 || after.size() > 1) {
    return unsupported_tokenizer_json("the post-processor puts " + std::to_string(before.size()) +
                                      " tokens before a text and " + std::to_string(after.size()) +
                                      " after it; supported is one of each");
  }
  if (!before.empty()) {
    spec.bos = before.front();
    spec.add_bos = true;
  }
  spec.add_eos = spec.add_eos || !after.empty();
  return {};
}

}  // namespace

Result<void> apply_text_pipeline(const HfPipeline& pipeline, TokenizerSpec& spec) {
  bool marks_spaces = false;
  if (auto done = apply_normalizer(pipeline.normalizer, spec, marks_spaces); !done) return done;
  if (auto done = apply_pre_tokenizer(pipeline.pre_tokenizer, spec, marks_spaces); !done) {
    return done;
  }
  return apply_decoder(pipeline.decoder, spec);
}

Result<void> apply_post_processor(const json& post_processor, TokenizerSpec& spec) {
  const auto parts = flattened(post_processor, "processors");
  if (!parts) return parts.error();
  for (const json& part : *parts) {
    const std::string type = text_of(part, "type");
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing") {
      return unsupported_tokenizer_json(
          "post-processor " + shown(part) +
          " is not supported; supported are ByteLevel, TemplateProcessing and "
          "Sequence");
    }
    if (auto applied = apply_template(part, spec); !applied) return applied;
  }
  return {};
}

}  // namespace thaw::text

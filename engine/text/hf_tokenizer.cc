#include "engine/text/hf_tokenizer.h"

#include <simdjson.h>

#include <algorithm>
#include <cstdint>

#include "engine/text/hf_config.h"
#include "engine/text/hf_pipeline.h"

namespace thaw::text {
namespace {

namespace ondemand = simdjson::ondemand;
using Kind = TokenizerSpec::TokenKind;

// Ids may have holes, but an id costs memory whether or not it has a token.
constexpr std::size_t kSpareIds = 1024;

Error bad_tokenizer_json(const std::string& what) {
  return make_error(Errc::kInvalidArgument, "tokenizer.json: " + what);
}

/// What the parse of tokenizer.json collects before the ids are known to fit.
struct Parsed {
  std::vector<std::pair<std::int64_t, std::string>> vocab;
  std::vector<std::string> merges;
  std::vector<HfAddedToken> added;
  HfPipeline pipeline;
  std::string model_type;
  std::string unknown;  ///< empty: none
  bool has_model = false;
  bool byte_fallback = false;
  bool fuse_unknown = false;
  bool ignore_merges = false;
};

/// Reads tokenizer.json with simdjson's exceptions on: caught in parse_tokenizer.
class Parser {
 public:
  Result<void> parse(ondemand::document& document, Parsed& out) {
    for (ondemand::field field : document.get_object()) {
      const std::string_view key = field.unescaped_key();
      ondemand::value value = field.value();
      if (key == "model") {
        if (auto read = read_model(value, out); !read) return read;
      } else if (key == "added_tokens") {
        if (auto read = read_added(value, out); !read) return read;
      } else if (key == "normalizer") {
        out.pipeline.normalizer = small_json(value);
      } else if (key == "pre_tokenizer") {
        out.pipeline.pre_tokenizer = small_json(value);
      } else if (key == "decoder") {
        out.pipeline.decoder = small_json(value);
      } else if (key == "post_processor") {
        out.pipeline.post_processor = small_json(value);
      }
    }
    return {};
  }

 private:
  /// A part of the pipeline as a document of its own; null where it is neither list nor object.
  static nlohmann::json small_json(ondemand::value value) {
    std::string_view raw;
    const ondemand::json_type type = value.type();
    if (type == ondemand::json_type::object) {
      raw = value.get_object().value().raw_json();
    } else if (type == ondemand::json_type::array) {
      raw = value.get_array().value().raw_json();
    } else {
      return nullptr;
    }
    auto json = nlohmann::json::parse(raw, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) throw simdjson::simdjson_error(simdjson::TAPE_ERROR);
    return json;
  }

  static bool flag(ondemand::value value) { return !value.is_null() && value.get_bool(); }

  static std::string text(ondemand::value value) {
    if (value.is_null()) return {};
    return std::string(std::string_view(value.get_string()));
  }

  static Result<void> read_model(ondemand::value value, Parsed& out) {
    out.has_model = true;
    for (ondemand::field field : value.get_object()) {
      const std::string_view key = field.unescaped_key();
      ondemand::value part = field.value();
      if (key == "type") {
        out.model_type = text(part);
        if (out.model_type != "BPE") break;
      } else if (key == "vocab") {
        // Unigram models, which may come without their type, have a list here.
        if (part.type() != ondemand::json_type::object) break;
        read_vocab(part, out);
      } else if (key == "merges") {
        if (auto read = read_merges(part, out); !read) return read;
      } else if (key == "unk_token") {
        out.unknown = text(part);
      } else if (key == "byte_fallback") {
        out.byte_fallback = flag(part);
      } else if (key == "fuse_unk") {
        out.fuse_unknown = flag(part);
      } else if (key == "ignore_merges") {
        out.ignore_merges = flag(part);
      } else if (key == "dropout") {
        if (!part.is_null() && double(part.get_double()) != 0.0) {
          return unsupported_tokenizer_json(
              "dropout is set, which makes tokens random; supported is none");
        }
      } else if (key == "continuing_subword_prefix" || key == "end_of_word_suffix") {
        std::string what(key);
        if (const std::string affix = text(part); !affix.empty()) {
          what.append(" \"").append(affix).append("\" is not supported");
          return unsupported_tokenizer_json(what);
        }
      }
    }
    return {};
  }

  static void read_vocab(ondemand::value value, Parsed& out) {
    for (ondemand::field field : value.get_object()) {
      const std::string_view token = field.unescaped_key();
      out.vocab.emplace_back(0, token);
      out.vocab.back().first = field.value().get_int64();
    }
  }

  static Result<void> read_merges(ondemand::value value, Parsed& out) {
    for (ondemand::value merge : value.get_array()) {
      if (merge.type() == ondemand::json_type::string) {
        out.merges.emplace_back(std::string_view(merge.get_string()));
        continue;
      }
      std::string& both = out.merges.emplace_back();
      int sides = 0;
      for (ondemand::value side : merge.get_array()) {
        const std::string_view token = side.get_string();
        if (token.find(' ') != std::string_view::npos) {
          return unsupported_tokenizer_json("merge " + std::to_string(out.merges.size() - 1) +
                                            " has a token with a space in it");
        }
        if (sides++ > 0) both += ' ';
        both += token;
      }
      if (sides != 2) {
        return bad_tokenizer_json("merge " + std::to_string(out.merges.size() - 1) + " has " +
                                  std::to_string(sides) + " sides, not 2");
      }
    }
    return {};
  }

  static Result<void> read_added(ondemand::value value, Parsed& out) {
    if (value.is_null()) return {};
    for (ondemand::value item : value.get_array()) {
      HfAddedToken token;
      for (ondemand::field field : item.get_object()) {
        const std::string_view key = field.unescaped_key();
        ondemand::value part = field.value();
        if (key == "id") {
          token.id = part.get_int64();
        } else if (key == "content") {
          token.content = text(part);
        } else if (key == "special") {
          token.special = flag(part);
        } else if (key == "lstrip") {
          token.lstrip = flag(part);
        } else if (key == "rstrip") {
          token.rstrip = flag(part);
        } else if (key == "single_word") {
          token.single_word = flag(part);
        }
      }
      out.added.push_back(std::move(token));
    }
    return {};
  }
};

Result<Parsed> parse_tokenizer(std::string_view text) {
  if (text.empty()) return bad_tokenizer_json("the file is empty or not there");
  Parsed parsed;
  try {
    ondemand::parser parser;
    const simdjson::padded_string padded(text);
    ondemand::document document = parser.iterate(padded);
    if (auto read = Parser().parse(document, parsed); !read) return read.error();
  } catch (const simdjson::simdjson_error& error) {
    return bad_tokenizer_json(std::string("not JSON of the right shape: ") + error.what());
  }
  if (!parsed.has_model) return bad_tokenizer_json("it has no \"model\"");
  const bool is_bpe =
      parsed.model_type.empty() ? !parsed.vocab.empty() : parsed.model_type == "BPE";
  if (!is_bpe) {
    return unsupported_tokenizer_json("model type \"" + parsed.model_type +
                                      "\" is not supported; supported is BPE");
  }
  if (parsed.vocab.empty()) return bad_tokenizer_json("the vocabulary is empty");
  return parsed;
}

/// Sets tokens and kinds from the vocabulary and the added tokens.
class IdTable {
 public:
  explicit IdTable(TokenizerSpec& spec) : spec_(spec) {}

  Result<void> fill(Parsed& parsed, const std::vector<HfAddedToken>& from_config) {
    limit_ = 2 * (parsed.vocab.size() + parsed.added.size() + from_config.size()) + kSpareIds;
    for (auto& [id, token] : parsed.vocab) {
      const bool is_byte = parsed.byte_fallback && is_byte_token(token);
      auto put = place(id, token, is_byte ? Kind::kByte : Kind::kNormal);
      if (!put) return put;
    }
    for (const HfAddedToken& token : parsed.added) {
      if (auto put = add(token); !put) return put;
    }
    for (const HfAddedToken& token : from_config) {
      if (!contains(token.id)) {
        if (auto put = add(token); !put) return put;
      } else if (spec_.tokens[static_cast<std::size_t>(token.id)] != token.content) {
        return conflict(token.id, token.content);
      }
    }
    return {};
  }

  TokenId find(std::string_view content) const {
    const auto it = std::find(spec_.tokens.begin(), spec_.tokens.end(), content);
    return it == spec_.tokens.end() ? -1 : static_cast<TokenId>(it - spec_.tokens.begin());
  }

 private:
  static bool is_byte_token(std::string_view token) {
    return token.size() == 6 && token.starts_with("<0x") && token.back() == '>';
  }

  bool contains(std::int64_t id) const {
    return id >= 0 && static_cast<std::size_t>(id) < given_.size() &&
           given_[static_cast<std::size_t>(id)];
  }

  Error conflict(std::int64_t id, const std::string& token) const {
    return bad_tokenizer_json("id " + std::to_string(id) + " is given to \"" +
                              spec_.tokens[static_cast<std::size_t>(id)].substr(0, 64) +
                              "\" and to \"" + token.substr(0, 64) + "\"");
  }

  Result<void> place(std::int64_t id, std::string token, Kind kind) {
    if (id < 0 || static_cast<std::size_t>(id) >= limit_) {
      return bad_tokenizer_json("token \"" + token.substr(0, 64) + "\" has id " +
                                std::to_string(id) + "; with this many tokens, ids from 0 to " +
                                std::to_string(limit_ - 1) + " are possible");
    }
    const auto index = static_cast<std::size_t>(id);
    if (index >= given_.size()) {
      given_.resize(index + 1, false);
      spec_.tokens.resize(index + 1);
      spec_.kinds.resize(index + 1, Kind::kUnused);
    }
    if (given_[index] && spec_.tokens[index] != token) return conflict(id, token);
    given_[index] = true;
    spec_.tokens[index] = std::move(token);
    spec_.kinds[index] = kind;
    return {};
  }

  Result<void> add(const HfAddedToken& token) {
    if (token.content.empty()) {
      return bad_tokenizer_json("the added token with id " + std::to_string(token.id) +
                                " has no content");
    }
    if (token.single_word) {
      return unsupported_tokenizer_json("added token \"" + token.content.substr(0, 64) +
                                        "\" has single_word, which is not supported");
    }
    auto put = place(token.id, token.content, token.special ? Kind::kControl : Kind::kUserDefined);
    if (!put) return put;
    if (token.lstrip) spec_.strip_left.push_back(static_cast<TokenId>(token.id));
    if (token.rstrip) spec_.strip_right.push_back(static_cast<TokenId>(token.id));
    return {};
  }

  TokenizerSpec& spec_;
  std::vector<bool> given_;
  std::size_t limit_ = 0;
};

Result<void> apply_config(const HfTokenizerConfig& config, const IdTable& ids,
                          TokenizerSpec& spec) {
  const auto find = [&ids](const char* key, const std::string& token) -> Result<TokenId> {
    const TokenId id = ids.find(token);
    if (id >= 0) return id;
    return make_error(Errc::kInvalidArgument, std::string("tokenizer_config.json: ") + key + " \"" +
                                                  token.substr(0, 64) +
                                                  "\" is not in the vocabulary");
  };
  if (config.bos_token) {
    const auto id = find("bos_token", *config.bos_token);
    if (!id) return id.error();
    spec.bos = *id;
  }
  if (config.eos_token) {
    const auto id = find("eos_token", *config.eos_token);
    if (!id) return id.error();
    spec.eos = {*id};
  }
  spec.add_bos = config.add_bos_token.value_or(spec.add_bos) && spec.bos >= 0;
  spec.add_eos = config.add_eos_token.value_or(spec.add_eos) && !spec.eos.empty();
  return {};
}

}  // namespace

Result<HfTokenizer> read_hf_tokenizer(const HfTokenizerFiles& files) {
  auto config = read_hf_config(files);
  if (!config) return config.error();
  auto parsed = parse_tokenizer(files.tokenizer_json);
  if (!parsed) return parsed.error();

  HfTokenizer out;
  TokenizerSpec& spec = out.spec;
  IdTable ids(spec);
  if (auto filled = ids.fill(*parsed, config->added_tokens); !filled) return filled.error();
  spec.merges = std::move(parsed->merges);
  spec.ignore_merges = parsed->ignore_merges;
  if (auto done = apply_text_pipeline(parsed->pipeline, spec); !done) return done.error();
  if (spec.style == TokenizerSpec::Style::kSentencePiece && !parsed->unknown.empty()) {
    spec.unknown = ids.find(parsed->unknown);
    spec.fuse_unknown = parsed->fuse_unknown;
    if (spec.unknown < 0) {
      return bad_tokenizer_json("unk_token \"" + parsed->unknown.substr(0, 64) +
                                "\" is not in the vocabulary");
    }
  }
  auto post = apply_post_processor(parsed->pipeline.post_processor, spec);
  if (!post) return post.error();
  if (auto done = apply_config(*config, ids, spec); !done) return done.error();
  out.chat_template = std::move(config->chat_template);
  out.named_templates = std::move(config->named_templates);
  out.tokenizer_class = std::move(config->tokenizer_class);
  return out;
}

}  // namespace thaw::text

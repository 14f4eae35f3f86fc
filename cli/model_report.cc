#include "cli/model_report.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/model_source.h"
#include "cli/model_text.h"
#include "cli/served_model.h"
#include "coalescer/openai/describe.h"
#include "engine/base/hash.h"
#include "engine/checkpoint/gguf.h"
#include "engine/checkpoint/hf_directory.h"
#include "engine/checkpoint/in_quotes.h"
#include "engine/checkpoint/model_location.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/model/model.h"
#include "engine/model/source.h"
#include "engine/model/tensor_list.h"

namespace thaw::cli {
namespace {

using nlohmann::ordered_json;

const char* scaling_name(model::RopeScaling scaling) {
  switch (scaling) {
    case model::RopeScaling::kNone:
      return "none";
    case model::RopeScaling::kLinear:
      return "linear";
    case model::RopeScaling::kLlama3:
      return "llama3";
    case model::RopeScaling::kYarn:
      return "yarn";
  }
  return "";
}

/// Text that JSON can hold: tokens need not be whole characters.
std::string as_utf8(std::string_view text) {
  return text::replace_invalid_utf8(text);
}

/// Collects a report part by part.
class Reporter {
 public:
  explicit Reporter(const checkpoint::ModelLocation& location) {
    report_["model"] = location.name;
    report_["path"] = location.path;
  }

  void problem(const std::string& what) { problems_.push_back(what); }

  /// Tensors by type, and those of types that are not supported.
  void tensors(const checkpoint::TensorSource& source,
               const std::vector<checkpoint::UnsupportedTensor>& unsupported) {
    struct Group {
      std::uint64_t tensors = 0;
      std::uint64_t bytes = 0;
    };
    std::map<std::string, Group> groups;
    for (const checkpoint::StoredTensor& tensor : source.tensors()) {
      Group& group = groups[std::string(checkpoint::dtype_name(tensor.dtype))];
      ++group.tensors;
      group.bytes += tensor.data.size();
    }
    std::vector<std::pair<std::string, Group>> sorted(groups.begin(), groups.end());
    std::ranges::sort(sorted, std::ranges::greater(),
                      [](const auto& item) { return item.second.bytes; });
    ordered_json listed = ordered_json::array();
    for (const auto& [dtype, group] : sorted)
      listed.push_back({{"dtype", dtype}, {"tensors", group.tensors}, {"bytes", group.bytes}});
    report_["weights"] = std::move(listed);
    std::map<std::string, std::vector<std::string>> refused;
    for (const checkpoint::UnsupportedTensor& tensor : unsupported)
      refused[tensor.dtype].push_back(tensor.name);
    for (const auto& [dtype, names] : refused) {
      problem(std::to_string(names.size()) + " tensors are of type " +
              checkpoint::in_quotes(dtype) + ", which is not supported: " +
              checkpoint::in_quotes(names.front()) + (names.size() > 1 ? ", ..." : ""));
    }
  }

  void model(const Result<model::ModelSource>& source,
             const std::vector<checkpoint::UnsupportedTensor>& unsupported) {
    if (!source) return problem(source.error().message);
    const model::ModelConfig& config = source->config;
    report_["family"] = config.family;
    report_["parameters"] = num_parameters(*source);
    report_["context_length"] = config.max_positions;
    ordered_json rope = {{"theta", config.rope.theta},
                         {"dimensions", config.rope.dim},
                         {"scaling", scaling_name(config.rope.scaling)}};
    if (config.rope.scaling != model::RopeScaling::kNone) {
      rope["factor"] = config.rope.factor;
      if (config.rope.original_positions > 0)
        rope["original_context_length"] = config.rope.original_positions;
    }
    if (config.rope_factors) rope["scaling"] = "frequency factors";
    report_["rope"] = std::move(rope);
    report_["layers"] = config.num_layers;
    report_["hidden_size"] = config.hidden_size;
    report_["intermediate_size"] = config.intermediate_size;
    report_["heads"] = config.num_heads;
    report_["kv_heads"] = config.num_kv_heads;
    report_["head_dim"] = config.head_dim;
    std::map<int, int> windows;
    for (const model::LayerConfig& layer : config.layers)
      if (layer.window > 0) ++windows[layer.window];
    report_["sliding_windows"] = ordered_json::array();
    for (const auto& [window, layers] : windows)
      report_["sliding_windows"].push_back({{"tokens", window}, {"layers", layers}});
    report_["vocab_size"] = config.vocab_size;
    report_["tied_embeddings"] = config.tied_embeddings;
    for (const auto& [name, dtype] :
         {std::pair("bf16", ops::KvDType::kBF16), std::pair("f16", ops::KvDType::kF16),
          std::pair("f32", ops::KvDType::kF32)}) {
      report_["kv_bytes_per_token"][name] = model::kv_block_bytes(config, dtype) / kBlockSize;
    }
    const SamplingParams sampling = default_sampling(source->generation);
    report_["default_sampling"] = coalescer::sampling_json(sampling);
    check_tensors(*source, unsupported);
  }

  void text(const std::string& path, Result<text::TokenizerSpec> spec,
            const std::optional<checkpoint::StoredTemplate>& chat_template,
            std::vector<TokenId> ends) {
    if (spec) {
      tokenizer(path, *std::move(spec), std::move(ends));
    } else {
      problem(spec.error().message);
    }
    if (!chat_template) {
      report_["chat_template"] = nullptr;
      return;
    }
    report_["chat_template"] = {{"from", chat_template->file},
                                {"bytes", chat_template->source.size()},
                                {"sha256_128", hash_template(*chat_template)}};
    if (!chat_template->tool_source.empty())
      report_["chat_template"]["tool_use_bytes"] = chat_template->tool_source.size();
    if (const auto parsed =
            text::ChatTemplate::parse(chat_template->source, chat_template->tool_source);
        !parsed)
      problem(path + ": " + chat_template->file + ": " + parsed.error().message);
  }

  ordered_json finish() {
    report_["servable"] = problems_.empty();
    report_["problems"] = problems_;
    return std::move(report_);
  }

  ordered_json& operator[](const char* key) { return report_[key]; }

 private:
  /// Names what the family asks for and the files lack, and the reverse.
  void check_tensors(const model::ModelSource& source,
                     const std::vector<checkpoint::UnsupportedTensor>& unsupported) {
    const bool is_gguf = source.naming == model::TensorNaming::kGguf;
    std::vector<std::string> missing;
    std::vector<std::string> needed;
    for (const model::TensorRule& rule : model::tensor_list(source.config)) {
      const std::string& name = is_gguf ? rule.gguf_name : rule.hf_name;
      needed.push_back(name);
      if (source.tensors->find_tensor(name) == nullptr &&
          std::ranges::find(unsupported, name, &checkpoint::UnsupportedTensor::name) ==
              unsupported.end()) {
        missing.push_back(name);
      }
    }
    std::ranges::sort(needed);
    std::vector<std::string> extra;
    for (const checkpoint::StoredTensor& tensor : source.tensors->tensors()) {
      const std::string name(tensor.name);
      if (!std::ranges::binary_search(needed, name) &&
          (is_gguf || !model::is_redundant(name, source.config))) {
        extra.push_back(name);
      }
    }
    const auto some = [](const std::vector<std::string>& names) {
      return checkpoint::in_quotes(names.front()) + (names.size() > 1 ? ", ..." : "");
    };
    if (!missing.empty())
      problem(std::to_string(missing.size()) + " tensors are missing: " + some(missing));
    if (!extra.empty()) {
      problem(std::to_string(extra.size()) + " tensors have no place in the " +
              source.config.family + " family as it is supported here: " + some(extra));
    }
  }

  void tokenizer(const std::string& path, text::TokenizerSpec spec, std::vector<TokenId> ends) {
    using Kind = text::TokenizerSpec::TokenKind;
    const bool byte_level = spec.style == text::TokenizerSpec::Style::kByteLevel;
    ordered_json out = {
        {"kind", byte_level ? "byte-level BPE" : "BPE with byte fallback"},
        {"pre_tokenizer", spec.pre_tokenizer.empty()
                              ? spec.splits.empty() ? ordered_json(nullptr) : "regular expression"
                              : ordered_json(spec.pre_tokenizer)},
        {"tokens", spec.tokens.size()},
        {"special_tokens", std::ranges::count(spec.kinds, Kind::kControl)},
        {"adds_bos", spec.add_bos}};
    for (const TokenId id : spec.eos)
      if (std::ranges::find(ends, id) == ends.end()) ends.push_back(id);
    std::ranges::sort(ends);
    const TokenId bos = spec.bos;
    const auto made = text::Tokenizer::create(std::move(spec));
    const auto token = [&](TokenId id) {
      return ordered_json{{"id", id},
                          {"text", made ? as_utf8((*made)->token_bytes(id, true)) : std::string()}};
    };
    out["bos"] = bos < 0 ? ordered_json(nullptr) : token(bos);
    report_["tokenizer"] = std::move(out);
    report_["end_tokens"] = ordered_json::array();
    for (const TokenId id : ends)
      report_["end_tokens"].push_back(token(id));
    if (!made) problem(path + ": " + made.error().message);
  }

  ordered_json report_;
  std::vector<std::string> problems_;
};

std::vector<TokenId> ends_of(const Result<model::ModelSource>& source) {
  return source ? source->config.eos_token_ids : std::vector<TokenId>();
}

Result<ordered_json> report_gguf(const checkpoint::ModelLocation& location) {
  std::vector<checkpoint::UnsupportedTensor> unsupported;
  auto opened = checkpoint::GgufFile::open(location.path, &unsupported);
  if (!opened) return std::move(opened).error();
  const auto file = std::make_shared<const checkpoint::GgufFile>(*std::move(opened));
  Reporter reporter(location);
  reporter["container"] = "GGUF";
  reporter["files"] = std::max<std::int64_t>(1, file->get_int("split.count").value_or(1));
  reporter["architecture"] =
      as_utf8(file->get_string("general.architecture").value_or("").substr(0, 64));
  reporter.tensors(*file, unsupported);
  const auto source = model::model_source_from_gguf(file);
  reporter.model(source, unsupported);
  reporter.text(location.path, tokenizer_spec_from_gguf(*file), stored_template_from_gguf(*file),
                ends_of(source));
  return reporter.finish();
}

/// What config.json calls its architecture, without looking at the rest of it.
std::string hf_architecture(const std::string& config_json) {
  const auto config = nlohmann::json::parse(config_json, nullptr, false);
  if (!config.is_object() || !config.contains("architectures")) return "";
  const auto& names = config["architectures"];
  return names.is_array() && !names.empty() && names[0].is_string()
             ? as_utf8(names[0].get<std::string>().substr(0, 64))
             : "";
}

Result<ordered_json> report_hf(const checkpoint::ModelLocation& location) {
  const auto directory = checkpoint::read_hf_directory(location.path);
  if (!directory) return directory.error();
  std::vector<checkpoint::UnsupportedTensor> unsupported;
  auto opened = checkpoint::SafetensorsFiles::open(location.path, &unsupported);
  if (!opened) return std::move(opened).error();
  const auto files = std::make_shared<const checkpoint::SafetensorsFiles>(*std::move(opened));
  Reporter reporter(location);
  reporter["container"] = "safetensors";
  reporter["files"] = files->num_files();
  reporter["architecture"] = hf_architecture(directory->config);
  reporter.tensors(*files, unsupported);
  const auto source =
      model::model_source_from_hf(files, directory->config, directory->generation_config);
  reporter.model(source, unsupported);
  reporter.text(location.path, tokenizer_spec_from_hf(*directory), directory->chat_template,
                ends_of(source));
  return reporter.finish();
}

}  // namespace

Result<ordered_json> report_model(const std::string& model, const ModelPaths& paths) {
  const auto location =
      checkpoint::locate_model(model.empty() ? paths.default_model : model, paths.hub_cache);
  if (!location) return location.error();
  // What begins as a container is not brought here (run_info).
  if (location->kind == checkpoint::ModelKind::kThaw) {
    return make_error(Errc::kInvalidArgument,
                      location->path + ": not a thaw container: it does not start with THAW");
  }
  return location->kind == checkpoint::ModelKind::kGguf ? report_gguf(*location)
                                                        : report_hf(*location);
}

}  // namespace thaw::cli

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "cli/memory_budget.h"
#include "cli/model_report.h"

namespace thaw::cli {
namespace {

using nlohmann::ordered_json;

/// "134,515,008".
std::string grouped(std::uint64_t number) {
  std::string text = std::to_string(number);
  for (int at = static_cast<int>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<std::size_t>(at), ",");
  return text;
}

/// "134.5 million".
std::string counted(std::uint64_t number) {
  char text[32];
  const auto value = static_cast<double>(number);
  if (number >= 1'000'000'000) {
    std::snprintf(text, sizeof text, "%.2f billion", value / 1e9);
  } else if (number >= 1'000'000) {
    std::snprintf(text, sizeof text, "%.1f million", value / 1e6);
  } else {
    return grouped(number);
  }
  return text;
}

/// A number as JSON writes it, text without quotes.
std::string token_text(const ordered_json& token) {
  std::string text;
  for (const char c : token["text"].get<std::string>())
    text += static_cast<unsigned char>(c) < ' ' ? '?' : c;
  return shown(token["id"]) + " " + text;
}

std::string weights_text(const ordered_json& weights) {
  std::string text;
  for (const ordered_json& group : weights) {
    text += (text.empty() ? "" : ", ") + shown(group["dtype"]) + " " +
            format_bytes(group["bytes"].get<std::uint64_t>()) + " in " + shown(group["tensors"]) +
            " tensors";
  }
  return text.empty() ? "none" : text;
}

std::string rope_text(const ordered_json& rope) {
  std::string text = "theta " + shown(rope["theta"]) + ", scaling " + shown(rope["scaling"]);
  if (rope.contains("factor")) text += " by " + shown(rope["factor"]);
  if (rope.contains("original_context_length"))
    text += " from " + shown(rope["original_context_length"]) + " tokens";
  return text;
}

std::string shape_text(const ordered_json& report) {
  return shown(report["layers"]) + " layers, " + shown(report["heads"]) + " heads and " +
         shown(report["kv_heads"]) + " KV heads of " + shown(report["head_dim"]) + ", hidden " +
         shown(report["hidden_size"]) + ", feed-forward " + shown(report["intermediate_size"]);
}

std::string tokenizer_text(const ordered_json& tokenizer) {
  return shown(tokenizer["kind"]) +
         (tokenizer["pre_tokenizer"].is_null() ? "" : ", " + shown(tokenizer["pre_tokenizer"])) +
         ", " + grouped(tokenizer["tokens"].get<std::uint64_t>()) + " tokens, " +
         shown(tokenizer["special_tokens"]) + " of them special";
}

using Lines = std::vector<std::pair<std::string, std::string>>;

void add_model(const ordered_json& report, Lines& lines) {
  if (!report.contains("family")) return;
  lines.emplace_back("parameters", counted(report["parameters"].get<std::uint64_t>()));
  lines.emplace_back("context", grouped(report["context_length"].get<std::uint64_t>()) + " tokens");
  lines.emplace_back("RoPE", rope_text(report["rope"]));
  lines.emplace_back("shape", shape_text(report));
  for (const ordered_json& window : report["sliding_windows"]) {
    lines.emplace_back(
        "window", shown(window["tokens"]) + " tokens in " + shown(window["layers"]) + " layers");
  }
  lines.emplace_back("vocabulary",
                     grouped(report["vocab_size"].get<std::uint64_t>()) +
                         (report["tied_embeddings"].get<bool>() ? ", the head is the embedding"
                                                                : ", a head of its own"));
  const ordered_json& kv = report["kv_bytes_per_token"];
  lines.emplace_back("KV cache", grouped(kv["bf16"].get<std::uint64_t>()) +
                                     " bytes a token in bf16, " +
                                     grouped(kv["f32"].get<std::uint64_t>()) + " in f32");
}

void add_text(const ordered_json& report, Lines& lines) {
  if (report.contains("tokenizer")) {
    const ordered_json& tokenizer = report["tokenizer"];
    lines.emplace_back("tokenizer", tokenizer_text(tokenizer));
    if (!tokenizer["bos"].is_null()) {
      lines.emplace_back("begin", token_text(tokenizer["bos"]) +
                                      (tokenizer["adds_bos"].get<bool>() ? "" : " (not added)"));
    }
    std::string ends;
    for (const ordered_json& token : report["end_tokens"])
      ends += (ends.empty() ? "" : ", ") + token_text(token);
    lines.emplace_back("end", ends.empty() ? "none" : ends);
  }
  if (report.contains("chat_template")) {
    const ordered_json& chat = report["chat_template"];
    lines.emplace_back(
        "template", chat.is_null()
                        ? "none: chat requests are refused"
                        : shown(chat["from"]) + ", " + grouped(chat["bytes"].get<std::uint64_t>()) +
                              " bytes" +
                              (chat.contains("tool_use_bytes")
                                   ? " (with tools " +
                                         grouped(chat["tool_use_bytes"].get<std::uint64_t>()) + ")"
                                   : "") +
                              ", " + shown(chat["sha256_128"]));
  }
  if (report.contains("default_sampling")) {
    std::string sampling;
    for (const auto& [name, value] : report["default_sampling"].items())
      sampling += (sampling.empty() ? "" : ", ") + name + " " + shown(value);
    lines.emplace_back("sampling", sampling);
  }
}

}  // namespace

std::string format_report(const ordered_json& report) {
  Lines lines;
  lines.emplace_back("path", shown(report["path"]));
  const auto files = report["files"].get<std::uint64_t>();
  lines.emplace_back("container", shown(report["container"]) +
                                      (files > 1 ? ", " + std::to_string(files) + " files" : ""));
  const std::string architecture = shown(report["architecture"]);
  lines.emplace_back("family", report.contains("family")
                                   ? shown(report["family"]) + " (" + architecture + ")"
                                   : architecture + ", not supported");
  lines.emplace_back("weights", weights_text(report["weights"]));
  add_model(report, lines);
  add_text(report, lines);
  lines.emplace_back("servable", report["servable"].get<bool>() ? "yes" : "no:");
  for (const ordered_json& problem : report["problems"])
    lines.emplace_back("", shown(problem));

  std::string text = shown(report["model"]) + "\n";
  for (const auto& [label, value] : lines) {
    char padded[16];
    std::snprintf(padded, sizeof padded, "  %-11s ", label.c_str());
    text += padded + value + "\n";
  }
  return text;
}

}  // namespace thaw::cli

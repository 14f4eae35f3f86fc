#include "cli/container_report.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <utility>
#include <vector>

#include "cli/memory_budget.h"
#include "cli/weights_file.h"
#include "engine/checkpoint/text_file.h"
#include "kvsnap/container_reader.h"
#include "kvsnap/whole_file.h"

namespace thaw::cli {
namespace {

using kvsnap::Region;
using nlohmann::ordered_json;

constexpr std::string_view kSidecarMagic("THAWKV\0\0", 8);
constexpr std::size_t kSidecarHeaderBytes = 12;

ordered_json region_json(const Region& region, bool has_checksums) {
  ordered_json out = {{"kind", kvsnap::region_kind_name(region.kind)},
                      {"logical_id", region.logical_id},
                      {"bytes", region.size_bytes},
                      {"offset", region.offset}};
  if (has_checksums) out["crc32c"] = region.crc32c;
  return out;
}

void add_regions(const kvsnap::ContainerReader& reader, ordered_json& report) {
  report["kinds"] = ordered_json::object();
  report["regions"] = ordered_json::array();
  for (const Region& region : reader.regions()) {
    ordered_json& kind = report["kinds"][kvsnap::region_kind_name(region.kind)];
    if (kind.is_null()) kind = {{"regions", 0U}, {"bytes", 0U}};
    kind["regions"] = kind["regions"].get<std::uint64_t>() + 1;
    kind["bytes"] = kind["bytes"].get<std::uint64_t>() + region.size_bytes;
    report["regions"].push_back(region_json(region, reader.has_checksums()));
  }
}

void add_weights(const WeightsDocument& document, ordered_json& report) {
  const auto config = ordered_json::parse(document.config_json, nullptr, false);
  report["model"] = document.model;
  report["family"] = config.value("family", "");
  report["dtype"] = document.dtype;
  report["tensors"] = document.tensors.size();
  report["frozen_from"] = document.container;
  report["fingerprint"] = document.fingerprint;
  report["weights_digest"] = document.weights_digest;
  report["tokenizer_hash"] = document.tokenizer_hash;
  report["chat_template_hash"] = document.chat_template_hash
                                     ? ordered_json(*document.chat_template_hash)
                                     : ordered_json(nullptr);
  report["tensor_parallel_rank"] = document.rank;
  report["tensor_parallel_size"] = document.num_ranks;
  report["writer"] = document.writer;
}

/// What lies beside KV payloads: nothing where there is no such file.
Result<std::optional<ordered_json>> read_kv_description(kvsnap::FileIo& io,
                                                        const std::string& path) {
  const std::string sidecar = path + ".meta";
  const auto text = kvsnap::read_whole_file(io, sidecar, checkpoint::kMaxTextFileBytes);
  if (!text && text.error().code == Errc::kNotFound) return std::optional<ordered_json>();
  if (!text) return text.error();
  const auto bad = [&](const std::string& what) {
    return make_error(Errc::kDataLoss, sidecar + ": " + what);
  };
  if (text->size() < kSidecarHeaderBytes || !text->starts_with(kSidecarMagic))
    return bad("it does not start as the description of KV does");
  std::uint32_t size = 0;
  for (std::size_t i = 0; i < sizeof(size); ++i)
    size |= static_cast<std::uint32_t>(static_cast<unsigned char>((*text)[8 + i])) << (8 * i);
  if (size > text->size() - kSidecarHeaderBytes)
    return bad("truncated: it claims " + std::to_string(size) + " bytes of JSON and has " +
               std::to_string(text->size() - kSidecarHeaderBytes));
  auto parsed = ordered_json::parse(text->substr(kSidecarHeaderBytes, size), nullptr, false);
  if (!parsed.is_object()) return bad("what it holds is no JSON object");
  ordered_json out;
  for (const char* key : {"num_blocks", "num_layers", "block_shape", "block_size", "block_bytes",
                          "dtype", "layout", "num_slots"}) {
    if (parsed.contains(key)) out[key] = parsed[key];
  }
  return std::optional(std::move(out));
}

std::string shown(const ordered_json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

bool is_container(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::array<char, 4> magic{};
  file.read(magic.data(), magic.size());
  return file && std::string_view(magic.data(), magic.size()) == "THAW";
}

Result<ordered_json> report_container(kvsnap::FileIo& io, const std::string& path, bool verify,
                                      int num_threads) {
  const auto reader = kvsnap::ContainerReader::open(io, path);
  if (!reader) return reader.error();
  ThreadPool threads(std::clamp(num_threads, 1, 16));
  ordered_json report = {
      {"path", path},
      {"container", "thaw"},
      {"version", reader->version()},
      {"bytes", reader->file_bytes()},
      {"engine_commit", reader->engine_commit().empty() ? ordered_json(nullptr)
                                                        : ordered_json(reader->engine_commit())}};
  const auto document = read_weights_document(*reader, threads);
  if (!document && document.error().code != Errc::kUnsupported) return document.error();
  if (document) {
    if (const std::optional<WeightsDocument>& weights = *document) add_weights(*weights, report);
  }
  const auto kv = read_kv_description(io, path);
  if (!kv) return kv.error();
  if (const std::optional<ordered_json>& description = *kv) report["kv"] = *description;
  report["checksums"] = reader->has_checksums() ? "not compared" : "none";
  if (verify && reader->has_checksums()) {
    if (auto verified = reader->verify(threads); !verified) return std::move(verified).error();
    report["checksums"] = "right";
  }
  add_regions(*reader, report);
  return report;
}

std::string format_container_report(const ordered_json& report) {
  std::vector<std::pair<std::string, std::string>> lines;
  const auto add = [&](const char* key, const std::string& label) {
    if (report.contains(key) && !report[key].is_null())
      lines.emplace_back(label, shown(report[key]));
  };
  lines.emplace_back("container", "thaw, version " + shown(report["version"]) + ", " +
                                      format_bytes(report["bytes"].get<std::uint64_t>()));
  for (const auto& [kind, sums] : report["kinds"].items()) {
    lines.emplace_back(kind, shown(sums["regions"]) + " regions, " +
                                 format_bytes(sums["bytes"].get<std::uint64_t>()));
  }
  add("engine_commit", "engine");
  add("model", "model");
  add("family", "family");
  add("dtype", "dtype");
  add("tensors", "tensors");
  add("frozen_from", "frozen from");
  add("fingerprint", "fingerprint");
  add("weights_digest", "weights");
  add("tokenizer_hash", "tokenizer");
  add("chat_template_hash", "template");
  if (report.value("tensor_parallel_size", 1U) > 1) {
    lines.emplace_back("shard", "rank " + shown(report["tensor_parallel_rank"]) + " of " +
                                    shown(report["tensor_parallel_size"]));
  }
  add("writer", "writer");
  if (report.contains("kv")) {
    for (const auto& [key, value] : report["kv"].items())
      lines.emplace_back(key, shown(value));
  }
  lines.emplace_back("checksums", report["checksums"] == "none" ? "none, as in every version 1"
                                                                : shown(report["checksums"]));
  std::string text = shown(report["path"]) + "\n";
  for (const auto& [label, value] : lines) {
    char padded[20];
    std::snprintf(padded, sizeof padded, "  %-14s ", label.c_str());
    text += padded + value + "\n";
  }
  return text;
}

}  // namespace thaw::cli

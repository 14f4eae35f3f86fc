#include "cli/container_report.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <utility>
#include <vector>

#include "cli/memory_budget.h"
#include "cli/model_report.h"
#include "cli/weights_file.h"
#include "kvsnap/container_reader.h"
#include "kvsnap/kv_description.h"
#include "kvsnap/kv_document.h"
#include "kvsnap/whole_file.h"

namespace thaw::cli {
namespace {

using kvsnap::Region;
using nlohmann::ordered_json;

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

/// Of a file of KV: whose it is, what made it, how many tokens it covers. Nothing of other files.
Result<void> add_kv_document(const kvsnap::ContainerReader& reader, ThreadPool& threads,
                             ordered_json& report) {
  const Region* region = reader.find(kvsnap::RegionKind::kMetadata, 0);
  if (region == nullptr) return {};
  const auto text = reader.read_text(*region, kvsnap::kMaxKvDocumentBytes, threads);
  if (!text) return text.error();
  const auto document = kvsnap::KvDocument::parse(*text);
  if (!document)
    return document.error().code == Errc::kUnsupported ? Result<void>() : document.error();
  report["model"] = document->owner.model;
  report["tenant"] = document->owner.tenant;
  report["tokens"] = document->token_ids.size();
  report["engine"] = document->system_fingerprint;
  report["engine_fingerprint"] = document->engine_fingerprint.to_hex();
  report["cache_root"] = document->cache_root.to_hex();
  report["kv_layout"] = document->kv_layout;
  report["tensor_parallel_rank"] = document->tp_rank;
  report["tensor_parallel_size"] = document->tp_size;
  report["writer"] = document->writer;
  return {};
}

/// What a description of KV says; it need not say everything. Errors: those of
/// kv_description_text(); kDataLoss where it holds something else.
Result<ordered_json> kv_facts(const std::string& path, std::string_view bytes) {
  const auto text = kvsnap::kv_description_text(bytes);
  if (!text) return make_error(Errc::kDataLoss, path + ": " + text.error().message);
  const auto parsed = ordered_json::parse(*text, nullptr, false);
  if (!parsed.is_object())
    return make_error(Errc::kDataLoss, path + ": what it holds is no JSON object");
  ordered_json out;
  for (const char* key : {"num_blocks", "num_layers", "block_shape", "block_size", "block_bytes",
                          "dtype", "layout", "num_slots"}) {
    if (parsed.contains(key)) out[key] = parsed[key];
  }
  return out;
}

/// What lies beside KV payloads: nothing where there is no such file.
Result<std::optional<ordered_json>> read_kv_description(kvsnap::FileIo& io,
                                                        const std::string& path) {
  const std::string sidecar = path + kvsnap::kKvDescriptionSuffix;
  const auto text = kvsnap::read_whole_file(io, sidecar, kvsnap::kMaxKvDescriptionBytes);
  if (!text && text.error().code == Errc::kNotFound) return std::optional<ordered_json>();
  if (!text) return text.error();
  auto facts = kv_facts(sidecar, *text);
  if (!facts) return std::move(facts).error();
  return std::optional(*std::move(facts));
}

/// Blocks behind their description in one file, as the public project wrote at first. Nothing where
/// the file begins as another.
Result<std::optional<ordered_json>> report_old_kv(kvsnap::FileIo& io, const std::string& path) {
  const auto file = io.open(path);
  if (!file) return file.error();
  const auto size = (*file)->size_bytes();
  if (!size) return size.error();
  std::string head(8, '\0');
  const auto read_head = [&](std::size_t bytes) -> Result<void> {
    head.resize(static_cast<std::size_t>(std::min<std::uint64_t>(*size, bytes)));
    const auto read = (*file)->read(std::as_writable_bytes(std::span(head.data(), head.size())), 0);
    if (!read) return read.error();
    head.resize(*read);
    return {};
  };
  // Past the page cache only aligned reads are right; the old form is never read so.
  if ((*file)->alignment() != 1) return std::optional<ordered_json>();
  if (auto read = read_head(head.size()); !read) return std::move(read).error();
  if (!kvsnap::is_kv_description(head)) return std::optional<ordered_json>();
  if (auto read = read_head(kvsnap::kMaxKvDescriptionBytes); !read) return std::move(read).error();
  auto facts = kv_facts(path, head);
  if (!facts) return std::move(facts).error();
  return std::optional(ordered_json{{"path", path},
                                    {"container", "thawkv"},
                                    {"version", nullptr},
                                    {"bytes", *size},
                                    {"kv", *std::move(facts)},
                                    {"checksums", "none"},
                                    {"kinds", ordered_json::object()},
                                    {"regions", ordered_json::array()}});
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
  auto old_form = report_old_kv(io, path);
  if (!old_form) return std::move(old_form).error();
  if (std::optional<ordered_json>& report = *old_form) return *std::move(report);
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
  if (!document) {
    if (auto added = add_kv_document(*reader, threads, report); !added)
      return std::move(added).error();
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
  const std::string version = report["version"].is_null()
                                  ? "thawkv, the form before containers"
                                  : "thaw, version " + shown(report["version"]);
  lines.emplace_back("container",
                     version + ", " + format_bytes(report["bytes"].get<std::uint64_t>()));
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
  add("tenant", "tenant");
  add("tokens", "tokens");
  add("engine", "made by");
  add("cache_root", "cache root");
  add("kv_layout", "KV");
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
  lines.emplace_back("checksums", report["checksums"] == "none" ? "none, as in every file so old"
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

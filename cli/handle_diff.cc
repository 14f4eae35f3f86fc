#include "cli/handle_diff.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "cli/handle_report.h"
#include "cli/memory_budget.h"
#include "cli/token_texts.h"

namespace thaw::cli {
namespace {

using kvsnap::HandleDirectory;
using nlohmann::ordered_json;

constexpr std::size_t kTokensBefore = 24;
constexpr std::size_t kTokensAfter = 60;
constexpr std::size_t kBytesBefore = 100;
constexpr std::size_t kBytesAfter = 300;

/// Back to where a character of UTF-8 starts.
std::size_t character_start(std::string_view text, std::size_t at) {
  while (at > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80)
    --at;
  return at;
}

std::string slice(std::string_view text, std::size_t begin, std::size_t bytes) {
  begin = character_start(text, std::min(begin, text.size()));
  const std::size_t end = character_start(text, std::min(text.size(), begin + bytes));
  return std::string(text.substr(begin, end - begin));
}

std::optional<HandleDiff::Parting> parting_of_tokens(std::span<const TokenId> a,
                                                     std::span<const TokenId> b, std::size_t shared,
                                                     const text::Tokenizer& tokenizer) {
  if (shared == a.size() && shared == b.size()) return std::nullopt;
  const auto part = [&](std::span<const TokenId> tokens, std::size_t begin, std::size_t count) {
    begin = std::min(begin, tokens.size());
    return decode_inside(tokenizer, tokens.subspan(begin, std::min(count, tokens.size() - begin)));
  };
  const std::size_t before = std::min(shared, kTokensBefore);
  return HandleDiff::Parting{part(a, shared - before, before),
                             part(a, shared, kTokensAfter),
                             part(b, shared, kTokensAfter),
                             true,
                             part(a, shared, 1),
                             part(b, shared, 1)};
}

std::optional<HandleDiff::Parting> parting_of_previews(std::string_view a, std::string_view b) {
  const auto end = std::ranges::mismatch(a, b).in1;
  const std::size_t shared = character_start(a, static_cast<std::size_t>(end - a.begin()));
  if (shared == a.size() && shared == b.size()) return std::nullopt;
  const std::size_t before = std::min(shared, kBytesBefore);
  return HandleDiff::Parting{slice(a, shared - before, before),
                             slice(a, shared, kBytesAfter),
                             slice(b, shared, kBytesAfter),
                             false,
                             "",
                             ""};
}

/// The token id where the prompts part, of the side that goes on.
std::optional<TokenId> token_at(const HandleDirectory& directory, std::uint64_t position) {
  const auto& ids = directory.handle().prefix_token_ids;
  if (!ids || position >= ids->size()) return std::nullopt;
  return (*ids)[position];
}

ordered_json side_json(const HandleDirectory& directory, std::uint64_t only_blocks) {
  const kvsnap::Handle& handle = directory.handle();
  return {{"name", handle_name(directory)},        {"path", directory.path()},
          {"handle_id", handle.handle_id},         {"model_id", handle.model_id},
          {"created_at", handle.created_at},       {"prefix_tokens", handle.prefix_tokens},
          {"num_kv_blocks", handle.num_kv_blocks}, {"only_here_blocks", only_blocks},
          {"kv_bytes", directory.kv_bytes()},      {"has_weights", handle.has_weights},
          {"block_shape", handle.block_shape}};
}

std::string whole_percent(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? "0 %" : std::to_string(part * 100 / whole) + " %";
}

bool can_share(const HandleDiff& diff) {
  return diff.found.same_model && diff.found.same_layout;
}

std::string shared_line(const Look& look, const HandleDiff& diff) {
  const kvsnap::HandleComparison& found = diff.found;
  if (!found.has_hashes) return "not known: a handle without blocks, or without their names";
  const std::uint64_t of_a = found.shared_blocks + found.only_a_blocks;
  const std::uint64_t of_b = found.shared_blocks + found.only_b_blocks;
  std::string line = counted(found.shared_blocks, "block");
  if (found.block_size > 0) line += ", " + counted(found.shared_blocks * found.block_size, "token");
  line += " (" + whole_percent(found.shared_blocks, of_a) + " of A, " +
          whole_percent(found.shared_blocks, of_b) + " of B)";
  if (!can_share(diff)) return line + ", of the same text only";
  if (found.block_bytes > 0 && found.shared_blocks > 0)
    line += ", " + format_bytes(found.shared_blocks * found.block_bytes) + " in both";
  return styled(look, Style::kShared, line);
}

std::string parted_line(const Look& look, const HandleDiff& diff) {
  const kvsnap::HandleComparison& found = diff.found;
  if (!found.shared_token_ids) {
    if (!found.has_hashes) return "not known";
    if (found.only_a_blocks == 0 && found.only_b_blocks == 0) return "nowhere: the same blocks";
    if (found.block_size == 0) return "in block " + grouped(found.shared_blocks);
    return "in block " + grouped(found.shared_blocks) + ", between tokens " +
           grouped(found.shared_blocks * found.block_size) + " and " +
           grouped((found.shared_blocks + 1) * found.block_size) + " (prompts were not recorded)";
  }
  const std::uint64_t at = *found.shared_token_ids;
  const auto id_a = token_at(*diff.a, at);
  const auto id_b = token_at(*diff.b, at);
  if (!id_a && !id_b) return "nowhere: " + counted(at, "recorded token") + " are the same";
  const auto token = [&](const std::optional<TokenId>& id, const std::string& text) {
    if (!id) return std::string("ends here");
    return std::to_string(*id) + (text.empty() ? "" : " \"" + clipped(look, text, 24) + "\"");
  };
  const auto& parting = diff.parting;
  return "at token " + styled(look, Style::kBold, grouped(at)) + ": A " +
         styled(look, Style::kA, token(id_a, parting ? parting->token_a : "")) + ", B " +
         styled(look, Style::kB, token(id_b, parting ? parting->token_b : ""));
}

}  // namespace

HandleDiff diff_handles(const HandleDirectory& a, const HandleDirectory& b,
                        const text::Tokenizer* tokenizer) {
  HandleDiff diff{&a, &b, kvsnap::compare_handles(a, b), {}};
  const kvsnap::Handle& of_a = a.handle();
  const kvsnap::Handle& of_b = b.handle();
  const auto& ids_a = of_a.prefix_token_ids;
  const auto& ids_b = of_b.prefix_token_ids;
  const auto& shared = diff.found.shared_token_ids;
  const auto& text_a = of_a.prefix_preview;
  const auto& text_b = of_b.prefix_preview;
  if (tokenizer != nullptr && ids_a && ids_b && shared && diff.found.same_model) {
    diff.parting = parting_of_tokens(*ids_a, *ids_b, *shared, *tokenizer);
  } else if (text_a && text_b) {
    diff.parting = parting_of_previews(*text_a, *text_b);
  }
  return diff;
}

ordered_json diff_json(const HandleDiff& diff) {
  const kvsnap::HandleComparison& found = diff.found;
  ordered_json out = {{"a", side_json(*diff.a, found.only_a_blocks)},
                      {"b", side_json(*diff.b, found.only_b_blocks)},
                      {"same_model", found.same_model},
                      {"same_layout", found.same_layout}};
  const auto known = [](bool is_known, std::uint64_t value) {
    return is_known ? ordered_json(value) : ordered_json(nullptr);
  };
  out["block_size"] = known(found.block_size > 0, found.block_size);
  out["shared_blocks"] = known(found.has_hashes, found.shared_blocks);
  out["shared_block_tokens"] =
      known(found.has_hashes && found.block_size > 0, found.shared_blocks * found.block_size);
  out["shared_bytes"] = known(found.has_hashes && found.block_bytes > 0,
                              can_share(diff) ? found.shared_blocks * found.block_bytes : 0);
  out["shared_tokens"] =
      found.shared_token_ids ? ordered_json(*found.shared_token_ids) : ordered_json(nullptr);
  out["parts_at"] = nullptr;
  if (found.shared_token_ids) {
    const auto id_a = token_at(*diff.a, *found.shared_token_ids);
    const auto id_b = token_at(*diff.b, *found.shared_token_ids);
    if (id_a || id_b) {
      out["parts_at"] = {{"token", *found.shared_token_ids},
                         {"a", id_a ? ordered_json(*id_a) : ordered_json(nullptr)},
                         {"b", id_b ? ordered_json(*id_b) : ordered_json(nullptr)}};
    }
  }
  out["text"] = nullptr;
  if (diff.parting) {
    out["text"] = {{"from", diff.parting->from_tokens ? "tokens" : "previews"},
                   {"shared", diff.parting->shared},
                   {"a", diff.parting->a},
                   {"b", diff.parting->b}};
  }
  return out;
}

std::string format_diff(const Look& look, const HandleDiff& diff) {
  const kvsnap::HandleComparison& found = diff.found;
  const HandleDirectory& a = *diff.a;
  const HandleDirectory& b = *diff.b;
  Table sides;
  const auto side = [&](const char* letter, Style style, const HandleDirectory& one) {
    sides.add({styled(look, style, letter), styled(look, style, printable(look, handle_name(one))),
               styled(look, Style::kId, short_id(one.handle().handle_id)),
               counted(one.handle().prefix_tokens, "token"),
               counted(one.handle().num_kv_blocks, "block"), utc_time(one.handle().created_at)});
  };
  side("A", Style::kA, a);
  side("B", Style::kB, b);
  Table facts;
  const auto row = [&](const char* label, const std::string& value) {
    facts.add({styled(look, Style::kDim, label), value});
  };
  row("model", found.same_model ? "same, " + printable(look, a.handle().model_id)
                                : "differ: A " + printable(look, a.handle().model_id) + ", B " +
                                      printable(look, b.handle().model_id));
  row("blocks", found.same_layout ? "same layout" : "differ in layers, shape or type");
  row("shared", shared_line(look, diff));
  row("only in A", counted(found.only_a_blocks, "block"));
  row("only in B", counted(found.only_b_blocks, "block"));
  row("parted", parted_line(look, diff));
  row("weights", std::string("A ") + (a.handle().has_weights ? "included" : "no") + ", B " +
                     (b.handle().has_weights ? "included" : "no"));
  std::string out = sides.render() + "\n" + facts.render("  ");
  const std::uint64_t longest =
      found.shared_blocks + std::max(found.only_a_blocks, found.only_b_blocks);
  if (found.has_hashes && longest > 0) {
    const std::size_t room = std::min<std::size_t>(look.width - 8, 60);
    const auto drawn = [&](std::uint64_t only) {
      const std::size_t columns =
          std::max<std::size_t>(1, (found.shared_blocks + only) * room / longest);
      return bar(look, found.shared_blocks, found.shared_blocks + only, columns);
    };
    out += "\n  A " + styled(look, Style::kA, drawn(found.only_a_blocks)) + "\n  B " +
           styled(look, Style::kB, drawn(found.only_b_blocks)) + "\n";
  }
  if (!diff.parting) return out;
  const HandleDiff::Parting& parting = *diff.parting;
  out += "\n  " + styled(look, Style::kDim, "both") + " " + quoted_end(look, parting.shared) + "\n";
  return out + side_by_side(look, "A " + handle_name(a), parting.a.empty() ? "(ends)" : parting.a,
                            "B " + handle_name(b), parting.b.empty() ? "(ends)" : parting.b);
}

Result<void> run_diff(const DiffSettings& settings, const ModelPaths& paths) {
  kvsnap::FileIo& io = kvsnap::system_io(kvsnap::IoMode::kNoLinks);
  const auto a = HandleDirectory::open(io, settings.a);
  if (!a) return a.error();
  const auto b = HandleDirectory::open(io, settings.b);
  if (!b) return b.error();
  std::unique_ptr<text::Tokenizer> tokenizer;
  if (!settings.tokenizer.empty()) {
    auto opened = open_tokenizer(settings.tokenizer, paths);
    if (!opened) return std::move(opened).error();
    tokenizer = *std::move(opened);
  } else if (a->handle().prefix_token_ids && b->handle().prefix_token_ids) {
    tokenizer = find_tokenizer(*a, paths);
    if (!tokenizer) tokenizer = find_tokenizer(*b, paths);
  }
  const HandleDiff diff = diff_handles(*a, *b, tokenizer.get());
  if (settings.json) {
    print_json(diff_json(diff));
  } else {
    std::fputs(format_diff(look_of_stdout(), diff).c_str(), stdout);
  }
  return {};
}

}  // namespace thaw::cli

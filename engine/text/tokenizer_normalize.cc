#include "engine/text/tokenizer_normalize.h"

#include <utf8proc.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "engine/text/tokenizer_unicode.h"

namespace thaw::text {
namespace {

struct Free {
  void operator()(utf8proc_uint8_t* text) const { std::free(text); }
};

/// Code points that NFC never changes, whatever stands beside them: a few blocks that hold most of
/// what is written. All else is left to utf8proc.
bool is_stable(std::uint32_t c) {
  return c < 0x300 || (c >= 0x400 && c < 0x483) || (c >= 0x2010 && c < 0x20D0) ||
         (c >= 0x2190 && c < 0x2200) || (c >= 0x2500 && c < 0x2800) ||
         (c >= 0x3000 && c < 0x302A) || (c >= 0x30FB && c < 0x3100) ||
         (c >= 0x4E00 && c < 0xA000) || (c >= 0xFF01 && c < 0xFF61) ||
         (c >= 0x1F000 && c < 0x1FB00);
}

/// Past the run of characters at `at` that are valid UTF-8; `stable` says whether all are.
const char* valid_run(const char* at, const char* end, bool& stable) {
  while (at < end) {
    if (static_cast<std::uint8_t>(*at) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Step step = decode_utf8(at, end);
    if (step.kind != Utf8Step::Kind::kValid) break;
    stable = stable && is_stable(step.code_point);
    at += step.length;
  }
  return at;
}

}  // namespace

std::string_view normalize_nfc(std::string_view text, std::string& scratch) {
  const char* const end = text.data() + text.size();
  const char* at = text.data();
  const char* copied = at;  // all before is in `scratch`
  scratch.clear();
  while (at < end) {
    bool stable = true;
    const char* const run = valid_run(at, end, stable);
    if (!stable) {
      utf8proc_uint8_t* composed = nullptr;
      const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
      const utf8proc_ssize_t size =
          utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(at), run - at, &composed, options);
      const std::unique_ptr<utf8proc_uint8_t, Free> owner(composed);
      if (size >= 0) {
        scratch.append(copied, at);
        scratch.append(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(size));
        copied = run;
      }
    }
    at = run < end ? run + decode_utf8(run, end).length : run;
  }
  if (copied == text.data()) return text;
  scratch.append(copied, end);
  return scratch;
}

void append_spaces(std::string_view text, std::string& out) {
  while (true) {
    const std::size_t mark = text.find(kSpaceMark);
    out += text.substr(0, mark);
    if (mark == std::string_view::npos) return;
    out += ' ';
    text.remove_prefix(mark + kSpaceMark.size());
  }
}

std::string_view PartNormalizer::apply(std::string_view part, bool at_start,
                                       Scratch& scratch) const {
  using Prefix = TokenizerSpec::SpacePrefix;
  if (nfc_) part = normalize_nfc(part, scratch.composed);
  const bool has_marks = spaces_ && part.find(kSpaceMark) != std::string_view::npos;
  const bool begins_with_space = part.starts_with(' ') || (spaces_ && part.starts_with(kSpaceMark));
  const bool prefix =
      prefix_ == Prefix::kEveryPart ||
      (!begins_with_space && (prefix_ == Prefix::kEveryPartUnlessThere ||
                              (prefix_ == Prefix::kFirstPartUnlessThere && at_start)));
  if (!prefix && !has_marks) return part;
  scratch.spaced.clear();
  if (prefix) scratch.spaced += ' ';
  if (has_marks) {
    append_spaces(part, scratch.spaced);
  } else {
    scratch.spaced += part;
  }
  return scratch.spaced;
}

}  // namespace thaw::text

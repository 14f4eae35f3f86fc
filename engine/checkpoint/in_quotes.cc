#include "engine/checkpoint/in_quotes.h"

namespace thaw::checkpoint {
namespace {

constexpr std::size_t kMaxShown = 64;

}  // namespace

std::string in_quotes(std::string_view text) {
  std::string out = "'";
  for (const char c : text.substr(0, kMaxShown))
    out += c >= ' ' && c < 127 ? c : '?';
  return out + (text.size() > kMaxShown ? "...'" : "'");
}

}  // namespace thaw::checkpoint

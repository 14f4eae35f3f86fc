#pragma once

// What the fixtures of reference logits have in common (scripts/fixtures).

#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/base/types.h"

namespace thaw::model {

/// The best logits of each position, and the logsumexp of all.
struct TopLogits {
  std::vector<TokenId> tokens;
  std::vector<float> logsumexp;  // [positions]
  std::uint32_t top = 0;
  std::vector<std::uint32_t> ids;  // [positions, top], best first
  std::vector<float> logits;  // [positions, top]
};

template <typename T>
std::vector<T> read_values(std::ifstream& file, std::size_t count) {
  std::vector<T> values(count);
  file.read(reinterpret_cast<char*>(values.data()),
            static_cast<std::streamsize>(count * sizeof(T)));
  return values;
}

/// Checks the magic and returns the `num_sizes` numbers behind it.
inline std::vector<std::uint32_t> read_sizes(std::ifstream& file, const std::string& path,
                                             const char (&magic)[9], std::size_t num_sizes) {
  const auto found = read_values<char>(file, 8);
  auto sizes = read_values<std::uint32_t>(file, num_sizes);
  if (!file || std::memcmp(found.data(), magic, 8) != 0)
    throw std::runtime_error(path + " is missing or damaged: `make fixtures` writes it");
  return sizes;
}

inline void read_top_logits(std::ifstream& file, std::size_t positions, std::uint32_t top,
                            TopLogits& to) {
  to.top = top;
  for (const std::uint32_t id : read_values<std::uint32_t>(file, positions))
    to.tokens.push_back(static_cast<TokenId>(id));
  to.logsumexp = read_values<float>(file, positions);
  to.ids = read_values<std::uint32_t>(file, positions * top);
  to.logits = read_values<float>(file, positions * top);
}

inline void check_whole(const std::ifstream& file, const std::string& path) {
  if (!file) throw std::runtime_error(path + " is truncated: `make fixtures` writes it");
}

}  // namespace thaw::model

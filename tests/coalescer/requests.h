#pragma once

#include <string>
#include <utility>
#include <vector>

#include "engine/base/generate.h"

namespace thaw::coalescer {

inline GenerateRequest request(RequestId id, std::vector<TokenId> prompt, std::string salt = "") {
  GenerateRequest made;
  made.id = id;
  made.prompt = std::move(prompt);
  made.cache_salt = std::move(salt);
  return made;
}

}  // namespace thaw::coalescer

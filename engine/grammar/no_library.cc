#include "engine/grammar/grammar.h"

namespace thaw::grammar {

bool is_built_in() {
  return false;
}

Result<std::shared_ptr<const Vocabulary>> make_vocabulary(
    const TokenTexts& /*texts*/, int /*vocab_size*/, std::span<const TokenId> /*stop_token_ids*/) {
  return make_error(Errc::kUnsupported,
                    "this build of thaw has no grammar library: make setup builds it, then build "
                    "thaw again");
}

}  // namespace thaw::grammar

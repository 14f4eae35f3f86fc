#include <utility>

#include "coalescer/http/server.h"
#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

// In a file of its own: only this needs the model's text rooms at link time.
Result<std::unique_ptr<Server>> Server::create(ServerOptions options, Backend* backend,
                                               const text::Tokenizer* tokenizer,
                                               const text::ChatTemplate* chat_template) {
  return create(std::move(options), backend,
                std::shared_ptr<const TextCodec>(make_model_codec(tokenizer, chat_template)));
}

}  // namespace thaw::coalescer

#include "coalescer/openai/answer_writer.h"

#include "coalescer/openai/chunk_writer.h"
#include "coalescer/openai/messages_writer.h"
#include "coalescer/openai/responses_writer.h"

namespace thaw::coalescer {

std::unique_ptr<AnswerWriter> make_answer_writer(const ApiCall& call,
                                                 const CompletionLabel& label) {
  if (call.kind == ApiKind::kResponses) return std::make_unique<ResponsesWriter>(call, label);
  if (call.kind == ApiKind::kMessages) return std::make_unique<MessagesWriter>(call, label);
  return std::make_unique<ChunkWriter>(call, label);
}

}  // namespace thaw::coalescer

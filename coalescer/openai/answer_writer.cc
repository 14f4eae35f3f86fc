#include "coalescer/openai/answer_writer.h"

#include "coalescer/openai/chunk_writer.h"

namespace thaw::coalescer {

std::unique_ptr<AnswerWriter> make_answer_writer(const ApiCall& call,
                                                 const CompletionLabel& label) {
  return std::make_unique<ChunkWriter>(call, label);
}

}  // namespace thaw::coalescer

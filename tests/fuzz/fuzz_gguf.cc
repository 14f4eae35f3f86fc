// A GGUF file: metadata, tensors, configuration, tokenizer.

#include <memory>

#include "cli/model_source.h"
#include "engine/checkpoint/gguf.h"
#include "engine/model/source.h"
#include "engine/model/tensor_list.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/fuzz_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw;
  static FuzzFile file;
  const std::string& path = file.write(data, size);
  std::vector<checkpoint::UnsupportedTensor> unsupported;
  static_cast<void>(checkpoint::GgufFile::open(path));
  auto opened = checkpoint::GgufFile::open(path, &unsupported);
  if (!opened) return 0;
  const auto gguf = std::make_shared<const checkpoint::GgufFile>(*std::move(opened));
  read_all(*gguf);
  if (const auto source = model::model_source_from_gguf(gguf))
    static_cast<void>(model::tensor_list(source->config));
  if (auto spec = cli::tokenizer_spec_from_gguf(*gguf)) {
    const auto tokenizer = text::Tokenizer::create(*std::move(spec));
    if (tokenizer) static_cast<void>((*tokenizer)->encode("Hello, w\xc3\xb6rld 42\n", true));
  }
  return 0;
}

// What grammars cost a decode step of eight rows: none, four and all of them constrained, on the
// CPU. THAW_BENCH_MODEL: a GGUF file (default: that of `make model`); THAW_BENCH_THREADS: threads
// of the model (2); THAW_BENCH_ROUNDS (5).

#include "bench/scheduler/constrained_rows.h"
#include "engine/base/memory_map.h"
#include "engine/model/load.h"
#include "tests/text/model_tokenizer.h"

namespace thaw::scheduler {
namespace {

int setting(const char* name, int standard) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::max(1, std::atoi(text)) : standard;
}

struct CpuBench {
  CpuBench() {
    const char* path = std::getenv("THAW_BENCH_MODEL");
    const auto file = std::make_shared<const checkpoint::GgufFile>(
        checkpoint::GgufFile::open(path != nullptr ? path : text::default_model_path()).value());
    const model::ModelSource source = model::model_source_from_gguf(file).value();
    device = ops::CpuDevice::create(setting("THAW_BENCH_THREADS", 2)).value();
    const model::LoadedImage loaded =
        model::build_image(source, {ops::ComputeMode::kNative}, device->threads()).value();
    memory = map_fd(loaded.fd.get(), loaded.size_bytes, MapAccess::kReadOnly).value();
    const auto image = checkpoint::WeightImageView::open(memory.bytes()).value();
    kv.resize(model::kv_block_bytes(loaded.config, ops::KvDType::kBF16) * kNumBlocks);
    model = model::make_model(*device, image, kv, {}).value();
    grammars = std::make_unique<grammar::Service>(
        std::make_shared<const TokenTexts>(
            text::Tokenizer::create(text::spec_from_gguf(*file)).value()->texts()),
        loaded.config.vocab_size, loaded.config.eos_token_ids);
  }

  std::unique_ptr<ops::CpuDevice> device;
  Mapping memory;
  std::vector<std::byte> kv;
  std::unique_ptr<model::Model> model;
  std::unique_ptr<grammar::Service> grammars;
};

}  // namespace
}  // namespace thaw::scheduler

int main(int argc, char** argv) {
  thaw::scheduler::CpuBench bench;
  return thaw::scheduler::run_rows(argc, argv, *bench.model, *bench.grammars,
                                   thaw::scheduler::setting("THAW_BENCH_ROUNDS", 5));
}

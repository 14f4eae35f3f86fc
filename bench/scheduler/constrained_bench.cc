// What grammars cost a decode step of eight rows: none, four and all of them constrained, over the
// default model (`make model`) on the CPU. THAW_BENCH_THREADS: threads of the model (default: 2).

#include "bench/scheduler/constrained_rows.h"
#include "engine/base/memory_map.h"
#include "engine/model/load.h"
#include "tests/text/model_tokenizer.h"

namespace thaw::scheduler {
namespace {

struct CpuBench {
  CpuBench() {
    const model::ModelSource source =
        model::model_source_from_gguf(
            std::make_shared<const checkpoint::GgufFile>(
                checkpoint::GgufFile::open(text::default_model_path()).value()))
            .value();
    const char* text = std::getenv("THAW_BENCH_THREADS");
    device = ops::CpuDevice::create(text != nullptr ? std::max(1, std::atoi(text)) : 2).value();
    const model::LoadedImage loaded =
        model::build_image(source, {ops::ComputeMode::kNative}, device->threads()).value();
    memory = map_fd(loaded.fd.get(), loaded.size_bytes, MapAccess::kReadOnly).value();
    const auto image = checkpoint::WeightImageView::open(memory.bytes()).value();
    kv.resize(model::kv_block_bytes(loaded.config, ops::KvDType::kBF16) * kNumBlocks);
    model = model::make_model(*device, image, kv, {}).value();
    grammars = std::make_unique<grammar::Service>(
        std::make_shared<const TokenTexts>(text::default_model_tokenizer()->texts()),
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
  thaw::scheduler::run_rows(argc, argv, *bench.model, *bench.grammars, 5);
  return 0;
}

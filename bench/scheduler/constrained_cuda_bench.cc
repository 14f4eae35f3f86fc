// What grammars cost a decode step of eight rows on a GPU, over random weights of an 8B Llama's
// shape: none, four and all of them constrained. The tokens' texts are the default model's (`make
// model`), the rest of the vocabulary has none.

#include "bench/scheduler/constrained_rows.h"
#include "engine/cuda/buffer.h"
#include "engine/model/cuda/cuda_model.h"
#include "engine/model/cuda/device_image.h"
#include "engine/model/cuda/random_image.h"
#include "engine/ops/cuda/device.h"
#include "tests/text/model_tokenizer.h"

namespace thaw::scheduler {
namespace {

struct CudaBench {
  CudaBench() {
    const model::ModelConfig config = model::llama_8b_config();
    kv = {kNumBlocks * model::kv_block_bytes(config, ops::KvDType::kBF16), stream};
    model::CudaModelOptions options;
    options.max_positions = 4096;
    options.max_rows = 1024;
    model = model::make_cuda_model(*device, *image.view, image.weights.span(), kv, options).value();
    grammars = std::make_unique<grammar::Service>(
        std::make_shared<const TokenTexts>(text::default_model_tokenizer()->texts()),
        config.vocab_size, config.eos_token_ids);
  }

  std::unique_ptr<ops::CudaDevice> device = ops::CudaDevice::create(0).value();
  cuda::Stream stream;
  model::RandomImage image =
      model::make_random_image(model::llama_8b_config(), 1, 0.02F, 0, stream).value();
  cuda::DeviceBuffer<std::byte> kv;
  std::unique_ptr<model::CudaModel> model;
  std::unique_ptr<grammar::Service> grammars;
};

}  // namespace
}  // namespace thaw::scheduler

int main(int argc, char** argv) {
  thaw::scheduler::CudaBench bench;
  return thaw::scheduler::run_rows(argc, argv, *bench.model, *bench.grammars, /*rounds=*/7);
}

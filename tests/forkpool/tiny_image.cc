#include "tests/forkpool/tiny_image.h"

#include <memory>
#include <string>

#include "engine/base/thread_pool.h"
#include "engine/checkpoint/gguf.h"

namespace thaw::forkpool::test {
namespace {

model::LoadedImage build(const std::string& name, const ops::PackingOptions& packing) {
  ThreadPool threads(1);
  auto file = checkpoint::GgufFile::open(std::string(THAW_BINARY_DIR) + "/testdata/" + name);
  const auto source = model::model_source_from_gguf(
      std::make_shared<const checkpoint::GgufFile>(std::move(file).value()));
  return model::build_image(source.value(), packing, threads).value();
}

}  // namespace

const model::LoadedImage& tiny_image() {
  static const model::LoadedImage image = build("tiny-q4_1.gguf", {ops::ComputeMode::kNative});
  return image;
}

const model::LoadedImage& tiny_cuda_image() {
  static const model::LoadedImage image =
      build("tiny-cuda-f32.gguf", {.device = ops::DeviceKind::kCuda});
  return image;
}

}  // namespace thaw::forkpool::test

// The JSON texts of a Hugging Face directory: shard index, config.json, generation_config.json and
// tokenizer_config.json, in this order, with a byte 0x1e between two. The shard is the same always.

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>

#include "engine/checkpoint/hf_directory.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/model/source.h"
#include "engine/model/tensor_list.h"
#include "tests/checkpoint/safetensors_builder.h"

namespace {

void write(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(text.data(), static_cast<std::streamsize>(text.size()));
}

/// A folder for this process, in memory where there is such a place, with the shard in it.
std::filesystem::path make_folder() {
  const std::filesystem::path memory("/dev/shm");
  const bool is_there = std::filesystem::is_directory(memory);
  std::string name =
      ((is_there ? memory : std::filesystem::temp_directory_path()) / "thaw-fuzz-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) std::abort();
  write(std::filesystem::path(name) / "model-1.safetensors",
        thaw::checkpoint::SafetensorsBuilder()
            .tensor("model.embed_tokens.weight", "F32", "[2,2]", std::string(16, '\0'))
            .tensor("model.norm.weight", "BF16", "[2]", std::string(4, '\0'))
            .bytes());
  return name;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw;
  static const std::filesystem::path folder = make_folder();
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  for (const char* name : {"model.safetensors.index.json", "config.json", "generation_config.json",
                           "tokenizer_config.json"}) {
    const std::size_t end = rest.find('\x1e');
    write(folder / name, rest.substr(0, end));
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  }
  const auto directory = checkpoint::read_hf_directory(folder);
  auto tensors = checkpoint::SafetensorsFiles::open(folder);
  if (!tensors) tensors = checkpoint::SafetensorsFiles::open_file(folder / "model-1.safetensors");
  if (!directory || !tensors) return 0;
  const auto source = model::model_source_from_hf(
      std::make_shared<const checkpoint::SafetensorsFiles>(*std::move(tensors)), directory->config,
      directory->generation_config);
  if (source) static_cast<void>(model::tensor_list(source->config));
  return 0;
}

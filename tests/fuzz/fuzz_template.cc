// A chat template, parsed and rendered.

#include <cstdint>
#include <cstdlib>
#include <string>

#include "engine/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw;
  const auto parsed =
      text::ChatTemplate::parse(std::string(reinterpret_cast<const char*>(data), size));
  if (!parsed) return 0;
  text::RenderOptions options;
  options.messages = {{{"role", "system"}, {"content", "Be brief."}},
                      {{"role", "user"}, {"content", "<|im_start|> hi"}},
                      {{"role", "assistant"}, {"content", nullptr}}};
  options.tools = {
      {{"type", "function"}, {"function", {{"name", "f"}, {"parameters", {{"x", 1}}}}}}};
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  options.max_work = 100'000;
  const auto rendered = (*parsed)->render(options);
  if (!rendered) return 0;
  for (std::size_t i = 1; i < rendered->size(); ++i)
    if ((*rendered)[i].from_template == (*rendered)[i - 1].from_template) std::abort();
  return 0;
}

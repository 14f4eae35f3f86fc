#include "cli/freeze_kv.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <variant>

#include "cli/pool_backend.h"
#include "coalescer/openai/text_codec.h"
#include "engine/base/device_name.h"
#include "engine/checkpoint/text_file.h"
#include "engine/model/model.h"
#include "forkpool/worker/device_parts.h"

namespace thaw::cli {
namespace {

constexpr std::chrono::minutes kDeadline{30};
constexpr std::uint64_t kSpareBlocks = 8;
constexpr std::uint64_t kImageCacheBytes = 32ULL << 30;
constexpr std::size_t kMaxPromptBytes = std::size_t{32} << 20;

Result<std::string> read_prompt(const std::string& prompt) {
  if (!prompt.starts_with('@')) return prompt;
  return checkpoint::read_text_file(prompt.substr(1), kMaxPromptBytes);
}

Result<std::vector<TokenId>> encode(const FreezeKvSettings& settings, const ModelText& text) {
  auto prompt = read_prompt(settings.prompt);
  if (!prompt) return std::move(prompt).error();
  const auto codec = coalescer::make_model_codec(text.tokenizer.get(), text.chat_template.get());
  if (!settings.is_system_message) return codec->encode_text(*prompt, true);
  coalescer::ChatPrompt chat;
  chat.messages.push_back({{"role", "system"}, {"content", *prompt}});
  chat.add_generation_prompt = false;
  return codec->encode_chat(chat);
}

/// Waits for the one request of a backend.
class OneRequest {
 public:
  std::future<Result<void>> run(PoolBackend& backend, GenerateRequest request) {
    backend.set_event_sink([ended = ended_](const GenerateEvent& event) {
      if (std::holds_alternative<CompletedEvent>(event)) ended->set_value({});
      if (const auto* failed = std::get_if<FailedEvent>(&event)) ended->set_value(failed->error);
    });
    ForkPlan plan;
    plan.requests.push_back({std::move(request), -1});
    auto future = ended_->get_future();
    backend.submit(std::move(plan));
    return future;
  }

 private:
  std::shared_ptr<std::promise<Result<void>>> ended_ =
      std::make_shared<std::promise<Result<void>>>();
};

Error too_late(const char* what) {
  return make_error(Errc::kDeadlineExceeded,
                    std::string(what) + " took longer than " +
                        std::to_string(std::chrono::minutes(kDeadline).count()) + " minutes");
}

}  // namespace

void add_freeze_kv_options(CLI::App& command, FreezeKvSettings& settings) {
  const std::string group = "KV";
  command
      .add_option("--kv-output", settings.output,
                  "Also prefill a prompt and write its KV to this .thawkv file")
      ->group(group);
  command
      .add_option("--kv-warmup-prompt", settings.prompt,
                  "The prompt: text as /v1/completions takes it, or @FILE")
      ->group(group);
  command
      .add_flag("--kv-warmup-system", settings.is_system_message,
                "The prompt is the system message of chats, rendered by the chat template")
      ->group(group);
  command
      .add_option("--kv-tenant", settings.tenant,
                  "Only requests of this tenant may use it; default: those of servers without keys")
      ->group(group);
  command.add_option("--device", settings.device, "cpu, cuda or cuda:N: where the KV will be used")
      ->group(group)
      ->capture_default_str();
  command.add_option("--kv-dtype", settings.kv_dtype, "Type of the KV cache")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))
      ->group(group)
      ->capture_default_str();
}

Result<void> check_freeze_kv(const FreezeKvSettings& settings) {
  if (settings.output.empty() == settings.prompt.empty()) return {};
  return make_error(Errc::kInvalidArgument,
                    settings.output.empty()
                        ? "--kv-warmup-prompt is there, but not --kv-output to write its KV to"
                        : "--kv-output is there, but not --kv-warmup-prompt whose KV it shall be");
}

Result<void> freeze_kv(const FreezeKvSettings& settings, const ModelLoader& model,
                       const ModelPaths& paths) {
  const auto device = parse_device(settings.device);
  if (!device) return device.error();
  ops::PackingOptions packing;
  const bool on_cpu = device->kind == DeviceName::Kind::kCpu;
  if (!on_cpu) packing.device = ops::DeviceKind::kCuda;
  const auto kv_dtype = forkpool::worker::parse_kv_dtype(settings.kv_dtype);
  if (!kv_dtype) return kv_dtype.error();
  const auto cores = std::max(1U, std::thread::hardware_concurrency());
  model::ImageCache images({paths.images, kImageCacheBytes, false});
  auto loaded = model.load(packing, static_cast<int>(cores), images);
  if (!loaded) return std::move(loaded).error();
  auto tokens = encode(settings, loaded->text);
  if (!tokens) return std::move(tokens).error();
  if (tokens->size() < kBlockSize) {
    return make_error(Errc::kInvalidArgument,
                      "--kv-warmup-prompt has " + std::to_string(tokens->size()) +
                          " tokens; KV is kept in blocks of " + std::to_string(kBlockSize));
  }
  const std::uint64_t blocks = tokens->size() / kBlockSize + kSpareBlocks;
  const std::uint64_t kv_bytes = blocks * model::kv_block_bytes(loaded->image.config, *kv_dtype);

  forkpool::PoolOptions options;
  options.worker_binary = "/proc/self/exe";
  options.device = settings.device;
  options.threads_per_worker = cores;
  options.kv_dtype = settings.kv_dtype;
  options.kv_bytes = kv_bytes;
  options.arena_bytes = kv_bytes;
  options.log_level = "warn";
  auto backend = PoolBackend::start(
      std::move(options), {std::move(loaded->image.fd), loaded->image.size_bytes, nullptr});
  if (!backend) return std::move(backend).error();
  const auto started = std::chrono::steady_clock::now();
  std::printf("[thaw] Running warmup prompt of %zu tokens\n", tokens->size());
  std::fflush(stdout);
  GenerateRequest request;
  request.id = 1;
  request.tenant = settings.tenant;
  request.model = model.name();
  request.prompt = *tokens;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 1;
  OneRequest one;
  auto computed = one.run(**backend, std::move(request));
  if (computed.wait_for(kDeadline) != std::future_status::ready) return too_late("the prompt");
  if (auto result = computed.get(); !result) return result;

  auto saved = std::make_shared<std::promise<Result<KeptTrunk>>>();
  auto written = saved->get_future();
  SaveTrunk save;
  save.path = settings.output;
  save.owner = {settings.tenant, "", model.name(), ""};
  save.token_ids = *std::move(tokens);
  save.deadline = kDeadline;
  (*backend)->save(std::move(save),
                   [saved](Result<KeptTrunk> kept) { saved->set_value(std::move(kept)); });
  if (written.wait_for(kDeadline) != std::future_status::ready) return too_late("the file");
  const auto kept = written.get();
  if (!kept) return kept.error();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
  std::printf("[thaw] KV cache: %u blocks, %u tokens, %.1f MB in %.3f s\n",
              kept->num_tokens / static_cast<unsigned>(kBlockSize), kept->num_tokens,
              static_cast<double>(kept->bytes) / 1e6, took.count());
  std::printf("[thaw] %s is ready: thaw serve --kv-snapshot %s\n", settings.output.c_str(),
              settings.output.c_str());
  return {};
}

}  // namespace thaw::cli

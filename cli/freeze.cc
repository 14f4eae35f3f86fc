#include "cli/freeze.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>

#include "cli/freeze_weights.h"
#include "cli/memory_budget.h"
#include "cli/model_loader.h"
#include "cli/remote_files.h"
#include "cli/served_model.h"
#include "cli/version.h"
#include "engine/base/hash.h"

namespace thaw::cli {
namespace {

/// A name as scripts give it, in ours.
const char* stored_name(const std::string& dtype) {
  if (dtype == "float16") return "F16";
  if (dtype == "bfloat16") return "BF16";
  return "F32";
}

/// Weights are frozen as they are stored. A type that they have already may be asked for.
Result<void> check_dtype(const FreezeSettings& settings, const model::ModelSource& source) {
  if (settings.dtype == "native" || settings.dtype == "auto") return {};
  const std::string wanted = stored_name(settings.dtype);
  const std::string stored(checkpoint::dtype_name(main_dtype(*source.tensors)));
  if (wanted == stored) return {};
  return make_error(Errc::kUnsupported,
                    "--dtype " + settings.dtype + ": the weights are stored as " + stored +
                        " and are frozen as they are; leave --dtype out, and give it to "
                        "`thaw serve` to round them when they are loaded");
}

Result<void> check_output(const std::string& output) {
  if (output.find("://") == std::string::npos || is_remote(output)) return {};
  return make_error(Errc::kUnsupported,
                    output + ": only local files and s3://BUCKET/KEY can be written");
}

}  // namespace

void add_freeze_options(CLI::App& command, FreezeSettings& settings) {
  command
      .add_option("--model,model", settings.model,
                  "GGUF file, directory of Hugging Face's files, .thaw file, or org/name in the "
                  "local Hugging Face cache; the default model without one")
      ->envname("THAW_MODEL");
  command.add_option(
      "--snapshot", settings.snapshot,
      "A .thaw file whose weights to take; one of the public project needs --model to "
      "say what they are");
  command
      .add_option("-o,--output", settings.output,
                  "File to write, such as weights.thaw, or s3://BUCKET/KEY")
      ->required();
  command
      .add_option("--tensor-parallel", settings.tensor_parallel,
                  "Shards, also -tp: weights.thaw, weights.rank1.thaw, ...")
      ->check(CLI::Range(1U, kMaxRanks))
      ->capture_default_str();
  command
      .add_option("--dtype", settings.dtype,
                  "native keeps what is stored; another type is accepted where it is that")
      ->check(CLI::IsMember({"native", "auto", "float16", "bfloat16", "float32"}))
      ->capture_default_str();
  add_s3_options(command, settings.s3);
  add_freeze_kv_options(command, settings.kv);
}

Result<void> run_freeze(const FreezeSettings& settings, const ModelPaths& paths) {
  if (auto checked = check_output(settings.output); !checked) return checked;
  if (auto checked = check_freeze_kv(settings.kv); !checked) return checked;
  std::unique_ptr<RemoteFiles> remote;
  if (is_remote(settings.output)) {
    auto opened = RemoteFiles::open(settings.s3, paths.snapshots);
    if (!opened) return std::move(opened).error();
    remote = *std::move(opened);
    if (auto checked = remote->check_output(settings.output); !checked) return checked;
  }
  kvsnap::FileIo& io = remote ? remote->io() : kvsnap::system_io(kvsnap::IoMode::kDirect);
  const auto model = settings.snapshot.empty()
                         ? ModelLoader::open(settings.model, paths)
                         : ModelLoader::open_snapshot(settings.snapshot, settings.model, paths,
                                                      kvsnap::Verify::kChecksums);
  if (!model) return model.error();
  if (auto checked = check_dtype(settings, model->source()); !checked) return checked;
  // What is damaged would get checksums that are right.
  ThreadPool threads(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 16U)));
  if (auto verified = model->source().tensors->verify(threads); !verified) return verified;
  auto document = model->describe();
  if (!document) return std::move(document).error();
  document->writer = std::string("thaw ") + kVersion;
  document->num_ranks = settings.tensor_parallel;

  const auto started = std::chrono::steady_clock::now();
  std::uint64_t bytes = 0;
  for (const checkpoint::StoredTensor& tensor : model->source().tensors->tensors())
    bytes += tensor.data.size();
  std::printf("[thaw] freezing %s: %zu tensors, %s, %s\n", model->name().c_str(),
              model->source().tensors->tensors().size(), document->dtype.c_str(),
              format_bytes(bytes).c_str());
  std::fflush(stdout);
  const auto frozen = freeze_weights(io, model->source(), *document, settings.output);
  if (!frozen) return frozen.error();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
  const double gigabytes = static_cast<double>(frozen->total_bytes) / 1e9;
  std::printf("[thaw] froze %llu regions, %.3f GB in %.2f s (%.2f GB/s)\n",
              static_cast<unsigned long long>(frozen->num_regions), gigabytes, took.count(),
              gigabytes / took.count());
  std::printf("[thaw] fingerprint %s\n", frozen->fingerprint.c_str());
  std::printf("[thaw] %s is ready: thaw serve --snapshot %s\n", settings.output.c_str(),
              settings.output.c_str());
  return settings.kv.output.empty() ? Result<void>() : freeze_kv(settings.kv, *model, paths);
}

}  // namespace thaw::cli

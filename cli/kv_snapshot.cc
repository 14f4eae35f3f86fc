#include "cli/kv_snapshot.h"

#include <cstdio>
#include <future>
#include <memory>
#include <utility>

#include "kvsnap/kv_file.h"

namespace thaw::cli {

Result<void> load_kv_snapshots(PoolBackend& backend, const std::vector<std::string>& paths,
                               std::chrono::milliseconds deadline) {
  ThreadPool threads(1);
  for (const std::string& path : paths) {
    const auto started = std::chrono::steady_clock::now();
    const auto file =
        kvsnap::KvFile::open(kvsnap::system_io(kvsnap::IoMode::kBuffered), path, threads);
    if (!file) return file.error();
    LoadTrunk load;
    load.path = path;
    load.pin = "--kv-snapshot " + path;
    load.owner = file->document().owner;
    load.deadline = deadline;
    auto loaded = std::make_shared<std::promise<Result<KeptTrunk>>>();
    auto ended = loaded->get_future();
    backend.load(std::move(load),
                 [loaded](Result<KeptTrunk> kept) { loaded->set_value(std::move(kept)); });
    constexpr std::chrono::seconds kMargin{10};  // the pool answers at its own deadline
    if (ended.wait_for(deadline + kMargin) != std::future_status::ready)
      return make_error(Errc::kDeadlineExceeded, path + ": no worker took it in time");
    const auto kept = ended.get();
    if (!kept) {
      Error error = kept.error();
      if (error.message.find(path) == std::string::npos)
        error.message = path + ": " + error.message;
      return error;
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    std::printf("[thaw] KV cache: %u blocks, %u tokens in %.3f s\n",
                kept->num_tokens / static_cast<unsigned>(kBlockSize), kept->num_tokens,
                took.count());
  }
  return {};
}

}  // namespace thaw::cli

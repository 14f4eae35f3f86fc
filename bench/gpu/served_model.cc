#include "bench/gpu/served_model.h"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <thread>

#include <nlohmann/json.hpp>

#include "bench/gpu/served_process.h"
#include "bench/gpu/timing.h"

namespace thaw::bench {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kQuestion = 20;
constexpr std::uint32_t kGenerated = 64;

/// Goes with all that is in it.
class OwnDirectory {
 public:
  explicit OwnDirectory(const std::string& parent)
      : OwnDirectory(fs::path(parent) / ("thaw-bench-" + std::to_string(::getpid())), false) {}
  /// One that stays.
  static OwnDirectory kept(const std::string& path) { return {path, true}; }
  ~OwnDirectory() {
    std::error_code ignored;
    if (!stays_) fs::remove_all(path_, ignored);
  }
  OwnDirectory(const OwnDirectory&) = delete;
  OwnDirectory& operator=(const OwnDirectory&) = delete;
  std::string operator/(const char* name) const { return (path_ / name).string(); }

 private:
  OwnDirectory(fs::path path, bool stays) : path_(std::move(path)), stays_(stays) {
    fs::create_directories(path_);
  }
  fs::path path_;
  bool stays_;
};

class Served {
 public:
  explicit Served(const ServedOptions& options)
      : options_(options),
        directory_(options.prepared.empty() ? OwnDirectory(options.directory)
                                            : OwnDirectory::kept(options.prepared)),
        random_(1) {
    packed_ = fs::exists(directory_ / "packed");
    if (!packed_)
      figures_.weight_bytes = write_random_checkpoint(directory_ / "model", options.shape, 1);
  }

  ServedFigures measure() {
    if (!packed_) {
      figures_.packing_start_ms = start_once(true);
      std::ofstream(directory_ / "packed") << "1\n";
    }
    if (options_.measures_starts) measure_starts();
    if (!options_.measures_starts && options_.branches.empty()) return figures_;
    ServedProcess server = serve();
    server.complete(random_prompt(64), 4);  // warms up
    if (options_.measures_starts) measure_respawn(server);
    for (const std::size_t branches : options_.branches)
      measure_rounds(server, branches);
    server.stop();
    return figures_;
  }

 private:
  void measure_starts() {
    std::vector<double> starts;
    for (int i = 0; i < options_.repeats; ++i)
      starts.push_back(start_once());
    figures_.start_ms = median(starts);
    figures_.start_worst_ms = *std::ranges::max_element(starts);
  }

  ServedProcess serve() {
    std::vector<std::string> arguments{directory_ / "model", "--device", options_.device};
    arguments.insert(arguments.end(), options_.arguments.begin(), options_.arguments.end());
    // So that no more is taken than is used.
    if (options_.device == "cpu") arguments.insert(arguments.end(), {"--kv-bytes", "256MiB"});
    return {
        options_.binary, arguments, {{"THAW_CACHE_DIR", directory_ / "cache"}}, directory_ / "log"};
  }

  std::vector<TokenId> random_prompt(std::size_t tokens) {
    std::vector<TokenId> prompt(tokens);
    for (TokenId& token : prompt)
      token = static_cast<TokenId>(1 + random_() %
                                           static_cast<unsigned>(options_.shape.vocab_size - 1));
    return prompt;
  }
  std::vector<TokenId> branch(const std::vector<TokenId>& trunk) {
    std::vector<TokenId> prompt = trunk;
    const std::vector<TokenId> question = random_prompt(kQuestion);
    prompt.insert(prompt.end(), question.begin(), question.end());
    return prompt;
  }

  /// Milliseconds from the process's start to its first token. `packs`: it is the first one.
  double start_once(bool packs = false) {
    const std::vector<TokenId> prompt = random_prompt(16);
    ServedProcess server = serve();
    server.complete(prompt, 1);
    const double took = milliseconds_since(server.started());
    if (options_.device != "cpu")
      figures_.upload_bytes_per_second = server.logged_number("GB_per_s=") * 1e9;
    if (packs) wait_for_image();
    server.stop();
    return took;
  }

  // The server puts it into its place once the disk has it.
  void wait_for_image() const {
    const fs::path images = directory_ / "cache/images";
    const auto end = ServedProcess::Clock::now() + std::chrono::minutes(3);
    while (ServedProcess::Clock::now() < end) {
      for (const auto& entry : fs::directory_iterator(images))
        if (entry.path().extension() == ".thawimg") return;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    throw std::runtime_error("the server kept no packed image");
  }

  void measure_respawn(ServedProcess& server) {
    const std::vector<TokenId> trunk = random_prompt(options_.trunk_tokens);
    server.complete(trunk, 1);
    std::vector<double> times;
    figures_.respawn_cached_tokens = trunk.size();
    for (int i = 0; i < options_.repeats; ++i) {
      const std::vector<TokenId> prompt = branch(trunk);
      const auto killed = ServedProcess::Clock::now();
      server.kill_worker();
      const Streamed answer = server.complete(prompt, 1);
      times.push_back(milliseconds_since(killed));
      figures_.respawn_cached_tokens =
          std::min(figures_.respawn_cached_tokens, answer.cached_tokens);
    }
    figures_.respawn_ms = median(times);
    figures_.respawn_worst_ms = *std::ranges::max_element(times);
    figures_.respawn_boot_ms = server.logged_number("boot_ms=");
  }

  /// The wall time of all, and the shortest way to a first token.
  std::pair<double, double> run_round(const ServedProcess& server,
                                      const std::vector<TokenId>& trunk, std::size_t branches) {
    std::vector<std::vector<TokenId>> prompts;
    for (std::size_t i = 0; i < branches; ++i)
      prompts.push_back(branch(trunk));
    std::vector<Streamed> answers(branches);
    std::vector<std::exception_ptr> failures(branches);
    const auto start = ServedProcess::Clock::now();
    {
      std::vector<std::jthread> clients;
      for (std::size_t i = 0; i < branches; ++i) {
        clients.emplace_back([&, i] {
          try {
            answers[i] = server.complete(prompts[i], kGenerated);
          } catch (...) {
            failures[i] = std::current_exception();
          }
        });
      }
    }
    const double wall = milliseconds_since(start);
    for (const std::exception_ptr& failure : failures)
      if (failure) std::rethrow_exception(failure);
    return {wall, std::ranges::min_element(answers, {}, &Streamed::first_token_ms)->first_token_ms};
  }

  void measure_rounds(const ServedProcess& server, std::size_t branches) {
    std::vector<double> walls[2];
    std::vector<double> firsts[2];
    for (int i = 0; i < options_.repeats + 1; ++i) {
      const std::vector<TokenId> trunk = random_prompt(options_.trunk_tokens);
      for (int warm = 0; warm < 2; ++warm) {
        const auto [wall, first] = run_round(server, trunk, branches);
        if (i == 0) continue;  // warms up
        walls[warm].push_back(wall);
        firsts[warm].push_back(first);
      }
    }
    figures_.rounds.push_back(
        {branches, median(walls[0]), median(walls[1]), median(firsts[0]), median(firsts[1])});
  }

  ServedOptions options_;
  OwnDirectory directory_;
  bool packed_ = false;  ///< the image is there
  std::mt19937 random_;
  ServedFigures figures_;
};

}  // namespace

void prepare_served(ServedOptions options) {
  options.measures_starts = false;
  options.branches.clear();
  measure_served(options);
}

ServedFigures measure_served(const ServedOptions& options) {
  return Served(options).measure();
}

std::string to_json(const ServedFigures& figures) {
  nlohmann::ordered_json rounds = nlohmann::ordered_json::array();
  for (const ServedRound& round : figures.rounds) {
    rounds.push_back({{"branches", round.branches},
                      {"cold_ms", round.cold_ms},
                      {"warm_ms", round.warm_ms},
                      {"cold_first_token_ms", round.cold_first_token_ms},
                      {"warm_first_token_ms", round.warm_first_token_ms}});
  }
  const nlohmann::ordered_json all = {{"weight_bytes", figures.weight_bytes},
                                      {"packing_start_ms", figures.packing_start_ms},
                                      {"start_ms", figures.start_ms},
                                      {"start_worst_ms", figures.start_worst_ms},
                                      {"upload_GB_per_s", figures.upload_bytes_per_second * 1e-9},
                                      {"respawn_ms", figures.respawn_ms},
                                      {"respawn_worst_ms", figures.respawn_worst_ms},
                                      {"respawn_cached_tokens", figures.respawn_cached_tokens},
                                      {"respawn_boot_ms", figures.respawn_boot_ms},
                                      {"rounds", rounds}};
  return all.dump(1);
}

}  // namespace thaw::bench

#include "bench/gpu/gpu_table.h"

#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

namespace thaw::bench {
namespace {

using Value = std::optional<double>;

// Llama-3.1-8B in bf16, what one step reads and a prompt of 4,001 tokens computes.
constexpr double kStepBytes = 15.009e9;
constexpr double kPromptFlops = 60.0e12;
constexpr double kKvBytesPerToken = 131072;
constexpr double kTrunkTokens = 4000;

/// Looks into what the parts printed.
class Figures {
 public:
  explicit Figures(const Json& parts) : parts_(parts) {}

  /// By JSON pointer.
  Value at(const std::string& pointer) const {
    const Json::json_pointer where(pointer);
    if (!parts_.contains(where)) return std::nullopt;
    const Json& value = parts_.at(where);
    if (value.is_number()) return value.get<double>();
    if (value.is_string()) return std::strtod(value.get_ref<const std::string&>().c_str(), nullptr);
    return std::nullopt;
  }
  /// Milliseconds of a Google Benchmark whose name begins so.
  Value bench(const std::string& part, const std::string& name) const {
    const Json::json_pointer where("/" + part + "/benchmarks");
    if (!parts_.contains(where)) return std::nullopt;
    for (const Json& entry : parts_.at(where)) {
      const auto& found = entry.at("name").get_ref<const std::string&>();
      if (found == name || found.starts_with(name + "/"))
        return entry.at("real_time").get<double>();
    }
    return std::nullopt;
  }
  /// Of the entry of an array whose `key` is `wanted`.
  Value where(const std::string& array, const char* key, const Json& wanted,
              const char* field) const {
    const Json::json_pointer pointer(array);
    if (!parts_.contains(pointer)) return std::nullopt;
    for (const Json& entry : parts_.at(pointer))
      if (entry.at(key) == wanted) return entry.at(field).get<double>();
    return std::nullopt;
  }

  /// Milliseconds of a step over `ranks` GPUs.
  Value step(int ranks, const std::string& what, int rows, int trunk) const {
    const Json::json_pointer pointer("/tensor_parallel/steps");
    if (!parts_.contains(pointer)) return std::nullopt;
    for (const Json& entry : parts_.at(pointer))
      if (entry.at("ranks") == ranks && entry.at("what") == what && entry.at("rows") == rows &&
          entry.at("trunk") == trunk)
        return entry.at("ms").get<double>();
    return std::nullopt;
  }
  Value exchange(const std::string& what, int rows) const {
    const Json::json_pointer pointer("/tensor_parallel/exchanges");
    if (!parts_.contains(pointer)) return std::nullopt;
    for (const Json& entry : parts_.at(pointer))
      if (entry.at("what") == what && entry.at("rows") == rows) return entry.at("us").get<double>();
    return std::nullopt;
  }

  /// Milliseconds that so many bytes take to be read on the device.
  Value read_ms(double bytes) const {
    const Value rate = at("/ops/context/read_only_TB_per_s");
    return rate ? Value(bytes / (*rate * 1e12) * 1e3) : std::nullopt;
  }
  Value flops_ms(double flops) const {
    const Value rate = at("/ops/context/cublas_TFLOP_per_s");
    return rate ? Value(flops / (*rate * 1e12) * 1e3) : std::nullopt;
  }
  /// By the copy engine.
  Value copy_ms(double bytes, bool to_device) const {
    const Value rate = at(to_device ? "/kv_copies/copy_engine_to_device_GB_per_s"
                                    : "/kv_copies/copy_engine_to_host_GB_per_s");
    return rate ? Value(bytes / (*rate * 1e9) * 1e3) : std::nullopt;
  }

 private:
  const Json& parts_;
};

class Table {
 public:
  void add(const char* what, const char* unit, Value measured, Value ceiling, Value goal) {
    const auto json = [](Value value) { return value ? Json(*value) : Json(); };
    rows_.push_back({{"what", what},
                     {"unit", unit},
                     {"thaw", json(measured)},
                     {"ceiling", json(ceiling)},
                     {"share", measured && ceiling ? Json(*ceiling / *measured) : Json()},
                     {"goal", json(goal)}});
  }
  Json take() { return std::move(rows_); }

 private:
  Json rows_ = Json::array();
};

Value plus(Value a, Value b) {
  return a && b ? Value(*a + *b) : std::nullopt;
}

Value times(Value a, double factor) {
  return a ? Value(*a * factor) : std::nullopt;
}

void add_steps(const Figures& f, Table& table) {
  const auto kv = [&](double sequences_own) {
    return kStepBytes + kKvBytesPerToken * (kTrunkTokens + sequences_own);
  };
  table.add("decode step, batch 1, short context", "ms", f.bench("model", "decode/rows:1/trunk:0"),
            f.read_ms(kStepBytes), 5.2);
  table.add("decode step on a shared trunk of 4,000, batch 4", "ms",
            f.bench("model", "decode/rows:4/trunk:4000"), f.read_ms(kv(0)), 5.45);
  table.add("decode step on a shared trunk of 4,000, batch 16", "ms",
            f.bench("model", "decode/rows:16/trunk:4000"), f.read_ms(kv(0)), 5.8);
  table.add("linears of a step, batch 16: ours", "ms", f.bench("ops", "step_linears/16/ours"),
            f.read_ms(kStepBytes), std::nullopt);
  table.add("linears of a step, batch 16: cuBLAS, free to choose", "ms",
            f.bench("ops", "step_linears/16/cublas"), f.read_ms(kStepBytes), std::nullopt);
  table.add("prefill of 4,001 tokens", "ms", f.bench("model", "prefill/tokens:4001"),
            f.flops_ms(kPromptFlops), 95);
  table.add("first token, 4,000 tokens cached and 20 new", "ms",
            f.bench("model", "first_token/new:20"), f.read_ms(kv(20)), 7);
}

void add_rounds(const Figures& f, Table& table) {
  struct Goal {
    int branches;
    double cold;
    double warm;
  };
  for (const auto& [branches, cold, warm] : {Goal{4, 450, 350}, Goal{16, 500, 385}}) {
    const std::string round =
        "fork round, " + std::to_string(branches) + " branches x 64, trunk of 4,001";
    const Value decode = times(f.read_ms(kStepBytes + kKvBytesPerToken * kTrunkTokens), 64);
    const Value prefill = f.flops_ms(kPromptFlops);
    const auto add = [&](const std::string& name, const std::string& rounds) {
      table.add((name + ": cold").c_str(), "ms", f.where(rounds, "branches", branches, "cold_ms"),
                plus(decode, prefill), cold);
      table.add((name + ": warm").c_str(), "ms", f.where(rounds, "branches", branches, "warm_ms"),
                decode, warm);
    };
    add(round, "/fork_rounds/rounds");
    add(round + ", by HTTP", "/served/rounds");
  }
  table.add("fork in a worker: admitting one branch", "us", f.at("/fork_rounds/admit_us"),
            std::nullopt, 50);
}

void add_copies(const Figures& f, Table& table) {
  const double trunk = f.at("/kv_copies/bytes").value_or(0);
  const auto copies = [&](const char* field) {
    return f.where("/kv_copies/copies", "checksum_threads", 12, field);
  };
  table.add("snapshot of 4,000 tokens to the arena, checksums and all", "ms", copies("snapshot_ms"),
            f.copy_ms(trunk, false), 10.5);
  table.add("restore of 4,000 tokens from host memory", "ms", copies("restore_ms"),
            f.copy_ms(trunk, true), 10.5);
  table.add("a kernel like a decode step while a snapshot is made", "ms",
            f.at("/kv_copies/compute_beside_snapshots_ms"), f.at("/kv_copies/compute_alone_ms"),
            times(f.at("/kv_copies/compute_alone_ms"), 1.1));
}

void add_weights(const Figures& f, Table& table) {
  const double bytes = f.at("/weights/bytes").value_or(0);
  const Value rate = f.at("/weights/copy_engine_to_device_GB_per_s");
  const Value copy = rate ? Value(bytes / (*rate * 1e9)) : std::nullopt;
  table.add("weights of 16 GB from a file in the page cache", "s",
            times(f.at("/weights/upload_ms"), 1e-3), copy, times(copy, 1 / 0.9));
  for (const char* pages : {"reserved 2 MiB", "collapsed", "4 KiB"}) {
    const auto of = [&](const char* field) {
      return times(f.where("/weights/pinned", "pages", pages, field), 1e-3);
    };
    table.add((std::string("swap of 16 GB of weights from pinned pages, ") + pages).c_str(), "s",
              of("swap_ms"), copy, 0.31);
    table.add((std::string("pinning them once, ") + pages).c_str(), "s", of("pin_ms"), std::nullopt,
              0.5);
  }
  table.add("weights adopted after a kill -9, every byte compared", "ms",
            plus(f.at("/adoption/import_ms"), f.at("/adoption/verify_ms")),
            f.read_ms(f.at("/adoption/bytes").value_or(0)), std::nullopt);
  table.add("process start to first token, weights in the page cache", "s",
            times(f.at("/served/start_ms"), 1e-3), std::nullopt, 2);
  table.add("kill -9 of a worker to the first token on its trunk", "s",
            times(f.at("/served/respawn_ms"), 1e-3), std::nullopt, 0.8);
}

// The ceiling of two ranks is half of what one GPU takes in the same run.
void add_ranks(const Figures& f, Table& table) {
  const auto step = [&](int ranks, const char* what, int rows, int trunk) {
    return f.step(ranks, what, rows, trunk);
  };
  for (const int rows : {1, 4, 8, 16}) {
    const std::string name = "decode step over two, batch " + std::to_string(rows);
    table.add((name + ", short context").c_str(), "ms", step(2, "decode", rows, 0),
              times(step(1, "decode", rows, 0), 0.5), rows <= 8 ? Value(3.3) : std::nullopt);
    table.add((name + ", trunk of 4,000").c_str(), "ms", step(2, "decode", rows, 4000),
              times(step(1, "decode", rows, 4000), 0.5), std::nullopt);
  }
  table.add("prefill of 4,001 tokens over two", "ms", step(2, "prefill", 4001, 0),
            times(step(1, "prefill", 4001, 0), 0.5), 58);
  for (const char* what : {"rows of the residual stream", "residual stream with its norm"})
    table.add((std::string("exchange, batch 8: ") + what).c_str(), "us", f.exchange(what, 8),
              std::nullopt, 6);
  for (const int branches : {4, 16}) {
    const std::string round =
        "fork round over two ranks by HTTP, " + std::to_string(branches) + " branches x 64";
    for (const char* kind : {"cold", "warm"}) {
      const std::string field = std::string(kind) + "_ms";
      const bool has_goal = branches == 4 && field == "warm_ms";
      table.add((round + ": " + kind).c_str(), "ms",
                f.where("/ranks/two_ranks/rounds", "branches", branches, field.c_str()),
                times(f.where("/ranks/one_gpu/rounds", "branches", branches, field.c_str()), 0.5),
                has_goal ? Value(240) : std::nullopt);
    }
  }
  table.add("process start to first token, two ranks", "s",
            times(f.at("/ranks/two_ranks/start_ms"), 1e-3), std::nullopt, std::nullopt);
  for (int death = 0; death < 3; ++death) {
    const std::string who = death == 1 ? "first" : "second";
    table.add(("kill -9 of the " + who + " rank under load to a group that serves").c_str(), "s",
              times(f.at("/ranks/rank_deaths/back_ms/" + std::to_string(death)), 1e-3),
              std::nullopt, 2);
  }
  for (int device = 0; device < 2; ++device)
    table.add(
        ("memory that device " + std::to_string(device) + " has less after three deaths").c_str(),
        "MiB",
        times(f.at("/ranks/rank_deaths/leaked_bytes/" + std::to_string(device)), 1.0 / 1048576),
        std::nullopt, 0);
}

void add_two_workers(const Figures& f, Table& table) {
  const Value rate = f.at("/ranks/moves/copy_GB_per_s");
  const Value bytes = f.at("/ranks/moves/bytes");
  const Value copy = rate && bytes ? Value(*bytes / *rate * 1e-6) : std::nullopt;
  table.add("trunk of 4,000 tokens to the other GPU's worker, straight", "ms",
            f.at("/ranks/moves/peer_ms"), copy, 1.8);
  table.add("the same through the arena, both copies at once", "ms", f.at("/ranks/moves/arena_ms"),
            f.at("/ranks/moves/host_copies_ms"), 12);
  for (const int branches : {4, 16}) {
    const std::string round =
        "fork round over two workers by HTTP, " + std::to_string(branches) + " branches x 64";
    for (const char* kind : {"cold", "warm"}) {
      const std::string field = std::string(kind) + "_ms";
      table.add((round + ": " + kind + " (ceiling: one GPU)").c_str(), "ms",
                f.where("/ranks/two_workers/rounds", "branches", branches, field.c_str()),
                f.where("/ranks/one_gpu/rounds", "branches", branches, field.c_str()),
                std::nullopt);
    }
  }
}

std::string cell(const Json& value, const char* format) {
  if (value.is_null()) return "-";
  char text[32];
  std::snprintf(text, sizeof text, format, value.get<double>());
  return text;
}

}  // namespace

std::vector<Part> gpu_parts(const std::string& directory) {
  const std::string json = "--benchmark_format=json";
  return {
      {"ops",
       "thaw_cuda_ops_bench",
       {json, "--benchmark_filter=step_linears/(1|4|16)/|prefill_linears/4001"}},
      {"model",
       "thaw_cuda_model_bench",
       {json,
        "--benchmark_filter=decode/rows:(1|4|16)/|prefill/tokens:4001|first_token/new:20|"
        "digest"}},
      {"fork_rounds", "thaw_fork_rounds_bench", {}},
      {"kv_copies", "thaw_kv_copies_bench", {}},
      {"adoption", "thaw_adoption_bench", {}},
      {"weights", "thaw_weights_bench", {directory}},
      {"served", "thaw_served_bench", {"--device", "cuda", "--directory", directory}},
  };
}

std::vector<Part> rank_parts(const std::string& directory) {
  return {{"tensor_parallel", "thaw_tensor_parallel_bench", {}},
          {"ranks", "thaw_ranks_bench", {"--directory", directory}}};
}

Json run_part(const Part& part, const std::string& binaries) {
  std::string command = "'" + binaries + "/" + part.binary + "'";
  for (const std::string& argument : part.arguments)
    command += " '" + argument + "'";
  std::string text;
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), ::pclose);
  char buffer[65536];
  while (pipe != nullptr) {
    const std::size_t count = std::fread(buffer, 1, sizeof buffer, pipe.get());
    if (count == 0) break;
    text.append(buffer, count);
  }
  Json parsed = Json::parse(text, nullptr, false);
  if (!parsed.is_object()) {
    std::fprintf(stderr, "%s printed no figures\n", part.binary.c_str());
    return {};
  }
  // The results are read elsewhere: where the binary lay here says nothing there.
  const Json::json_pointer executable("/context/executable");
  if (parsed.contains(executable)) parsed[executable] = part.binary;
  return parsed;
}

Json gpu_table(const Json& parts) {
  const Figures figures(parts);
  Table table;
  add_steps(figures, table);
  add_rounds(figures, table);
  add_copies(figures, table);
  add_weights(figures, table);
  return table.take();
}

Json rank_table(const Json& parts) {
  const Figures figures(parts);
  Table table;
  add_ranks(figures, table);
  add_two_workers(figures, table);
  return table.take();
}

std::string to_markdown(const Json& table) {
  std::string text = "| what | thaw | ceiling | share | goal |\n|---|---|---|---|---|\n";
  for (const Json& row : table) {
    const auto unit = " " + row.at("unit").get<std::string>();
    const auto with_unit = [&](const char* field) {
      return row.at(field).is_null() ? std::string("-") : cell(row.at(field), "%.4g") + unit;
    };
    const Json share =
        row.at("share").is_null() ? Json() : Json(row.at("share").get<double>() * 100);
    text += "| " + row.at("what").get<std::string>() + " | " + with_unit("thaw") + " | " +
            with_unit("ceiling") + " | " + (share.is_null() ? "-" : cell(share, "%.0f %%")) +
            " | " + with_unit("goal") + " |\n";
  }
  return text;
}

}  // namespace thaw::bench

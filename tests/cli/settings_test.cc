#include "cli/settings.h"

#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace thaw::cli {
namespace {

using testing::HasSubstr;

// Parses as `thaw serve ARGS` would; the message of a refusal, or empty.
std::string parse(ServeSettings& settings, std::vector<std::string> arguments) {
  CLI::App app;
  add_serve_options(app, settings);
  std::reverse(arguments.begin(), arguments.end());
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& failure) {
    return failure.what();
  }
  return "";
}

TEST(Settings, ReadsFlags) {
  ServeSettings settings;
  EXPECT_EQ(parse(settings, {"m.gguf", "--kv-bytes", "512MiB", "--served-model-name", "a",
                             "--served-model-name", "b", "--window-ms", "0.5"}),
            "");
  EXPECT_EQ(settings.model, "m.gguf");
  EXPECT_EQ(settings.kv_bytes, 512ULL << 20);
  EXPECT_EQ(settings.served_model_names, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(settings.window_ms, 0.5);
}

TEST(Settings, TakesAModelAndASnapshotByName) {
  ServeSettings settings;
  EXPECT_EQ(parse(settings, {"--model", "org/name", "--snapshot", "w.thaw"}), "");
  EXPECT_EQ(settings.model, "org/name");
  EXPECT_EQ(settings.snapshot, "w.thaw");
  EXPECT_TRUE(settings.verify);
  ::setenv("THAW_VERIFY", "0", 1);
  ::setenv("THAW_SNAPSHOT", "v.thaw", 1);
  ServeSettings from_environment;
  EXPECT_EQ(parse(from_environment, {}), "");
  EXPECT_EQ(from_environment.snapshot, "v.thaw");
  EXPECT_FALSE(from_environment.verify);
  ::unsetenv("THAW_VERIFY");
  ::unsetenv("THAW_SNAPSHOT");
}

TEST(Settings, KeepsKvInFiles) {
  ServeSettings settings;
  EXPECT_EQ(parse(settings, {}), "");
  EXPECT_EQ(settings.fork_min_prefix_tokens, 500U);
  EXPECT_EQ(settings.spill_dir, "");
  EXPECT_EQ(
      parse(settings, {"--fork-min-prefix-tokens", "auto", "--spill-dir", "d", "--spill-bytes",
                       "2GiB", "--kv-snapshot", "a.thawkv", "--kv-snapshot", "b.thawkv"}),
      "");
  EXPECT_EQ(settings.fork_min_prefix_tokens, 0U);
  EXPECT_EQ(settings.spill_dir, "d");
  EXPECT_EQ(settings.spill_bytes, 2ULL << 30);
  EXPECT_EQ(settings.kv_snapshots, (std::vector<std::string>{"a.thawkv", "b.thawkv"}));
  EXPECT_NE(parse(settings, {"--fork-min-prefix-tokens", "few"}), "");
}

TEST(Settings, SpillsToS3) {
  ServeSettings settings;
  EXPECT_EQ(parse(settings, {}), "");
  EXPECT_EQ(spill_url(settings).value(), "");
  EXPECT_EQ(parse(settings, {"--spill-s3", "s3://bucket/kv//", "--spill-s3-bytes", "1TiB"}), "");
  EXPECT_EQ(settings.spill_s3_bytes, std::uint64_t{1} << 40);
  EXPECT_THAT(spill_url(settings).error().message, HasSubstr("--spill-dir"));
  settings.spill_dir = "d";
  EXPECT_EQ(spill_url(settings).value(), "s3://bucket/kv");
  for (const char* wrong : {"bucket/kv", "s3://bucket", "s3://BUCKET/kv", "s3://bucket/a/../b"}) {
    settings.spill_s3 = wrong;
    EXPECT_THAT(spill_url(settings).error().message, HasSubstr("--spill-s3: ")) << wrong;
  }
  EXPECT_EQ(parse(settings, {"--s3-cache-bytes", "10GiB"}), "");
  EXPECT_EQ(settings.s3.cache_bytes, 10ULL << 30);
}

TEST(Settings, BoundsTheImageCache) {
  ServeSettings settings;
  EXPECT_EQ(parse(settings, {}), "");
  EXPECT_EQ(settings.image_cache_bytes, 32ULL << 30);
  EXPECT_FALSE(settings.verify_weights);
  EXPECT_EQ(parse(settings, {"--image-cache-bytes", "0", "--verify-weights"}), "");
  EXPECT_EQ(settings.image_cache_bytes, 0U);
  EXPECT_TRUE(settings.verify_weights);

  ::setenv("THAW_VERIFY_WEIGHTS", "1", 1);
  ::setenv("THAW_IMAGE_CACHE_BYTES", "3MiB", 1);
  ServeSettings from_environment;
  EXPECT_EQ(parse(from_environment, {}), "");
  EXPECT_EQ(from_environment.image_cache_bytes, 3ULL << 20);
  EXPECT_TRUE(from_environment.verify_weights);
  ::unsetenv("THAW_VERIFY_WEIGHTS");
  ::unsetenv("THAW_IMAGE_CACHE_BYTES");
}

TEST(Settings, TheEnvironmentIsReadAndAFlagWins) {
  ::setenv("THAW_MAX_NUM_SEQS", "7", 1);
  ServeSettings from_environment;
  EXPECT_EQ(parse(from_environment, {}), "");
  EXPECT_EQ(from_environment.max_num_seqs, 7U);
  ServeSettings from_flag;
  EXPECT_EQ(parse(from_flag, {"--max-num-seqs", "9"}), "");
  EXPECT_EQ(from_flag.max_num_seqs, 9U);
  ::unsetenv("THAW_MAX_NUM_SEQS");
}

TEST(Settings, CachesAreWhereTheEnvironmentSays) {
  for (const char* name : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "THAW_CACHE_DIR"})
    ::unsetenv(name);
  const std::string home = std::getenv("HOME") == nullptr ? "" : std::getenv("HOME");
  EXPECT_EQ(model_paths_from_environment().hub_cache, home + "/.cache/huggingface/hub");
  EXPECT_EQ(model_paths_from_environment().default_model,
            home + "/.cache/thaw/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  ::setenv("XDG_CACHE_HOME", "/x", 1);
  EXPECT_EQ(model_paths_from_environment().hub_cache, "/x/huggingface/hub");
  ::setenv("HF_HOME", "/h", 1);
  EXPECT_EQ(model_paths_from_environment().hub_cache, "/h/hub");
  ::setenv("HF_HUB_CACHE", "/c", 1);
  EXPECT_EQ(model_paths_from_environment().hub_cache, "/c");
  for (const char* name : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"})
    ::unsetenv(name);
}

TEST(Settings, TheDeviceDecidesWhatIsLeftToIt) {
  ServeSettings cpu;
  EXPECT_EQ(parse(cpu, {}), "");
  ASSERT_TRUE(settle_device(cpu));
  EXPECT_EQ(cpu.kv_bytes, 1ULL << 30);
  EXPECT_EQ(cpu.prefill_chunk_tokens, 128U);
  ServeSettings gpu;
  EXPECT_EQ(parse(gpu, {"--device", "cuda:1"}), "");
  ASSERT_TRUE(settle_device(gpu));
  EXPECT_EQ(gpu.kv_bytes, 0U);
  EXPECT_EQ(gpu.prefill_chunk_tokens, 1024U);
  ServeSettings given;
  EXPECT_EQ(parse(given, {"--device", "cuda", "--kv-bytes", "2GiB", "--workers", "2",
                          "--prefill-chunk-tokens", "64"}),
            "");
  ASSERT_TRUE(settle_device(given));
  EXPECT_EQ(given.kv_bytes, 2ULL << 30);
  EXPECT_EQ(given.prefill_chunk_tokens, 64U);

  ::setenv("THAW_DEVICE", "cuda:3", 1);
  ServeSettings from_environment;
  EXPECT_EQ(parse(from_environment, {}), "");
  EXPECT_EQ(from_environment.device, "cuda:3");
  ::unsetenv("THAW_DEVICE");
}

TEST(Settings, WhatADeviceCannotDoIsRefused) {
  const auto refusal = [](const std::vector<std::string>& arguments) {
    ServeSettings settings;
    EXPECT_EQ(parse(settings, arguments), "");
    const auto settled = settle_device(settings);
    return settled ? "nothing" : settled.error().message;
  };
  EXPECT_NE(refusal({"--device", "cuda", "--kv-dtype", "f32"}).find("--kv-dtype f32"),
            std::string::npos);
  EXPECT_NE(refusal({"--device", "cuda", "--isa", "avx2"}).find("--isa"), std::string::npos);
  EXPECT_NE(refusal({"--device", "cuda", "--workers", "2"}).find("--kv-bytes"), std::string::npos);
  EXPECT_EQ(refusal({"--workers", "2", "--kv-dtype", "f32", "--isa", "avx2"}), "nothing");
  EXPECT_NE(refusal({"--tensor-parallel", "2"}).find("is for GPUs"), std::string::npos);
  EXPECT_NE(refusal({"--device", "cuda:0,1,2", "--tensor-parallel", "2"})
                .find("does not divide the 3 GPUs named"),
            std::string::npos);
  // Workers that share a GPU cannot each take what is free there.
  EXPECT_EQ(refusal({"--device", "cuda:0,1", "--workers", "2"}), "nothing");
  EXPECT_EQ(refusal({"--device", "cuda", "--tensor-parallel", "2"}), "nothing");
  EXPECT_NE(refusal({"--device", "cuda:0,1", "--workers", "2", "--tensor-parallel", "2"})
                .find("--kv-bytes"),
            std::string::npos);
}

TEST(Settings, SessionsKeepHalfOfTheArenaUnlessTold) {
  ServeSettings standard;
  EXPECT_EQ(parse(standard, {"--arena-bytes", "64MiB"}), "");
  EXPECT_EQ(session_bytes(standard).value(), 32ULL << 20);
  EXPECT_EQ(prompt_cache_bytes(standard).value(), 16ULL << 20);
  ServeSettings given;
  EXPECT_EQ(parse(given, {"--session-bytes", "8MiB", "--session-ttl", "60", "--session-max-ttl",
                          "120", "--session-dir", "/s"}),
            "");
  EXPECT_EQ(session_bytes(given).value(), 8ULL << 20);
  EXPECT_EQ(given.session_dir, "/s");
  EXPECT_TRUE(check_sessions(given));
  given.session_bytes = "0";
  EXPECT_EQ(session_bytes(given).value(), 0U);
}

TEST(Settings, AbsurdSessionsAreRefused) {
  const auto refusal = [](const std::vector<std::string>& arguments) {
    ServeSettings settings;
    const std::string message = parse(settings, arguments);
    if (!message.empty()) return message;
    const auto checked = check_sessions(settings);
    return checked ? std::string() : checked.error().message;
  };
  for (const char* bytes : {"-1", "x", "", "1.5.5MiB", "2TiB", "99999999999999999999"}) {
    EXPECT_NE(refusal({"--session-bytes", bytes}).find("--session-bytes"), std::string::npos)
        << bytes;
    EXPECT_NE(refusal({"--prompt-cache-bytes", bytes}).find("--prompt-cache-bytes"),
              std::string::npos)
        << bytes;
  }
  for (const char* ttl : {"0", "-1", "x", "31622401"})
    EXPECT_NE(refusal({"--session-ttl", ttl}).find("--session-ttl"), std::string::npos) << ttl;
  EXPECT_NE(refusal({"--session-ttl", "61", "--session-max-ttl", "60"}).find("at most"),
            std::string::npos);
  EXPECT_NE(refusal({"--max-sessions", "0"}).find("--max-sessions"), std::string::npos);
  EXPECT_NE(refusal({"--session-history-bytes", "5"}).find("--session-history-bytes"),
            std::string::npos);
}

TEST(Settings, ABadValueIsNamed) {
  ServeSettings settings;
  EXPECT_NE(parse(settings, {"--device", "gpu"}).find("use cpu, cuda or cuda:N"),
            std::string::npos);
  EXPECT_NE(parse(settings, {"--prefill-chunk-tokens", "8"}).find("--prefill-chunk-tokens"),
            std::string::npos);
  EXPECT_NE(parse(settings, {"--workers", "0"}).find("--workers"), std::string::npos);
  EXPECT_NE(parse(settings, {"--kv-dtype", "fp8"}).find("--kv-dtype"), std::string::npos);
  EXPECT_NE(parse(settings, {"--kv-bytes", "much"}).find("--kv-bytes"), std::string::npos);
  EXPECT_NE(parse(settings, {"--quantize", "q3"}).find("--quantize"), std::string::npos);
  EXPECT_NE(parse(settings, {"--generation-config", "x"}).find("--generation-config"),
            std::string::npos);
  EXPECT_NE(parse(settings, {"--port", "70000"}).find("--port"), std::string::npos);
}

TEST(Settings, ArgumentsAloneGiveSettings) {
  ServeSettings defaults;
  defaults.log_level = "warn";
  const auto settings =
      parse_serve_settings({"--model=a.gguf", "--kv-bytes=64MiB", "--served-model-name=a",
                            "--served-model-name=b", "--verify-weights"},
                           defaults);
  ASSERT_TRUE(settings) << settings.error().message;
  EXPECT_EQ(settings->model, "a.gguf");
  EXPECT_EQ(settings->kv_bytes, 64U << 20);
  EXPECT_EQ(settings->served_model_names, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(settings->verify_weights);
  EXPECT_EQ(settings->log_level, "warn");
  for (const std::string wrong : {"--kv-bytes=much", "--no-such-flag=1"}) {
    const auto refused = parse_serve_settings({wrong}, {});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::kInvalidArgument);
    EXPECT_NE(refused.error().message.find(wrong.substr(0, wrong.find('='))), std::string::npos);
  }
}

}  // namespace
}  // namespace thaw::cli

// Tokenizer speed on the default model's vocabulary: bytes of text per second on one core.
//
// The corpus is the project's own sources and documents, or the file that THAW_TOKENIZER_CORPUS
// names. `Warm` encodes it again and again; `FirstTime` uses a new tokenizer each time, whose cache
// of words is empty; `Uncached` changes letters at random so that few words are in the cache.

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "tests/text/real_tokenizers.h"

namespace thaw::text {
namespace {

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string load_corpus() {
  if (const char* path = std::getenv("THAW_TOKENIZER_CORPUS")) return read_file(path);
  std::vector<std::filesystem::path> files;
  const std::filesystem::path root = THAW_SOURCE_DIR;
  for (const char* folder : {"engine", "kvsnap", "forkpool", "coalescer", "cli", "docs"}) {
    if (!std::filesystem::exists(root / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      if (extension == ".h" || extension == ".cc" || extension == ".md") {
        files.push_back(entry.path());
      }
    }
  }
  std::sort(files.begin(), files.end());
  std::string text;
  for (const auto& file : files) {
    text += read_file(file);
  }
  return text;
}

const std::string& corpus() {
  static const std::string text = load_corpus();
  return text;
}

void set_rate(benchmark::State& state, std::size_t bytes, std::size_t tokens) {
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
  state.counters["bytes_per_token"] =
      static_cast<double>(bytes) / static_cast<double>(std::max<std::size_t>(tokens, 1));
}

void encode_warm(benchmark::State& state) {
  const auto tokenizer = default_model_tokenizer();
  std::size_t tokens = 0;
  for (auto _ : state) {
    const std::vector<TokenId> ids = tokenizer->encode(corpus(), false);
    tokens = ids.size();
    benchmark::DoNotOptimize(ids.data());
  }
  set_rate(state, corpus().size(), tokens);
}
BENCHMARK(encode_warm)->Name("Encode/Warm")->Unit(benchmark::kMillisecond);

/// Vocabularies of scripts/get_tokenizers.py: SentencePiece-style, and byte-level by PCRE2.
void encode_vocabulary(benchmark::State& state, const char* name) {
  auto spec = spec_from_json(read_vocabulary_file(name, "tokenizer.json"));
  const auto tokenizer = Tokenizer::create(std::move(spec)).value();
  std::size_t tokens = 0;
  for (auto _ : state) {
    const std::vector<TokenId> ids = tokenizer->encode(corpus(), false);
    tokens = ids.size();
    benchmark::DoNotOptimize(ids.data());
  }
  set_rate(state, corpus().size(), tokens);
}
BENCHMARK_CAPTURE(encode_vocabulary, SentencePiece, "mistral-v1")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode_vocabulary, Tekken, "tekken")->Unit(benchmark::kMillisecond);

/// From the bytes of tokenizer.json to a tokenizer that encodes.
void read_tokenizer_json(benchmark::State& state, const char* name) {
  const std::string json = read_vocabulary_file(name, "tokenizer.json");
  for (auto _ : state) {
    benchmark::DoNotOptimize(Tokenizer::create(spec_from_json(json)).value());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(json.size()));
}
BENCHMARK_CAPTURE(read_tokenizer_json, SentencePiece, "mistral-v1")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(read_tokenizer_json, Tekken, "tekken")->Unit(benchmark::kMillisecond);

void encode_first_time(benchmark::State& state) {
  std::size_t tokens = 0;
  for (auto _ : state) {
    state.PauseTiming();
    auto tokenizer = default_model_tokenizer();
    state.ResumeTiming();
    tokens = tokenizer->encode(corpus(), false).size();
    state.PauseTiming();
    tokenizer.reset();
    state.ResumeTiming();
  }
  set_rate(state, corpus().size(), tokens);
}
BENCHMARK(encode_first_time)->Name("Encode/FirstTime")->Unit(benchmark::kMillisecond);

void encode_uncached(benchmark::State& state) {
  const auto tokenizer = default_model_tokenizer();
  std::string text = corpus().substr(0, 1 << 20);
  std::mt19937 random(1);
  for (char& c : text) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>('a' + random() % 26);
  }
  std::size_t tokens = 0;
  for (auto _ : state) {
    tokens = tokenizer->encode(text, false).size();
  }
  set_rate(state, text.size(), tokens);
}
BENCHMARK(encode_uncached)->Name("Encode/Uncached")->Unit(benchmark::kMillisecond);

void encode_one_word(benchmark::State& state) {
  const auto tokenizer = default_model_tokenizer();
  const std::string text(100000, 'a');
  std::size_t tokens = 0;
  for (auto _ : state) {
    tokens = tokenizer->encode(text, false).size();
  }
  set_rate(state, text.size(), tokens);
}
BENCHMARK(encode_one_word)->Name("Encode/OneWordOf100KB")->Unit(benchmark::kMillisecond);

void encode_chat_spans(benchmark::State& state) {
  const auto tokenizer = default_model_tokenizer();
  const std::string text = corpus().substr(0, 8192);
  const TextSpan spans[] = {
      {"<|im_start|>user\n", true}, {text, false}, {"<|im_end|>\n<|im_start|>assistant\n", true}};
  std::size_t tokens = 0;
  for (auto _ : state) {
    tokens = tokenizer->encode_spans(spans).size();
  }
  set_rate(state, text.size(), tokens);
}
BENCHMARK(encode_chat_spans)->Name("EncodeSpans/8KB")->Unit(benchmark::kMicrosecond);

void decode(benchmark::State& state) {
  const auto tokenizer = default_model_tokenizer();
  const std::vector<TokenId> ids = tokenizer->encode(corpus(), false);
  for (auto _ : state) {
    const std::string text = tokenizer->decode(ids, false);
    benchmark::DoNotOptimize(text.data());
  }
  set_rate(state, corpus().size(), ids.size());
}
BENCHMARK(decode)->Name("Decode")->Unit(benchmark::kMillisecond);

void decode_incrementally(benchmark::State& state) {
  const auto tokenizer = default_model_tokenizer();
  const std::vector<TokenId> ids = tokenizer->encode(corpus().substr(0, 65536), false);
  for (auto _ : state) {
    IncrementalDecoder decoder(*tokenizer, false);
    for (const TokenId id : ids) {
      const std::string piece = decoder.push(id);
      benchmark::DoNotOptimize(piece.data());
    }
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(ids.size()));
}
BENCHMARK(decode_incrementally)->Name("DecodeIncrementally")->Unit(benchmark::kMicrosecond);

void create(benchmark::State& state) {
  const TokenizerSpec spec = default_model_spec();
  for (auto _ : state) {
    state.PauseTiming();
    TokenizerSpec copy = spec;
    state.ResumeTiming();
    benchmark::DoNotOptimize(Tokenizer::create(std::move(copy)).value());
  }
}
BENCHMARK(create)->Name("Create")->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace thaw::text

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("corpus_bytes", std::to_string(thaw::text::corpus().size()));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

#pragma once

#include <cstdint>
#include <string>

namespace thaw::bench {

/// A Llama without weights of its own.
struct CheckpointShape {
  int num_layers = 32;
  int hidden_size = 4096;
  int intermediate_size = 14336;
  int num_heads = 32;
  int num_kv_heads = 8;
  int head_dim = 128;
  int vocab_size = 128256;
  int max_positions = 131072;

  static CheckpointShape llama_8b() { return {}; }
  /// Some MB: to try a bench out where there is no GPU.
  static CheckpointShape tiny() { return {3, 256, 512, 4, 2, 64, 2048, 8192}; }
};

/// Writes a directory as Hugging Face's tools do, for `thaw serve` to read: config.json, a
/// byte-level tokenizer.json whose every token has a text, and safetensors of random bf16 weights,
/// normal with standard deviation 0.02 (norms: ones). The same seed gives the same bytes. Uses all
/// cores. Returns the bytes of weights. Throws std::runtime_error, naming the file.
std::uint64_t write_random_checkpoint(const std::string& directory, const CheckpointShape& shape,
                                      std::uint64_t seed);

}  // namespace thaw::bench

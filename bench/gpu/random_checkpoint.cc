#include "bench/gpu/random_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/base/unique_fd.h"

namespace thaw::bench {
namespace {

using Json = nlohmann::ordered_json;
using Bf16 = std::uint16_t;

constexpr std::uint64_t kShardBytes = std::uint64_t{4} << 30;
constexpr std::size_t kPieceValues = std::size_t{4} << 20;  ///< that one thread makes at once

Bf16 to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<Bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// Quantiles of the normal distribution: drawing one of them is drawing from it, near enough.
std::vector<Bf16> normal_table(float deviation) {
  std::vector<Bf16> table(65536);
  for (std::size_t i = 0; i < table.size(); ++i) {
    // Box and Muller over a grid: radii by quantile, angles by a step that meets them all.
    const double u = (static_cast<double>(i / 256) + 0.5) / 256;
    const double angle = 2 * M_PI * (static_cast<double>(i % 256) + 0.5) / 256;
    table[i] =
        to_bf16(deviation * static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(angle)));
  }
  return table;
}

/// SplitMix64's output function. Source: Steele et al., OOPSLA'14.
std::uint64_t mix64(std::uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
  return x ^ x >> 31;
}

struct Tensor {
  std::string name;
  std::vector<int> shape;
  std::uint64_t offset = 0;  ///< in its file, from the first byte
  std::uint64_t values() const {
    std::uint64_t count = 1;
    for (const int side : shape)
      count *= static_cast<std::uint64_t>(side);
    return count;
  }
};

struct File {
  std::string path;
  std::vector<Tensor> tensors;
};

/// A piece of a tensor: what one thread writes.
struct Piece {
  int fd = -1;
  std::uint64_t offset = 0;
  std::size_t values = 0;
  std::uint64_t seed = 0;
  bool ones = false;
};

std::vector<Tensor> tensors_of(const CheckpointShape& s) {
  std::vector<Tensor> tensors;
  const auto add = [&](std::string name, std::vector<int> shape) {
    tensors.push_back({std::move(name), std::move(shape)});
  };
  add("model.embed_tokens.weight", {s.vocab_size, s.hidden_size});
  for (int i = 0; i < s.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add(layer + "input_layernorm.weight", {s.hidden_size});
    add(layer + "self_attn.q_proj.weight", {s.num_heads * s.head_dim, s.hidden_size});
    add(layer + "self_attn.k_proj.weight", {s.num_kv_heads * s.head_dim, s.hidden_size});
    add(layer + "self_attn.v_proj.weight", {s.num_kv_heads * s.head_dim, s.hidden_size});
    add(layer + "self_attn.o_proj.weight", {s.hidden_size, s.num_heads * s.head_dim});
    add(layer + "post_attention_layernorm.weight", {s.hidden_size});
    add(layer + "mlp.gate_proj.weight", {s.intermediate_size, s.hidden_size});
    add(layer + "mlp.up_proj.weight", {s.intermediate_size, s.hidden_size});
    add(layer + "mlp.down_proj.weight", {s.hidden_size, s.intermediate_size});
  }
  add("model.norm.weight", {s.hidden_size});
  add("lm_head.weight", {s.vocab_size, s.hidden_size});
  return tensors;
}

std::runtime_error failed(const std::string& path) {
  return std::runtime_error(path + ": " + std::strerror(errno));
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  if (!(file << text).flush()) throw failed(path);
}

std::string config_of(const CheckpointShape& s) {
  return Json{{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"torch_dtype", "bfloat16"},
              {"num_hidden_layers", s.num_layers},
              {"hidden_size", s.hidden_size},
              {"intermediate_size", s.intermediate_size},
              {"num_attention_heads", s.num_heads},
              {"num_key_value_heads", s.num_kv_heads},
              {"head_dim", s.head_dim},
              {"vocab_size", s.vocab_size},
              {"max_position_embeddings", s.max_positions},
              {"rms_norm_eps", 1e-5},
              {"rope_theta", 500000.0},
              {"hidden_act", "silu"},
              {"tie_word_embeddings", false},
              {"attention_bias", false},
              {"mlp_bias", false},
              {"bos_token_id", 0},
              {"eos_token_id", 0}}
      .dump(1);
}

/// Code points by which byte-level vocabularies write the 256 bytes: printable ones stand for
/// themselves, the others follow from 256 on.
std::array<std::string, 256> byte_names() {
  std::array<std::string, 256> names;
  unsigned next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    const unsigned code = printable ? byte : next++;
    std::string& name = names[byte];
    if (code < 0x80) {
      name = static_cast<char>(code);
    } else {
      name = {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
    }
  }
  return names;
}

std::string tokenizer_of(const CheckpointShape& s) {
  Json vocabulary = Json::object();
  const auto names = byte_names();
  for (unsigned byte = 0; byte < 256; ++byte)
    vocabulary[names[byte]] = byte + 1;  // 0 is the end
  // No merge makes them; a model draws them all the same, and each must have a text.
  for (int id = 257; id < s.vocab_size; ++id)
    vocabulary["t" + std::to_string(id)] = id;
  const Json level = {{"type", "ByteLevel"},
                      {"add_prefix_space", false},
                      {"trim_offsets", true},
                      {"use_regex", true}};
  return Json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens",
               {{{"id", 0},
                 {"content", "<|end|>"},
                 {"single_word", false},
                 {"lstrip", false},
                 {"rstrip", false},
                 {"normalized", false},
                 {"special", true}}}},
              {"normalizer", nullptr},
              {"pre_tokenizer", level},
              {"post_processor", nullptr},
              {"decoder", level},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"vocab", std::move(vocabulary)},
                {"merges", Json::array()}}}}
      .dump();
}

/// Lays the file's tensors out behind its header, writes that, and says what is left to write.
UniqueFd begin_file(File& file, std::uint64_t& seed, std::vector<Piece>& pieces) {
  Json header = Json::object();
  std::uint64_t end = 0;
  for (Tensor& tensor : file.tensors) {
    tensor.offset = end;
    end += tensor.values() * sizeof(Bf16);
    header[tensor.name] = {
        {"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {tensor.offset, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::uint64_t length = text.size();
  text.insert(0, reinterpret_cast<const char*>(&length), sizeof length);
  UniqueFd fd(::open(file.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd || ::pwrite(fd.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
    throw failed(file.path);
  for (const Tensor& tensor : file.tensors) {
    for (std::uint64_t first = 0; first < tensor.values(); first += kPieceValues) {
      pieces.push_back(
          {fd.get(), text.size() + tensor.offset + first * sizeof(Bf16),
           static_cast<std::size_t>(std::min<std::uint64_t>(kPieceValues, tensor.values() - first)),
           seed++, tensor.shape.size() == 1});
    }
  }
  return fd;
}

void write_piece(const Piece& piece, const std::vector<Bf16>& normal, std::vector<Bf16>& values) {
  values.resize(piece.values);
  if (piece.ones) {
    std::ranges::fill(values, to_bf16(1.0F));
  } else {
    std::uint64_t state = mix64(piece.seed);
    for (std::size_t i = 0; i < values.size(); i += 4) {
      state += 0x9e3779b97f4a7c15ULL;
      const std::uint64_t random = mix64(state);
      for (std::size_t j = i; j < std::min(i + 4, values.size()); ++j)
        values[j] = normal[random >> 16 * (j - i) & 0xffff];
    }
  }
  const auto* bytes = reinterpret_cast<const char*>(values.data());
  for (std::size_t done = 0; done < values.size() * sizeof(Bf16);) {
    const ssize_t written = ::pwrite(piece.fd, bytes + done, values.size() * sizeof(Bf16) - done,
                                     static_cast<off_t>(piece.offset + done));
    if (written <= 0) throw failed("a shard");
    done += static_cast<std::size_t>(written);
  }
}

void write_pieces(const std::vector<Piece>& pieces) {
  const std::vector<Bf16> normal = normal_table(0.02F);
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::string error;
  {
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < std::max(1U, std::thread::hardware_concurrency()); ++i) {
      threads.emplace_back([&] {
        std::vector<Bf16> values;
        try {
          for (std::size_t piece = next++; piece < pieces.size(); piece = next++)
            write_piece(pieces[piece], normal, values);
        } catch (const std::exception& failure) {
          const std::lock_guard lock(mutex);
          error = failure.what();
          next = pieces.size();
        }
      });
    }
  }
  if (!error.empty()) throw std::runtime_error(error);
}

}  // namespace

std::uint64_t write_random_checkpoint(const std::string& directory, const CheckpointShape& shape,
                                      std::uint64_t seed) {
  std::filesystem::create_directories(directory);
  std::vector<File> files;
  std::uint64_t total = 0;
  std::uint64_t in_file = kShardBytes;
  for (Tensor& tensor : tensors_of(shape)) {
    const std::uint64_t bytes = tensor.values() * sizeof(Bf16);
    if (in_file + bytes > kShardBytes) {
      files.emplace_back();
      in_file = 0;
    }
    in_file += bytes;
    total += bytes;
    files.back().tensors.push_back(std::move(tensor));
  }
  Json weight_map = Json::object();
  std::vector<Piece> pieces;
  std::vector<UniqueFd> open;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string name =
        "model-" + std::to_string(i + 1) + "-of-" + std::to_string(files.size()) + ".safetensors";
    files[i].path = directory + "/" + name;
    open.push_back(begin_file(files[i], seed, pieces));
    for (const Tensor& tensor : files[i].tensors)
      weight_map[tensor.name] = name;
  }
  write_pieces(pieces);
  write_text(directory + "/model.safetensors.index.json",
             Json{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}}.dump());
  write_text(directory + "/config.json", config_of(shape));
  write_text(directory + "/tokenizer.json", tokenizer_of(shape));
  return total;
}

}  // namespace thaw::bench

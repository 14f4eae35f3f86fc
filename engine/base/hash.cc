#include "engine/base/hash.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include <openssl/evp.h>
#include <openssl/sha.h>

#include "engine/base/error.h"

namespace thaw {
namespace {

Hash128 truncate(const unsigned char* digest) {
  Hash128 hash;
  std::copy_n(digest, hash.bytes.size(), hash.bytes.begin());
  return hash;
}

struct FreeContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

using Context = std::unique_ptr<EVP_MD_CTX, FreeContext>;

Context sha256_context() {
  static EVP_MD* const algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  Context context(EVP_MD_CTX_new());
  if (algorithm == nullptr || context == nullptr ||
      EVP_DigestInit_ex2(context.get(), algorithm, nullptr) != 1)
    return nullptr;
  return context;
}

// libcrypto's one-call functions look the algorithm up and make a context each time, which takes
// longer than the 80 bytes of a block; a trunk has hundreds. Even to be told the algorithm again
// takes a context a quarter of that.
Hash128 sha256(std::span<const unsigned char> data) {
  thread_local const Context context = sha256_context();
  unsigned char digest[SHA256_DIGEST_LENGTH];
  if (context == nullptr || EVP_DigestInit_ex2(context.get(), nullptr, nullptr) != 1 ||
      EVP_DigestUpdate(context.get(), data.data(), data.size()) != 1 ||
      EVP_DigestFinal_ex(context.get(), digest, nullptr) != 1) {
    throw Exception(make_error(Errc::kInternal, "SHA-256 is not to be had from libcrypto"));
  }
  return truncate(digest);
}

// Length-prefixed so that ("ab", "c") and ("a", "bc") differ.
void append_field(std::string& text, std::string_view field) {
  text += std::to_string(field.size());
  text += ':';
  text += field;
}

}  // namespace

std::string Hash128::to_hex() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (std::uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

Hash128 hash_bytes(std::span<const std::byte> data) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(), digest);
  return truncate(digest);
}

Hash128 hash_text(std::string_view text) {
  return hash_bytes(std::as_bytes(std::span(text.data(), text.size())));
}

struct Hasher::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  State() {
    if (context == nullptr || EVP_DigestInit_ex(context, EVP_sha256(), nullptr) != 1)
      throw Exception(make_error(Errc::kInternal, "SHA-256 is not to be had from libcrypto"));
  }
  ~State() { EVP_MD_CTX_free(context); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

Hasher::Hasher() : state_(std::make_unique<State>()) {}
Hasher::~Hasher() = default;

void Hasher::update(std::span<const std::byte> data) {
  EVP_DigestUpdate(state_->context, data.data(), data.size());
}

Hash128 Hasher::finish() {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  EVP_DigestFinal_ex(state_->context, digest, nullptr);
  return truncate(digest);
}

Hash128 make_cache_root(const Hash128& engine_fingerprint, std::string_view tenant,
                        std::string_view salt, std::string_view adapter) {
  std::string text;
  append_field(text, "thaw-cache-root-1");
  append_field(text, engine_fingerprint.to_hex());
  append_field(text, tenant);
  append_field(text, salt);
  append_field(text, adapter);
  return hash_text(text);
}

Hash128 chain_block_hash(const Hash128& parent, std::span<const TokenId> tokens) {
  if (tokens.size() != kBlockSize) {
    throw Exception(make_error(Errc::kInternal, "chain_block_hash: a block has " +
                                                    std::to_string(tokens.size()) +
                                                    " tokens, not " + std::to_string(kBlockSize)));
  }
  std::array<unsigned char, 16 + 4 * kBlockSize> buffer;
  std::memcpy(buffer.data(), parent.bytes.data(), 16);
  for (int i = 0; i < kBlockSize; ++i) {
    const auto token = static_cast<std::uint32_t>(tokens[i]);
    for (int b = 0; b < 4; ++b)
      buffer[16 + 4 * i + b] = static_cast<unsigned char>(token >> (8 * b));
  }
  return sha256(buffer);
}

}  // namespace thaw

#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/core/backend.h"
#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

/// Tokens are bytes; 256 is BOS ("<bos>"), 257 EOS. A chat renders as "role: content\n" for each
/// message ("assistant:content\n" for that role) and "assistant:"; as with Qwen3's template,
/// "<t>...</t>" at the start of an assistant's content is left out of messages before the last
/// user's.
class ByteCodec : public TextCodec {
 public:
  static constexpr TokenId kBos = 256;
  static constexpr TokenId kEos = 257;

  Result<std::vector<TokenId>> encode_chat(const ChatPrompt& prompt) const override;
  Result<std::vector<TokenId>> encode_after(const ChatPrompt& prompt,
                                            std::size_t index) const override;
  std::vector<TokenId> encode_text(std::string_view text, bool add_special) const override;
  std::string decode(std::span<const TokenId> tokens, bool keep_special) const override;
  std::unique_ptr<TextStream> new_stream(bool keep_special) const override;
  int vocab_size() const override { return 258; }
  const ChatForm& form() const override { return chat_form; }

  ChatForm chat_form;  ///< hermes, no thinking

 private:
  static Result<std::vector<TokenId>> encode_from(const ChatPrompt& prompt, std::size_t first);
};

std::vector<TokenId> byte_tokens(std::string_view text);
/// Its prompt, special tokens too.
std::string text_of(const GenerateRequest& request);

/// A backend of which tests are the model. In automatic mode each request is answered from
/// submit(): with log-probabilities of the prompt where they are asked for, and with `reply`
/// (repeated up to max_tokens) for each choice, then EOS. In manual mode tests send the events.
class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(bool automatic = true) : automatic_(automatic) {}

  void set_event_sink(std::function<void(GenerateEvent)> sink) override;
  void submit(ForkPlan plan) override;
  void cancel(RequestId request) override;
  void end_choice(RequestId request, std::uint32_t choice) override;
  PoolStatus status() const override;
  /// Every whole block of a trunk is alive, at kFakeTokenBytes a token; pins have no end. Files are
  /// remembered, not written. All answer from within the call.
  void keep(KeepTrunk trunk, TrunkDone done) override;
  void release(const PinId& pin) override;
  void save(SaveTrunk trunk, TrunkDone done) override;
  void load(LoadTrunk trunk, TrunkDone done) override;

  static constexpr std::uint64_t kFakeTokenBytes = 1024;
  /// keep(), save() and load() end with this from now on; nothing: they work.
  void set_trunk_error(std::optional<Error> error);
  /// What pins hold now.
  std::map<PinId, KeepTrunk> kept() const;

  std::string reply = "Hello, world.";
  void set_automatic(bool automatic) { automatic_ = automatic; }
  void set_status(PoolStatus status);

  /// Sends one event; any thread.
  void emit(GenerateEvent event);
  /// Token events for each byte of `text`, from the choice's next index on.
  void emit_text(RequestId request, std::string_view text, std::uint32_t choice = 0);
  /// The end of one request: every choice, then the completion. `stop`: by EOS, else by length.
  void emit_end(RequestId request, bool stop = true);

  /// Waits until `count` requests have been submitted in all and returns the last one.
  GenerateRequest wait_for_request(std::size_t count);
  /// Waits until the request was cancelled. False after ten seconds.
  bool wait_for_cancel(RequestId request);
  /// Waits until end_choice() was called. False after ten seconds.
  bool wait_for_end_of_choice(RequestId request, std::uint32_t choice);
  std::size_t num_plans() const;
  std::vector<ForkPlan> plans() const;
  std::vector<RequestId> cancelled() const;

 private:
  void answer(const GenerateRequest& request);

  std::atomic<bool> automatic_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void(GenerateEvent)> sink_;
  std::vector<ForkPlan> plans_;
  std::vector<GenerateRequest> requests_;
  std::vector<RequestId> cancelled_;
  std::set<std::pair<RequestId, std::uint32_t>> ended_choices_;
  std::map<std::pair<RequestId, std::uint32_t>, std::uint32_t> next_index_;
  PoolStatus status_;
  std::map<PinId, KeepTrunk> kept_;
  std::map<std::string, SaveTrunk> files_;  ///< by path
  std::optional<Error> trunk_error_;
};

}  // namespace thaw::coalescer

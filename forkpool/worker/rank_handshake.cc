#include "forkpool/worker/rank_handshake.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <utility>

namespace thaw::forkpool::worker {
namespace {

constexpr std::size_t kReportWords = 3;  // blocks, whether its KV was kept
constexpr std::size_t kBeginWords = 2;  // blocks
constexpr std::size_t kReadyWords = 8;  // bytes of KV and of weights, the weights' digest
constexpr std::size_t kDigestWord = 4;

Error other_form(const char* what) {
  return make_error(Errc::kProtocol, std::string("a rank's ") + what + " is of another form");
}

}  // namespace

Result<void> send_report(RankLink& leader, const RankReport& report,
                         std::chrono::milliseconds deadline) {
  std::vector<std::int32_t> words = words_of(report.num_blocks);
  words.push_back(report.kv_kept ? 1 : 0);
  const int exchange = report.exchange.get();
  return leader.send(RankMessageKind::kReport, words, std::span(&exchange, 1), deadline);
}

Result<RankReport> receive_report(RankLink& follower, std::chrono::milliseconds deadline) {
  RankMessage message;
  if (auto received = follower.receive(message, RankMessageKind::kReport, deadline); !received)
    return received.error();
  if (message.words.size() != kReportWords || message.descriptors.size() != 1)
    return other_form("report");
  return RankReport{number_of(std::span(message.words).first(2)), message.words[2] != 0,
                    std::move(message.descriptors.front())};
}

Result<void> send_begin(RankLink& follower, std::uint64_t num_blocks,
                        std::span<const int> exchanges, std::chrono::milliseconds deadline) {
  return follower.send(RankMessageKind::kBegin, words_of(num_blocks), exchanges, deadline);
}

Result<RankBegin> receive_begin(RankLink& leader, std::chrono::milliseconds deadline) {
  RankMessage message;
  if (auto received = leader.receive(message, RankMessageKind::kBegin, deadline); !received)
    return received.error();
  if (message.words.size() != kBeginWords) return other_form("begin");
  return RankBegin{number_of(message.words), std::move(message.descriptors)};
}

Result<void> send_ready(RankLink& leader, const DeviceMemory& memory,
                        std::chrono::milliseconds deadline) {
  std::vector<std::int32_t> words = words_of(memory.kv_bytes);
  std::ranges::copy(words_of(memory.weights_bytes), std::back_inserter(words));
  words.resize(kReadyWords);
  std::memcpy(words.data() + kDigestWord, memory.weights_digest.bytes.data(),
              memory.weights_digest.bytes.size());
  std::vector<int> descriptors = {memory.kv->get()};
  if (memory.weights_bytes > 0) descriptors.push_back(memory.weights->get());
  return leader.send(RankMessageKind::kReady, words, descriptors, deadline);
}

Result<DeviceMemory> receive_ready(RankLink& follower, std::chrono::milliseconds deadline) {
  RankMessage message;
  if (auto received = follower.receive(message, RankMessageKind::kReady, deadline); !received)
    return received.error();
  const std::span<const std::int32_t> words = message.words;
  if (words.size() != kReadyWords) return other_form("ready");
  DeviceMemory memory;
  memory.kv_bytes = number_of(words.first(2));
  memory.weights_bytes = number_of(words.subspan(2, 2));
  std::memcpy(memory.weights_digest.bytes.data(), words.data() + kDigestWord,
              memory.weights_digest.bytes.size());
  if (memory.kv_bytes == 0 || message.descriptors.size() != (memory.weights_bytes > 0 ? 2U : 1U))
    return other_form("ready");
  memory.kv = std::make_shared<const UniqueFd>(std::move(message.descriptors.front()));
  if (memory.weights_bytes > 0)
    memory.weights = std::make_shared<const UniqueFd>(std::move(message.descriptors.back()));
  return memory;
}

std::vector<int> numbers_of(std::span<const UniqueFd> descriptors) {
  std::vector<int> numbers;
  numbers.reserve(descriptors.size());
  for (const UniqueFd& descriptor : descriptors)
    numbers.push_back(descriptor.get());
  return numbers;
}

}  // namespace thaw::forkpool::worker

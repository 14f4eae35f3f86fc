#include "forkpool/protocol.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "forkpool/protocol_values.h"
#include "forkpool/wire.h"

namespace thaw::forkpool {
namespace {

using wire::Fields;
using wire::Json;

/// Type byte and name of each alternative of Frame, in its order. Bytes 1 to 15 travel from pool to
/// worker, 16 to 31 from worker to pool, `lent` both ways; they never change their meaning.
struct TypeInfo {
  std::uint8_t type;
  const char* name;
};
constexpr TypeInfo kTypes[] = {
    {1, "init"},           {2, "adopt"},   {3, "submit"},         {4, "cancel"},
    {5, "snapshot"},       {6, "restore"}, {7, "shutdown"},       {8, "inherit"},
    {9, "peer"},           {10, "lend"},   {11, "take_back"},     {12, "borrow"},
    {13, "arrive"},        {16, "ready"},  {17, "events"},        {18, "publish"},
    {19, "evict"},         {20, "stats"},  {21, "snapshot_done"}, {22, "restore_done"},
    {23, "fatal"},         {24, "keep"},   {25, "offer"},         {26, "lent"},
    {27, "snapshot_part"}, {28, "rank"},   {14, "vocabulary"},    {15, "expect"}};
static_assert(std::size(kTypes) == std::variant_size_v<Frame>);

template <typename Item>
Json list(const std::vector<Item>& items) {
  Json array = Json::array();
  for (const Item& item : items)
    array.push_back(wire::to_json(item));
  return array;
}

/// Blocks that follow one another travel as one chain: a trunk has hundreds, and a field of each is
/// what a frame costs.
Json chains_of(const std::vector<BlockEntry>& blocks) {
  Json chains = Json::array();
  for (auto first = blocks.begin(); first != blocks.end();) {
    std::vector<Hash128> hashes;
    std::vector<TokenId> numbers;
    std::vector<TokenId> tokens;
    auto next = first;
    do {
      hashes.push_back(next->hash);
      numbers.push_back(next->block);
      tokens.insert(tokens.end(), next->tokens.begin(), next->tokens.end());
      ++next;
    } while (next != blocks.end() && next->root == first->root &&
             next->parent == std::prev(next)->hash);
    chains.push_back({{"root", wire::pack(first->root)},
                      {"parent", wire::pack(first->parent)},
                      {"hashes", wire::pack(hashes)},
                      {"blocks", wire::pack(numbers)},
                      {"tokens", wire::pack(tokens)}});
    first = next;
  }
  return chains;
}

std::vector<BlockEntry> read_chains(const Fields& fields) {
  std::vector<BlockEntry> blocks;
  for (const Json& item : fields.array("chains", kMaxListItems)) {
    const Fields chain(item, "chain");
    const Hash128 root = chain.hash("root");
    Hash128 parent = chain.hash("parent");
    const std::vector<Hash128> hashes = chain.hashes("hashes", kMaxListItems);
    const std::vector<BlockId> numbers = chain.tokens("blocks", kMaxListItems);
    const std::vector<TokenId> tokens = chain.tokens("tokens", kMaxTokens);
    if (hashes.empty() || numbers.size() != hashes.size() ||
        tokens.size() != hashes.size() * kBlockSize ||
        hashes.size() > kMaxListItems - blocks.size()) {
      chain.wrong("tokens", "has " + std::to_string(tokens.size()) + " tokens for " +
                                std::to_string(hashes.size()) + " hashes of " +
                                std::to_string(numbers.size()) + " blocks");
    }
    for (std::size_t i = 0; i < hashes.size(); ++i) {
      blocks.push_back({root, parent, hashes[i], numbers[i],
                        to_block_tokens(std::span(tokens).subspan(i * kBlockSize, kBlockSize))});
      parent = hashes[i];
    }
  }
  return blocks;
}

struct PayloadOf {
  Json operator()(const InitFrame& init) const {
    return {{"worker", init.worker},
            {"generation", init.generation},
            {"device", init.device},
            {"num_threads", init.num_threads},
            {"isa", init.isa},
            {"kv_dtype", init.kv_dtype},
            {"kv_bytes", init.kv_bytes},
            {"max_num_seqs", init.max_num_seqs},
            {"max_waiting", init.max_waiting},
            {"prefill_chunk_tokens", init.prefill_chunk_tokens},
            {"max_model_len", init.max_model_len},
            {"tp_rank", init.tp_rank},
            {"tp_size", init.tp_size},
            {"log_level", init.log_level},
            {"offer_min_tokens", init.offer_min_tokens}};
  }
  Json operator()(const AdoptFrame& adopt) const { return {{"chains", chains_of(adopt.blocks)}}; }
  Json operator()(const SubmitFrame& submit) const {
    return {{"request", wire::to_json(submit.request)}};
  }
  Json operator()(const CancelFrame& cancel) const {
    return {{"request", cancel.request},
            {"choice", cancel.choice ? Json(*cancel.choice) : Json(nullptr)}};
  }
  Json operator()(const SnapshotFrame& frame) const {
    return {{"id", frame.id},
            {"manifest", wire::to_json(frame.manifest)},
            {"tell_parts", frame.tell_parts}};
  }
  Json operator()(const RestoreFrame& frame) const {
    return {{"id", frame.id},
            {"manifest", wire::to_json(frame.manifest)},
            {"num_written", frame.num_written}};
  }
  Json operator()(const ArriveFrame& frame) const {
    return {{"id", frame.id},
            {"first_extent", frame.first_extent},
            {"crc32c", frame.crc32c},
            {"error", wire::cut_text(frame.error)}};
  }
  Json operator()(const PeerFrame& frame) const {
    return {{"worker", frame.worker}, {"memory", wire::to_json(frame.memory)}};
  }
  Json operator()(const LendFrame& frame) const {
    return {{"id", frame.id},
            {"cache_root", wire::pack(frame.cache_root)},
            {"token_ids", wire::pack(frame.token_ids)}};
  }
  Json operator()(const TakeBackFrame& frame) const { return {{"id", frame.id}}; }
  Json operator()(const BorrowFrame& frame) const {
    return {{"id", frame.id},
            {"from", frame.from},
            {"cache_root", wire::pack(frame.cache_root)},
            {"token_ids", wire::pack(frame.token_ids)},
            {"blocks", wire::pack(frame.blocks)}};
  }
  Json operator()(const RankFrame& frame) const { return {{"rank", frame.rank}}; }
  Json operator()(const LentFrame& frame) const {
    return {{"id", frame.id},
            {"error", wire::cut_text(frame.error)},
            {"blocks", wire::pack(frame.blocks)}};
  }
  Json operator()(const SnapshotPartFrame& frame) const {
    return {{"id", frame.id}, {"first_extent", frame.first_extent}, {"crc32c", frame.crc32c}};
  }
  Json operator()(const ShutdownFrame& /*frame*/) const { return Json::object(); }
  Json operator()(const ExpectFrame& frame) const { return {{"from", frame.from}}; }
  Json operator()(const InheritFrame& frame) const {
    return {{"memory", wire::to_json(frame.memory)}};
  }
  Json operator()(const KeepFrame& frame) const {
    return {{"memory", wire::to_json(frame.memory)}};
  }
  Json operator()(const ReadyFrame& ready) const {
    return {{"kernel_set", ready.kernel_set},
            {"engine_fingerprint", wire::pack(ready.engine_fingerprint)},
            {"system_fingerprint", ready.system_fingerprint},
            {"kv_layout", ready.kv_layout},
            {"block_bytes", ready.block_bytes},
            {"num_blocks", ready.num_blocks},
            {"adopted_blocks", ready.adopted_blocks},
            {"max_model_len", ready.max_model_len}};
  }
  Json operator()(const EventsFrame& frame) const { return {{"events", list(frame.events)}}; }
  Json operator()(const PublishFrame& frame) const { return {{"chains", chains_of(frame.blocks)}}; }
  Json operator()(const EvictFrame& frame) const { return {{"hashes", wire::pack(frame.hashes)}}; }
  Json operator()(const StatsFrame& frame) const { return {{"stats", wire::to_json(frame.stats)}}; }
  Json operator()(const SnapshotDoneFrame& frame) const {
    return {{"id", frame.id}, {"error", wire::cut_text(frame.error)}, {"crc32c", frame.crc32c}};
  }
  Json operator()(const RestoreDoneFrame& frame) const {
    return {
        {"id", frame.id}, {"error", wire::cut_text(frame.error)}, {"num_tokens", frame.num_tokens}};
  }
  Json operator()(const OfferFrame& frame) const {
    return {{"root", wire::pack(frame.root)},
            {"token_ids", wire::pack(frame.token_ids)},
            {"num_to_lose", frame.num_to_lose}};
  }
  Json operator()(const VocabularyFrame& frame) const {
    const TokenTexts& texts = *frame.texts;
    return {{"bytes", wire::pack_bytes(texts.bytes)},
            {"ends", wire::pack(std::vector<TokenId>(texts.ends.begin(), texts.ends.end()))},
            {"control", wire::pack(texts.control)}};
  }
  Json operator()(const FatalFrame& frame) const { return {{"error", wire::to_json(frame.error)}}; }
};

InitFrame read_init(const Fields& fields) {
  InitFrame init;
  init.worker = fields.u32("worker");
  init.generation = fields.u32("generation");
  init.device = fields.text("device", kMaxNameBytes);
  init.num_threads = fields.u32("num_threads");
  init.isa = fields.text("isa", kMaxNameBytes);
  init.kv_dtype = fields.text("kv_dtype", kMaxNameBytes);
  init.kv_bytes = fields.u64("kv_bytes");
  init.max_num_seqs = fields.u32("max_num_seqs");
  init.max_waiting = fields.u32("max_waiting");
  init.prefill_chunk_tokens = fields.u32("prefill_chunk_tokens");
  init.max_model_len = fields.u32("max_model_len");
  init.tp_rank = fields.u32("tp_rank");
  init.tp_size = fields.u32("tp_size");
  init.log_level = fields.text("log_level", kMaxNameBytes);
  init.offer_min_tokens = fields.u32("offer_min_tokens");
  return init;
}

ReadyFrame read_ready(const Fields& fields) {
  ReadyFrame ready;
  ready.kernel_set = fields.text("kernel_set", kMaxNameBytes);
  ready.engine_fingerprint = fields.hash("engine_fingerprint");
  ready.system_fingerprint = fields.text("system_fingerprint", kMaxNameBytes);
  ready.kv_layout = fields.text("kv_layout", kMaxNameBytes);
  ready.block_bytes = fields.u64("block_bytes");
  ready.num_blocks = fields.u64("num_blocks");
  ready.adopted_blocks = fields.u64("adopted_blocks");
  ready.max_model_len = fields.u32("max_model_len");
  return ready;
}

std::vector<TokenId> read_whole_blocks(const Fields& fields, const char* name) {
  std::vector<TokenId> tokens = fields.tokens(name, kMaxTokens);
  if (tokens.empty() || tokens.size() % kBlockSize != 0)
    fields.wrong(name, "has " + std::to_string(tokens.size()) + " tokens; whole blocks are right");
  return tokens;
}

std::vector<std::uint32_t> read_checksums(const Fields& fields) {
  std::vector<std::uint32_t> checksums;
  for (const Json& item : fields.array("crc32c", kMaxListItems)) {
    checksums.push_back(static_cast<std::uint32_t>(
        fields.integer(item, "crc32c", 0, std::numeric_limits<std::uint32_t>::max())));
  }
  return checksums;
}

PeerFrame read_peer(const Fields& fields) {
  PeerFrame peer{fields.u32("worker"), wire::read_memory(fields.at("memory"))};
  if (peer.memory.weights_bytes > 0) fields.wrong("memory", "has weights");
  return peer;
}

OfferFrame read_offer(const Fields& fields) {
  OfferFrame offer;
  offer.root = fields.hash("root");
  offer.token_ids = fields.tokens("token_ids", kMaxTokens);
  offer.num_to_lose = fields.u32("num_to_lose");
  const std::size_t count = offer.token_ids.size();
  if (count == 0 || count % kBlockSize != 0 || offer.num_to_lose > count) {
    wire::fail("an offer of " + std::to_string(count) + " tokens, " +
               std::to_string(offer.num_to_lose) + " to lose; whole blocks are right");
  }
  return offer;
}

VocabularyFrame read_vocabulary(const Fields& fields) {
  auto texts = std::make_shared<TokenTexts>();
  texts->bytes = fields.bytes("bytes", kMaxPayloadBytes);
  for (const TokenId end : fields.tokens("ends", kMaxTokens))
    texts->ends.push_back(static_cast<std::uint32_t>(end));
  texts->control = fields.tokens("control", kMaxTokens);
  const std::size_t count = texts->ends.size();
  if (!std::ranges::is_sorted(texts->ends) ||
      (count == 0 ? 0 : texts->ends.back()) != texts->bytes.size()) {
    wire::fail("vocabulary: ends do not cut " + std::to_string(texts->bytes.size()) +
               " bytes into tokens");
  }
  if (!std::ranges::is_sorted(texts->control) ||
      (!texts->control.empty() && static_cast<std::size_t>(texts->control.back()) >= count))
    wire::fail("vocabulary: a control token that is none of " + std::to_string(count));
  return {std::move(texts)};
}

Frame read_frame(std::uint8_t type, const char* name, const Json& payload) {
  const Fields fields(payload, name);
  switch (type) {
    case 1:
      return read_init(fields);
    case 2:
      return AdoptFrame{read_chains(fields)};
    case 3:
      return SubmitFrame{wire::read_request(fields.at("request"))};
    case 4:
      return CancelFrame{fields.u64("request"), fields.is_nil("choice")
                                                    ? std::nullopt
                                                    : std::optional(fields.u32("choice"))};
    case 5:
      return SnapshotFrame{fields.u64("id"), wire::read_manifest(fields.at("manifest")),
                           fields.boolean("tell_parts")};
    case 6:
      return RestoreFrame{fields.u64("id"), wire::read_manifest(fields.at("manifest")),
                          fields.u32("num_written")};
    case 7:
      return ShutdownFrame{};
    case 8:
      return InheritFrame{wire::read_memory(fields.at("memory"))};
    case 9:
      return read_peer(fields);
    case 10:
      return LendFrame{fields.u64("id"), fields.hash("cache_root"),
                       read_whole_blocks(fields, "token_ids")};
    case 11:
      return TakeBackFrame{fields.u64("id")};
    case 12:
      return BorrowFrame{fields.u64("id"), fields.u32("from"), fields.hash("cache_root"),
                         read_whole_blocks(fields, "token_ids"),
                         fields.tokens("blocks", kMaxTokens / kBlockSize)};
    case 13:
      return ArriveFrame{fields.u64("id"), fields.u32("first_extent"), read_checksums(fields),
                         fields.text("error", kMaxTextBytes)};
    case 14:
      return read_vocabulary(fields);
    case 15:
      return ExpectFrame{fields.u32("from")};
    case 16:
      return read_ready(fields);
    case 17: {
      EventsFrame frame;
      for (const Json& item : fields.array("events", kMaxListItems))
        frame.events.push_back(wire::read_event(item));
      return frame;
    }
    case 18:
      return PublishFrame{read_chains(fields)};
    case 19:
      return EvictFrame{fields.hashes("hashes", kMaxListItems)};
    case 20:
      return StatsFrame{wire::read_stats(fields.at("stats"))};
    case 21:
      return SnapshotDoneFrame{fields.u64("id"), fields.text("error", kMaxTextBytes),
                               read_checksums(fields)};
    case 22:
      return RestoreDoneFrame{fields.u64("id"), fields.text("error", kMaxTextBytes),
                              fields.u32("num_tokens")};
    case 23:
      return FatalFrame{wire::read_error(fields.at("error"))};
    case 24:
      return KeepFrame{wire::read_memory(fields.at("memory"))};
    case 26:
      return LentFrame{fields.u64("id"), fields.text("error", kMaxTextBytes),
                       fields.tokens("blocks", kMaxTokens / kBlockSize)};
    case 27:
      return SnapshotPartFrame{fields.u64("id"), fields.u32("first_extent"),
                               read_checksums(fields)};
    case 28:
      return RankFrame{fields.u32("rank"), nullptr};
    default:
      return read_offer(fields);
  }
}

const DeviceMemory* memory_of(const Frame& frame) {
  if (const auto* inherit = std::get_if<InheritFrame>(&frame)) return &inherit->memory;
  if (const auto* keep = std::get_if<KeepFrame>(&frame)) return &keep->memory;
  if (const auto* peer = std::get_if<PeerFrame>(&frame)) return &peer->memory;
  return nullptr;
}

/// Gives a frame the descriptors that came with it. Throws Exception(kProtocol) where they are not
/// those that it describes.
void attach(Frame& frame, std::vector<UniqueFd> descriptors) {
  auto* memory = const_cast<DeviceMemory*>(memory_of(frame));  // of a frame that is not const
  auto* rank = std::get_if<RankFrame>(&frame);
  const std::size_t wanted =
      memory == nullptr ? (rank == nullptr ? 0 : 1)
                        : (memory->weights_bytes > 0 ? 1 : 0) + (memory->kv_bytes > 0 ? 1 : 0);
  if (descriptors.size() != wanted) {
    wire::fail(std::to_string(descriptors.size()) + " descriptors; it describes " +
               std::to_string(wanted));
  }
  if (rank != nullptr) rank->process = std::make_shared<const UniqueFd>(std::move(descriptors[0]));
  if (memory == nullptr) return;
  auto next = descriptors.begin();
  if (memory->weights_bytes > 0)
    memory->weights = std::make_shared<const UniqueFd>(std::move(*next++));
  if (memory->kv_bytes > 0) memory->kv = std::make_shared<const UniqueFd>(std::move(*next));
}

std::uint32_t read_u32(const char* bytes) {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i)
    value |= static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  return value;
}

}  // namespace

std::uint8_t frame_type(const Frame& frame) {
  return kTypes[frame.index()].type;
}

const char* frame_name(const Frame& frame) {
  return kTypes[frame.index()].name;
}

std::vector<int> frame_descriptors(const Frame& frame) {
  std::vector<int> descriptors;
  if (const DeviceMemory* memory = memory_of(frame)) {
    for (const SharedFd& part : {memory->weights, memory->kv})
      if (part != nullptr) descriptors.push_back(part->get());
  }
  if (const auto* rank = std::get_if<RankFrame>(&frame);
      rank != nullptr && rank->process != nullptr)
    descriptors.push_back(rank->process->get());
  return descriptors;
}

std::string encode_frame(const Frame& frame) {
  Json payload = std::visit(PayloadOf{}, frame);
  const std::string tail = wire::lift(payload);
  std::string bytes(kFrameHeaderBytes, '\0');
  Json::to_msgpack(payload, bytes);
  const std::size_t payload_bytes = bytes.size() - kFrameHeaderBytes;
  if (payload_bytes + tail.size() > kMaxPayloadBytes) {
    throw Exception(make_error(Errc::kInternal, std::string(frame_name(frame)) + " frame of " +
                                                    std::to_string(payload_bytes + tail.size()) +
                                                    " bytes; at most " +
                                                    std::to_string(kMaxPayloadBytes)));
  }
  bytes[0] = static_cast<char>(kProtocolVersion);
  bytes[1] = static_cast<char>(frame_type(frame));
  bytes[2] = static_cast<char>(frame_descriptors(frame).size());
  for (int i = 0; i < 4; ++i) {
    bytes[4 + i] = static_cast<char>(payload_bytes >> (8 * i));
    bytes[8 + i] = static_cast<char>(tail.size() >> (8 * i));
  }
  return bytes += tail;
}

void FrameDecoder::feed(std::span<const char> bytes, std::vector<UniqueFd> descriptors) {
  buffer_.append(bytes.data(), bytes.size());
  std::ranges::move(descriptors, std::back_inserter(descriptors_));
}

Result<FrameDecoder::Next> FrameDecoder::wait_for_bytes() {
  // What was read is dropped here, once per feed and not once per frame.
  buffer_.erase(0, std::exchange(consumed_, 0));
  // They come with the first bytes of their frame, so that between frames there are none.
  const std::size_t most = buffer_.empty() ? 0 : kMaxDescriptors;
  if (descriptors_.size() <= most) return Next{};
  return make_error(Errc::kProtocol,
                    std::to_string(descriptors_.size()) + " descriptors that belong to no frame");
}

Result<FrameDecoder::Next> FrameDecoder::next() {
  const std::size_t available = buffer_.size() - consumed_;
  if (available < kFrameHeaderBytes) return wait_for_bytes();
  const char* header = buffer_.data() + consumed_;
  const auto version = static_cast<std::uint8_t>(header[0]);
  const auto type = static_cast<std::uint8_t>(header[1]);
  if (version != kProtocolVersion) {
    return make_error(Errc::kProtocol, "frame of protocol version " + std::to_string(version) +
                                           "; this side speaks " +
                                           std::to_string(kProtocolVersion));
  }
  const TypeInfo* info = nullptr;
  for (const TypeInfo& candidate : kTypes) {
    if (candidate.type == type) info = &candidate;
  }
  if (info == nullptr) {
    return make_error(Errc::kProtocol, "unknown frame type " + std::to_string(type));
  }
  const auto num_descriptors = static_cast<std::uint8_t>(header[2]);
  if (num_descriptors > kMaxDescriptors || header[3] != 0) {
    return make_error(Errc::kProtocol, std::string(info->name) + " frame: bytes 2 and 3 of the " +
                                           "header are not a number of descriptors and zero");
  }
  const std::size_t map_bytes = read_u32(header + 4);
  const std::size_t payload_bytes = map_bytes + read_u32(header + 8);
  if (payload_bytes > kMaxPayloadBytes) {
    return make_error(Errc::kProtocol, std::string(info->name) + " frame of " +
                                           std::to_string(payload_bytes) + " bytes; at most " +
                                           std::to_string(kMaxPayloadBytes));
  }
  if (available - kFrameHeaderBytes < payload_bytes) return wait_for_bytes();
  try {
    const std::span<const char> body(header + kFrameHeaderBytes, payload_bytes);
    const Json payload = wire::parse(body.first(map_bytes), body.subspan(map_bytes));
    Next next{true, read_frame(type, info->name, payload)};
    if (descriptors_.size() < num_descriptors) {
      wire::fail("it announces " + std::to_string(num_descriptors) + " descriptors; " +
                 std::to_string(descriptors_.size()) + " came");
    }
    const auto taken = descriptors_.begin() + num_descriptors;
    attach(next.frame,
           {std::make_move_iterator(descriptors_.begin()), std::make_move_iterator(taken)});
    descriptors_.erase(descriptors_.begin(), taken);
    consumed_ += kFrameHeaderBytes + payload_bytes;
    return next;
  } catch (const Exception& exception) {
    return make_error(Errc::kProtocol,
                      std::string(info->name) + " frame: " + exception.error().message);
  }
}

}  // namespace thaw::forkpool

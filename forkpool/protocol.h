#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "engine/base/block_entry.h"
#include "engine/base/call_limits.h"
#include "engine/base/generate.h"
#include "engine/base/pool_status.h"
#include "engine/base/result.h"
#include "engine/base/token_texts.h"
#include "engine/base/unique_fd.h"
#include "kvsnap/manifest.h"

namespace thaw::forkpool {

/// Frames between pool and worker. docs/protocol.md is the specification; payloads are MessagePack
/// maps, with their long byte strings behind them. Header, 12 bytes little-endian: u8 version, u8
/// type, u8 descriptors that travel with the frame, u8 zero, u32 bytes of the map, u32 bytes behind
/// it.
inline constexpr std::uint8_t kProtocolVersion = 7;
inline constexpr std::size_t kFrameHeaderBytes = 12;
inline constexpr std::size_t kMaxPayloadBytes = 64U << 20;  ///< both together

/// Caps on what one frame may hold. The codec refuses more, so nothing larger may be sent.
inline constexpr std::size_t kMaxTokens = std::size_t{8} << 20;  ///< in one token array
inline constexpr std::size_t kMaxNameBytes = kMaxCallNameBytes;
inline constexpr std::size_t kMaxTextBytes = kMaxGrammarBytes;  ///< messages are cut
inline constexpr std::uint32_t kMaxChoices = 1024;
inline constexpr std::size_t kMaxListItems = std::size_t{1} << 18;  ///< blocks, events, biases, ...

inline constexpr std::size_t kMaxDescriptors = 2;  ///< with one frame

/// Descriptors a worker inherits.
inline constexpr int kChannelFd = 3;
inline constexpr int kWeightsFd = 4;
inline constexpr int kKvPoolFd = 5;
inline constexpr int kArenaFd = 6;

/// A descriptor that came, or goes, with a frame. Frames are copied, descriptors are not.
using SharedFd = std::shared_ptr<const UniqueFd>;

/// Memory of a device, by descriptors that keep it when the process that made it dies. To the pool
/// they are opaque: it holds them and hands them to the worker's next process.
struct DeviceMemory {
  std::uint32_t rank = 0;  ///< of the worker's, whose memory it is
  std::string device;  ///< names it for good, such as a GPU's UUID
  Hash128 image;  ///< WeightImageView::digest() of what `weights` holds
  std::uint64_t weights_bytes = 0;  ///< of the allocation; 0: no weights
  Hash128 weights_digest;  ///< of the image's bytes there, for comparison before they are used
  std::uint64_t kv_bytes = 0;  ///< of the allocation; 0: no KV pool
  std::string kv_layout;
  std::uint64_t block_bytes = 0;
  SharedFd weights;  ///< null where weights_bytes is 0
  SharedFd kv;  ///< null where kv_bytes is 0
};

// Pool to worker.
struct InitFrame {
  std::uint32_t worker = 0;
  std::uint32_t generation = 0;
  std::string device = "cpu";  ///< engine/base/device_name.h
  std::uint32_t num_threads = 1;
  std::string isa;  ///< empty: the best there is
  std::string kv_dtype = "bf16";
  std::uint64_t kv_bytes = 0;  ///< of a device's KV pool; 0: what is free. The CPU's: its file's
  std::uint32_t max_num_seqs = 0;
  std::uint32_t max_waiting = 0;
  std::uint32_t prefill_chunk_tokens = 0;
  std::uint32_t max_model_len = 0;  ///< 0: the model's
  std::uint32_t tp_rank = 0;
  std::uint32_t tp_size = 1;
  std::string log_level = "info";
  std::uint32_t offer_min_tokens = 0;  ///< shorter trunks are not offered; 0: none are
};
struct AdoptFrame {  ///< right after InitFrame, also when empty
  std::vector<BlockEntry> blocks;  ///< parents before children
};
struct SubmitFrame {
  GenerateRequest request;
};
struct CancelFrame {
  RequestId request = 0;
  std::optional<std::uint32_t> choice = std::nullopt;  ///< that one alone
};
struct SnapshotFrame {  ///< write the KV of manifest.token_ids to its extents (lease held by the
                        ///< pool)
  std::uint64_t id = 0;
  kvsnap::Manifest manifest;
  bool tell_parts = false;  ///< whoever restores it does not wait for its end
};
struct RestoreFrame {
  std::uint64_t id = 0;
  kvsnap::Manifest manifest;
  /// First extents that are there, at most all; the others come by ArriveFrame.
  std::uint32_t num_written = std::numeric_limits<std::uint32_t>::max();
};
/// More of a snapshot that is being restored is written.
struct ArriveFrame {
  std::uint64_t id = 0;  ///< RestoreFrame's
  std::uint32_t first_extent = 0;
  std::vector<std::uint32_t> crc32c;  ///< of the extents from that one on
  std::string error;  ///< not empty: no more will come
};
struct ShutdownFrame {};
/// Between InitFrame and AdoptFrame, for each rank that the pool keeps something for.
struct InheritFrame {
  DeviceMemory memory;
};
/// The KV memory of another worker, for BorrowFrame, in place of what was sent of it before; of
/// nothing: to be forgotten. Its weights part is empty.
struct PeerFrame {
  std::uint32_t worker = 0;
  DeviceMemory memory;
};
/// The blocks of these tokens stay where and what they are until TakeBackFrame: another worker will
/// read them. Answered by LentFrame.
struct LendFrame {
  std::uint64_t id = 0;
  Hash128 cache_root;
  std::vector<TokenId> token_ids;  ///< of whole blocks
};
struct TakeBackFrame {
  std::uint64_t id = 0;
};
/// A frame that asks for a copy comes within a moment: whoever has nothing to do stays awake for
/// it, and who will borrow wakes the way to the lender.
struct ExpectFrame {
  std::uint32_t from = 0;  ///< the lender: another worker, or the one that is told
};
/// Copy the KV of these tokens out of a peer's blocks. Those that are named may be copied at once;
/// they are the tokens' where a LentFrame of that id says so. Where none are named, it says which
/// they are. Answered by RestoreDoneFrame.
struct BorrowFrame {
  std::uint64_t id = 0;
  std::uint32_t from = 0;  ///< the worker of a PeerFrame
  Hash128 cache_root;
  std::vector<TokenId> token_ids;  ///< of whole blocks
  std::vector<BlockId> blocks;  ///< the lender's, one for every block of tokens, or none
};

/// Right after InitFrame, where the pool knows what the model's tokens stand for.
struct VocabularyFrame {
  std::shared_ptr<const TokenTexts> texts;  ///< not null
};

// Worker to pool.
struct ReadyFrame {
  std::string kernel_set;
  Hash128 engine_fingerprint;
  std::string system_fingerprint;
  std::string kv_layout;
  std::uint64_t block_bytes = 0;
  std::uint64_t num_blocks = 0;
  std::uint64_t adopted_blocks = 0;
  std::uint32_t max_model_len = 0;
};
struct EventsFrame {
  std::vector<GenerateEvent> events;
};
struct PublishFrame {
  std::vector<BlockEntry> blocks;
};
/// Sent, and flushed, before an evicted block is written again: after a death the pool's ledger
/// must not name a block whose bytes have changed.
struct EvictFrame {
  std::vector<Hash128> hashes;
};
struct StatsFrame {
  EngineStats stats;  ///< of this process
};
/// Of a snapshot whose parts are told: more of its extents are written.
struct SnapshotPartFrame {
  std::uint64_t id = 0;
  std::uint32_t first_extent = 0;
  std::vector<std::uint32_t> crc32c;  ///< of the extents from that one on
};
/// From the lender to the pool, and from there to the borrower.
struct LentFrame {
  std::uint64_t id = 0;
  std::string error;  ///< empty: they are alive, and stay
  /// The lender's, one for every block of tokens. To a borrower: none where they are those that it
  /// was told of, and have been all the while; else these are to be copied, whatever was before.
  std::vector<BlockId> blocks;
};
struct SnapshotDoneFrame {
  std::uint64_t id = 0;
  std::string error;  ///< empty: written
  std::vector<std::uint32_t> crc32c;  ///< of all extents; of none with an error
};
struct RestoreDoneFrame {
  std::uint64_t id = 0;
  std::string error;  ///< empty: verified and published in the worker's index
  std::uint32_t num_tokens = 0;
};
struct FatalFrame {
  Error error;
};
/// Before ReadyFrame: what the pool shall keep, in place of what it has. Parts that are not named
/// stay as they are.
struct KeepFrame {
  DeviceMemory memory;
};
/// Another process of this worker, a rank of its group, by a descriptor of the process: nothing of
/// the group's memory is used again before it has ended, too.
struct RankFrame {
  std::uint32_t rank = 0;
  SharedFd process;
};
/// What the worker will evict before long, while it still has it: the pool may ask for a snapshot.
/// Nothing is promised, and it needs no answer.
struct OfferFrame {
  Hash128 root;
  std::vector<TokenId> token_ids;  ///< of whole blocks, from the first on
  std::uint32_t num_to_lose = 0;  ///< tokens at their end that no earlier offer covers
};

using Frame =
    std::variant<InitFrame, AdoptFrame, SubmitFrame, CancelFrame, SnapshotFrame, RestoreFrame,
                 ShutdownFrame, InheritFrame, PeerFrame, LendFrame, TakeBackFrame, BorrowFrame,
                 ArriveFrame, ReadyFrame, EventsFrame, PublishFrame, EvictFrame, StatsFrame,
                 SnapshotDoneFrame, RestoreDoneFrame, FatalFrame, KeepFrame, OfferFrame, LentFrame,
                 SnapshotPartFrame, RankFrame, VocabularyFrame, ExpectFrame>;

/// The type byte of a frame and its name, such as "submit".
std::uint8_t frame_type(const Frame& frame);
const char* frame_name(const Frame& frame);

/// Whether a request can travel: at least one token in the prompt, none negative, sizes within the
/// caps above, resumed choices that exist, once each. The error (kInvalidArgument) names the field.
Result<void> check_request(const GenerateRequest& request);

/// The descriptors that travel with a frame, in order; valid as long as it is.
std::vector<int> frame_descriptors(const Frame& frame);

/// Header and payload of one frame; FrameSender sends its descriptors too. REQUIRES: within the
/// caps (a request: check_request); throws Exception(kInternal) for a payload above
/// kMaxPayloadBytes.
std::string encode_frame(const Frame& frame);

/// Cuts frames out of a byte stream. Feed bytes, and the descriptors that came with them, as they
/// come; errors (kProtocol) are final: wrong version, unknown type, oversize, malformed payload,
/// missing descriptors or some that belong to no frame.
class FrameDecoder {
 public:
  void feed(std::span<const char> bytes, std::vector<UniqueFd> descriptors = {});
  /// The next whole frame, or found == false when more bytes are needed.
  struct Next {
    bool found = false;
    Frame frame;
  };
  Result<Next> next();
  /// Where next() found none: whether a part of one is here.
  bool has_part() const { return buffer_.size() > consumed_; }

 private:
  Result<Next> wait_for_bytes();

  std::string buffer_;
  std::size_t consumed_ = 0;
  std::vector<UniqueFd> descriptors_;  ///< that no frame has taken yet, in order
};

}  // namespace thaw::forkpool

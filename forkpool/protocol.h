#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "engine/base/generate.h"
#include "engine/base/pool_status.h"
#include "engine/base/result.h"
#include "kvsnap/manifest.h"

namespace thaw::forkpool {

/// Frames between pool and worker. docs/protocol.md is the specification; payloads are MessagePack
/// maps. Header, 8 bytes little-endian: u8 version, u8 type, u16 zero, u32 payload bytes.
inline constexpr std::uint8_t kProtocolVersion = 1;
inline constexpr std::size_t kFrameHeaderBytes = 8;
inline constexpr std::size_t kMaxPayloadBytes = 64U << 20;

/// Caps on what one frame may hold. The codec refuses more, so nothing larger may be sent.
inline constexpr std::size_t kMaxTokens = std::size_t{8} << 20;  ///< in one token array
inline constexpr std::size_t kMaxNameBytes =
    1024;  ///< tenant, salt, model, adapter, session, trace
inline constexpr std::size_t kMaxTextBytes = std::size_t{1} << 20;  ///< grammar; messages are cut
inline constexpr std::uint32_t kMaxChoices = 1024;
inline constexpr std::size_t kMaxListItems = std::size_t{1} << 18;  ///< blocks, events, biases, ...

/// Descriptors a worker inherits.
inline constexpr int kChannelFd = 3;
inline constexpr int kWeightsFd = 4;
inline constexpr int kKvPoolFd = 5;
inline constexpr int kArenaFd = 6;

/// One full KV block of a worker, named by its chained hash (engine/base/hash.h).
struct BlockEntry {
  Hash128 root;
  Hash128 parent;  ///< hash of the block before; the root for the first one
  Hash128 hash;
  BlockId block = -1;
  std::vector<TokenId> tokens;
};

// Pool to worker.
struct InitFrame {
  std::uint32_t worker = 0;
  std::uint32_t generation = 0;
  std::uint32_t num_threads = 1;
  std::string isa;  ///< empty: the best there is
  std::string kv_dtype = "bf16";
  std::uint32_t max_num_seqs = 0;
  std::uint32_t max_waiting = 0;
  std::uint32_t prefill_chunk_tokens = 0;
  std::uint32_t max_model_len = 0;  ///< 0: the model's
  std::uint32_t tp_rank = 0;
  std::uint32_t tp_size = 1;
  std::string log_level = "info";
};
struct AdoptFrame {  ///< right after InitFrame, also when empty
  std::vector<BlockEntry> blocks;  ///< parents before children
};
struct SubmitFrame {
  GenerateRequest request;
};
struct CancelFrame {
  RequestId request = 0;
};
struct SnapshotFrame {  ///< write the KV of manifest.token_ids to its extents (lease held by the
                        ///< pool)
  std::uint64_t id = 0;
  kvsnap::Manifest manifest;
};
struct RestoreFrame {
  std::uint64_t id = 0;
  kvsnap::Manifest manifest;
};
struct ShutdownFrame {};

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
struct SnapshotDoneFrame {
  std::uint64_t id = 0;
  std::string error;  ///< empty: written
  kvsnap::Manifest manifest;  ///< with checksums
};
struct RestoreDoneFrame {
  std::uint64_t id = 0;
  std::string error;  ///< empty: verified and published in the worker's index
  std::uint32_t num_tokens = 0;
};
struct FatalFrame {
  Error error;
};

using Frame = std::variant<InitFrame, AdoptFrame, SubmitFrame, CancelFrame, SnapshotFrame,
                           RestoreFrame, ShutdownFrame, ReadyFrame, EventsFrame, PublishFrame,
                           EvictFrame, StatsFrame, SnapshotDoneFrame, RestoreDoneFrame, FatalFrame>;

/// The type byte of a frame and its name, such as "submit".
std::uint8_t frame_type(const Frame& frame);
const char* frame_name(const Frame& frame);

/// Whether a request can travel: at least one token in the prompt, none negative, sizes within the
/// caps above, resumed choices that exist, once each. The error (kInvalidArgument) names the field.
Result<void> check_request(const GenerateRequest& request);

/// Header and payload of one frame. REQUIRES: within the caps (a request: check_request); throws
/// Exception(kInternal) for a payload above kMaxPayloadBytes.
std::string encode_frame(const Frame& frame);

/// Cuts frames out of a byte stream. Feed bytes as they come; errors (kProtocol) are final: wrong
/// version, unknown type, oversize, malformed payload.
class FrameDecoder {
 public:
  void feed(std::span<const char> bytes) { buffer_.append(bytes.data(), bytes.size()); }
  /// The next whole frame, or found == false when more bytes are needed.
  struct Next {
    bool found = false;
    Frame frame;
  };
  Result<Next> next();

 private:
  std::string buffer_;
  std::size_t consumed_ = 0;
};

}  // namespace thaw::forkpool

// A worker without a model: it speaks the protocol, answers with fake_token(), and misbehaves as
// told. THAW_FAKE holds rules "WHO:WHAT[=NUMBER];...", where WHO is "*", a worker's number, or
// "worker.generation"; see Rules for what there is.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "engine/base/crc32c.h"
#include "engine/base/hash.h"
#include "forkpool/frame_socket.h"
#include "forkpool/protocol.h"
#include "tests/forkpool/fake_tokens.h"

namespace thaw::forkpool {
namespace {

constexpr std::size_t kBlockBytes = 256;
// Of its "device memory": memory files that nobody but a descriptor keeps.
constexpr std::size_t kDeviceBytes = std::size_t{1} << 20;
constexpr std::byte kWeight{0x57};

struct Rules {
  bool never_ready = false;
  bool exit_at_boot = false;  ///< status 3
  bool fatal_at_boot = false;
  bool garbage = false;  ///< at the first submit
  bool gap = false;  ///< leaves out the token with index 2
  bool twice = false;  ///< sends every token twice
  bool ignore_shutdown = false;
  bool ignore_cancel = false;
  bool no_snapshots = false;  ///< answers with an error
  bool damage_snapshots = false;  ///< wrong checksum
  bool stall_snapshots = false;  ///< never answers to snapshot and restore
  bool parts = false;  ///< tells the parts of a snapshot
  bool die_in_parts = false;  ///< after telling the first
  bool no_lending = false;  ///< answers with an error
  bool die_at_lend = false;
  bool no_borrowing = false;  ///< answers with an error
  bool die_at_borrow = false;
  bool die_borrowing = false;  ///< once it was lent
  bool stall_borrowing = false;  ///< never answers
  bool stop_reading = false;  ///< after the first submit
  bool keep_late = false;  ///< sends a keep frame after it was ready
  bool keep_loose = false;  ///< a descriptor with a frame that has none
  bool die_after_keep = false;  ///< before it is ready
  bool damage_weights = false;  ///< over the first submit: writes into them and dies
  std::optional<long> die_at_token;  ///< after sending the token with that index
  std::optional<long> poison;  ///< crashes over the third token of a prompt that begins so
  bool die_at_submit = false;  ///< killed before the first token of anything
  /// Offers the first prompt, and at once evicts so many blocks of its end.
  std::optional<long> offer_and_lose;
  long pace_us = 0;  ///< between steps

  static Rules parse(const std::string& text, const InitFrame& init) {
    const std::string worker = std::to_string(init.worker);
    const std::string process = worker + "." + std::to_string(init.generation);
    Rules rules;
    std::istringstream stream(text);
    for (std::string rule; std::getline(stream, rule, ';');) {
      const std::string who = rule.substr(0, rule.find(':'));
      if (who != "*" && who != worker && who != process) continue;
      std::string what = rule.substr(rule.find(':') + 1);
      long number = 0;
      if (const auto equals = what.find('='); equals != std::string::npos) {
        number = std::stol(what.substr(equals + 1));
        what.resize(equals);
      }
      if (what == "never_ready") rules.never_ready = true;
      if (what == "exit_at_boot") rules.exit_at_boot = true;
      if (what == "fatal_at_boot") rules.fatal_at_boot = true;
      if (what == "garbage") rules.garbage = true;
      if (what == "gap") rules.gap = true;
      if (what == "twice") rules.twice = true;
      if (what == "ignore_shutdown") rules.ignore_shutdown = true;
      if (what == "ignore_cancel") rules.ignore_cancel = true;
      if (what == "no_snapshots") rules.no_snapshots = true;
      if (what == "damage_snapshots") rules.damage_snapshots = true;
      if (what == "stall_snapshots") rules.stall_snapshots = true;
      if (what == "parts") rules.parts = true;
      if (what == "die_in_parts") rules.parts = rules.die_in_parts = true;
      if (what == "no_lending") rules.no_lending = true;
      if (what == "die_at_lend") rules.die_at_lend = true;
      if (what == "no_borrowing") rules.no_borrowing = true;
      if (what == "die_at_borrow") rules.die_at_borrow = true;
      if (what == "die_borrowing") rules.die_borrowing = true;
      if (what == "stall_borrowing") rules.stall_borrowing = true;
      if (what == "stop_reading") rules.stop_reading = true;
      if (what == "keep_late") rules.keep_late = true;
      if (what == "keep_loose") rules.keep_loose = true;
      if (what == "die_after_keep") rules.die_after_keep = true;
      if (what == "damage_weights") rules.damage_weights = true;
      if (what == "die_at_token") rules.die_at_token = number;
      if (what == "poison") rules.poison = number;
      if (what == "die_at_submit") rules.die_at_submit = true;
      if (what == "offer_and_lose") rules.offer_and_lose = number;
      if (what == "pace_us") rules.pace_us = number;
    }
    return rules;
  }
};

std::span<std::byte> map(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0 || info.st_size == 0) return {};
  const auto size = static_cast<std::size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) std::exit(4);
  return {static_cast<std::byte*>(data), size};
}

class FakeWorker {
 public:
  int run() {
    kv_ = map(kKvPoolFd);
    arena_ = map(kArenaFd);
    for (;;) {
      const bool busy = !running_.empty();
      pollfd channel{kChannelFd, POLLIN, 0};
      const timespec pace{0, busy ? rules_.pace_us * 1000 : 0};
      const int count = ::ppoll(&channel, 1, busy ? &pace : nullptr, nullptr);
      if (count < 0 && errno != EINTR) return 5;
      if (count > 0 && !read_frames()) return status_;
      if (booted_) step();
    }
  }

 private:
  struct Choice {
    std::uint32_t index = 0;
    std::uint32_t next = 0;
  };
  struct Running {
    GenerateRequest request;
    std::vector<Choice> choices;
    std::uint32_t cached_tokens = 0;
    std::uint32_t generated = 0;
  };

  bool read_frames() {
    char bytes[65536];
    if (receive_some(kChannelFd, bytes, decoder_) <= 0) return false;
    for (;;) {
      auto next = decoder_.next();
      if (!next) {
        send(FatalFrame{next.error()});
        status_ = 6;
        return false;
      }
      if (!next->found) return true;
      if (!handle(std::move(next->frame))) return false;
    }
  }

  bool handle(Frame frame) {
    if (const auto* init = std::get_if<InitFrame>(&frame)) {
      init_ = *init;
      const char* rules = std::getenv("THAW_FAKE");
      rules_ = Rules::parse(rules == nullptr ? "" : rules, init_);
    } else if (auto* inherit = std::get_if<InheritFrame>(&frame)) {
      const std::uint32_t rank = inherit->memory.rank;
      inherited_[rank] = std::move(inherit->memory);
    } else if (auto* adopt = std::get_if<AdoptFrame>(&frame)) {
      if (init_.device != "cpu" && !use_device_memory()) return false;
      return boot(std::move(adopt->blocks));
    } else if (auto* submit = std::get_if<SubmitFrame>(&frame)) {
      this->submit(std::move(submit->request));
    } else if (const auto* cancel = std::get_if<CancelFrame>(&frame)) {
      if (cancel->choice)
        end_choice(cancel->request, *cancel->choice);
      else if (!rules_.ignore_cancel)
        this->cancel(cancel->request);
    } else if (const auto* snapshot = std::get_if<SnapshotFrame>(&frame)) {
      if (!rules_.stall_snapshots) write_snapshot(*snapshot);
    } else if (const auto* restore = std::get_if<RestoreFrame>(&frame)) {
      if (!rules_.stall_snapshots) start_restore(*restore);
    } else if (const auto* arrive = std::get_if<ArriveFrame>(&frame)) {
      this->arrive(*arrive);
    } else if (const auto* peer = std::get_if<PeerFrame>(&frame)) {
      meet(*peer);
    } else if (const auto* lend = std::get_if<LendFrame>(&frame)) {
      if (rules_.die_at_lend) ::raise(SIGKILL);
      this->lend(*lend);
    } else if (const auto* borrow = std::get_if<BorrowFrame>(&frame)) {
      if (rules_.die_at_borrow) ::raise(SIGKILL);
      if (rules_.no_borrowing) {
        send(RestoreDoneFrame{borrow->id, "the fake borrows nothing", 0});
      } else {
        borrowing_[borrow->id] = *borrow;
      }
    } else if (const auto* lent = std::get_if<LentFrame>(&frame)) {
      if (rules_.die_borrowing) ::raise(SIGKILL);
      if (!rules_.stall_borrowing) this->borrow(*lent);
    } else if (std::holds_alternative<ShutdownFrame>(frame)) {
      return rules_.ignore_shutdown;
    }
    return true;
  }

  // As a worker on a GPU does: what was kept is mapped and verified, the rest is made and kept.
  bool use_device_memory() {
    const DeviceMemory& inherited = inherited_[0];
    for (std::uint32_t rank = 1; rank < init_.tp_size; ++rank)
      use_rank(rank);
    DeviceMemory kept;
    kept.device = "fake-device";
    kept.image = hash_text("fake image");
    kept.weights_digest = hash_text("fake weights");
    if (inherited.weights_bytes > 0) {
      weights_ = map(inherited.weights->get());
      if (weights_.size() != kDeviceBytes || inherited.image != kept.image) return false;
    }
    const bool intact = std::ranges::all_of(weights_, [](std::byte b) { return b == kWeight; });
    if (weights_.empty()) {
      kept.weights = make_memory("weights");
      kept.weights_bytes = kDeviceBytes;
      weights_ = map(kept.weights->get());
    }
    if (!intact || kept.weights_bytes > 0) {
      std::ranges::fill(weights_, kWeight);
      ++stats_.restores;  // an upload
    }
    if (inherited.kv_bytes > 0) {
      kv_ = map(inherited.kv->get());
    } else {
      kept.kv = make_memory("kv");
      kept.kv_bytes = kDeviceBytes;
      kept.kv_layout = "fake:16";
      kept.block_bytes = kBlockBytes;
      kv_ = map(kept.kv->get());
    }
    if (rules_.keep_loose) {
      send_loose();
    } else if (kept.weights_bytes > 0 || kept.kv_bytes > 0) {
      send(KeepFrame{kept});
    }
    if (rules_.die_after_keep) ::raise(SIGKILL);
    return true;
  }

  // Another rank of a group: a process that ends for nobody, and memory that nobody looks into.
  void use_rank(std::uint32_t rank) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      for (int fd = 3; fd < 64; ++fd)
        ::close(fd);
      while (true)
        ::pause();
    }
    const long process = ::syscall(SYS_pidfd_open, pid, 0);
    if (pid < 0 || process < 0) std::exit(10);
    send(RankFrame{rank, std::make_shared<const UniqueFd>(UniqueFd(static_cast<int>(process)))});
    if (inherited_[rank].kv_bytes > 0) return;
    DeviceMemory memory;
    memory.rank = rank;
    memory.device = "fake-device";
    memory.weights = make_memory("weights");
    memory.kv = make_memory("kv");
    memory.weights_bytes = memory.kv_bytes = kDeviceBytes;
    send(KeepFrame{memory});
    ++stats_.restores;  // an upload
  }

  static SharedFd make_memory(const char* name) {
    UniqueFd memory(::memfd_create(name, MFD_CLOEXEC));
    if (!memory || ::ftruncate(memory.get(), kDeviceBytes) != 0) std::exit(9);
    return std::make_shared<const UniqueFd>(std::move(memory));
  }

  // A stats frame with a descriptor that it does not announce.
  static void send_loose() {
    std::string bytes = encode_frame(StatsFrame{});
    iovec part{bytes.data(), bytes.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &kArenaFd, sizeof(int));
    (void)::sendmsg(kChannelFd, &message, MSG_NOSIGNAL);
  }

  bool boot(std::vector<BlockEntry> blocks) {
    if (rules_.never_ready) return true;
    if (rules_.exit_at_boot) {
      status_ = 3;
      return false;
    }
    if (rules_.fatal_at_boot) {
      send(FatalFrame{make_error(Errc::kUnsupported, "the fake refuses to start")});
      status_ = 3;
      return false;
    }
    std::vector<Hash128> refused;
    for (BlockEntry& block : blocks) {
      // The bytes of an offered block must be those that the process before wrote.
      const bool intact = std::memcmp(block_bytes(block.block).data(), block.hash.bytes.data(),
                                      block.hash.bytes.size()) == 0;
      if (!intact) {
        refused.push_back(block.hash);
        continue;
      }
      next_block_ = std::max(next_block_, block.block + 1);
      index_[block.hash] = std::move(block);
    }
    if (!refused.empty()) send(EvictFrame{refused});
    ReadyFrame ready;
    ready.kernel_set = "fake";
    ready.engine_fingerprint = hash_text("fake engine");
    ready.system_fingerprint = "fake-1";
    ready.kv_layout = "fake:16";
    ready.block_bytes = kBlockBytes;
    ready.num_blocks = kv_.size() / kBlockBytes;
    ready.adopted_blocks = index_.size();
    ready.max_model_len = 1 << 20;
    if (stats_.restores > 0) send(StatsFrame{stats_});
    send(ready);
    if (rules_.keep_late) send(KeepFrame{});
    booted_ = true;
    return true;
  }

  std::span<std::byte> block_bytes(BlockId block) {
    return kv_.subspan(static_cast<std::size_t>(block) * kBlockBytes, kBlockBytes);
  }

  void submit(GenerateRequest request) {
    if (rules_.die_at_submit) ::raise(SIGKILL);
    while (rules_.stop_reading)
      ::pause();
    if (rules_.damage_weights) {
      weights_[weights_.size() / 2] ^= std::byte{1};
      ::raise(SIGKILL);
    }
    if (rules_.garbage) {
      const std::string bytes(64, '\x7f');
      (void)::send(kChannelFd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      return;
    }
    for (const ResumedChoice& resumed : request.resumed) {
      for (std::uint32_t i = 0; i < resumed.generated.size(); ++i) {
        if (resumed.generated[i] ==
            fake_token(request.prompt, request.sampling.seed, resumed.choice_index, i)) {
          continue;
        }
        send(EventsFrame{{FailedEvent{
            request.id, make_error(Errc::kInternal, "resumed with a token that was never sent")}}});
        return;
      }
    }
    Running running;
    if (request.resumed.empty()) {
      for (std::uint32_t choice = 0; choice < request.num_choices; ++choice)
        running.choices.push_back({choice, 0});
    }
    for (const ResumedChoice& resumed : request.resumed) {
      running.choices.push_back(
          {resumed.choice_index, static_cast<std::uint32_t>(resumed.generated.size())});
    }
    running.cached_tokens = prefill(request);
    const RequestId id = request.id;
    running.request = std::move(request);
    events_.emplace_back(AdmittedEvent{id, init_.worker});
    running_[id] = std::move(running);
  }

  /// Publishes the prompt's whole blocks; returns the tokens that were there already.
  std::uint32_t prefill(const GenerateRequest& request) {
    const Hash128 root = make_cache_root(hash_text("fake engine"), request.tenant,
                                         request.cache_salt, request.adapter);
    Hash128 parent = root;
    std::uint32_t cached = 0;
    bool hit = true;
    PublishFrame publish;
    std::vector<Hash128> names;
    for (std::size_t at = 0; at + kBlockSize <= request.prompt.size(); at += kBlockSize) {
      const std::span tokens(request.prompt.data() + at, kBlockSize);
      const Hash128 hash = chain_block_hash(parent, tokens);
      hit = hit && index_.contains(hash);
      if (hit) {
        cached += kBlockSize;
      } else if (!index_.contains(hash)) {
        if (!add_block({root, parent, hash, next_block_, to_block_tokens(tokens)})) break;
        publish.blocks.push_back(index_.at(hash));
      }
      names.push_back(hash);
      parent = hash;
    }
    const auto prompt_tokens = static_cast<std::uint32_t>(request.prompt.size());
    cached = std::min(cached, prompt_tokens - 1);
    stats_.tokens_prefilled += prompt_tokens - cached;
    stats_.tokens_cached += cached;
    if (!publish.blocks.empty()) send(publish);
    if (rules_.offer_and_lose) {
      offer_and_lose(root, request, names, static_cast<std::size_t>(*rules_.offer_and_lose));
      rules_.offer_and_lose.reset();
    }
    return cached;
  }

  void offer_and_lose(const Hash128& root, const GenerateRequest& request,
                      std::span<const Hash128> names, std::size_t num_lost) {
    const std::size_t num_tokens = names.size() * kBlockSize;
    send(OfferFrame{
        root,
        {request.prompt.begin(), request.prompt.begin() + static_cast<std::ptrdiff_t>(num_tokens)},
        static_cast<std::uint32_t>(num_tokens)});
    const auto lost = names.last(num_lost);
    for (const Hash128& name : lost)
      index_.erase(name);
    if (!lost.empty()) send(EvictFrame{{lost.begin(), lost.end()}});
  }

  bool add_block(BlockEntry entry) {
    if ((static_cast<std::size_t>(next_block_) + 1) * kBlockBytes > kv_.size()) return false;
    ++next_block_;
    const auto bytes = block_bytes(entry.block);
    for (std::size_t at = 0; at < bytes.size(); at += entry.hash.bytes.size())
      std::memcpy(bytes.data() + at, entry.hash.bytes.data(), entry.hash.bytes.size());
    index_[entry.hash] = std::move(entry);
    return true;
  }

  void cancel(RequestId id) {
    const auto found = running_.find(id);
    if (found == running_.end()) return;
    for (const Choice& choice : found->second.choices)
      events_.emplace_back(FinishedEvent{id, choice.index, FinishReason::kCancelled, {}});
    complete(found->second);
    running_.erase(found);
  }

  void end_choice(RequestId id, std::uint32_t index) {
    const auto found = running_.find(id);
    if (found == running_.end()) return;
    if (std::erase_if(found->second.choices,
                      [&](const Choice& choice) { return choice.index == index; }) == 0)
      return;
    events_.emplace_back(FinishedEvent{id, index, FinishReason::kCancelled, {}});
    if (!found->second.choices.empty()) return;
    complete(found->second);
    running_.erase(found);
  }

  void complete(const Running& running) {
    events_.emplace_back(CompletedEvent{running.request.id,
                                        {static_cast<std::uint32_t>(running.request.prompt.size()),
                                         running.cached_tokens, running.generated}});
  }

  void step() {
    bool dies = false;
    bool crashes = false;
    for (auto entry = running_.begin(); entry != running_.end();) {
      Running& running = entry->second;
      const GenerateRequest& request = running.request;
      std::vector<Choice> left;
      for (Choice choice : running.choices) {
        if (rules_.poison == static_cast<long>(request.prompt[0]) && choice.next >= 2) {
          crashes = true;
          left.push_back(choice);
          continue;
        }
        const TokenId token =
            fake_token(request.prompt, request.sampling.seed, choice.index, choice.next);
        if (!(rules_.gap && choice.next == 2)) {
          for (int i = rules_.twice ? 2 : 1; i > 0; --i)
            events_.emplace_back(TokenEvent{request.id, choice.index, choice.next, token, 0, {}});
        }
        ++running.generated;
        ++stats_.tokens_decoded;
        dies = dies || rules_.die_at_token == static_cast<long>(choice.next);
        if (++choice.next < request.sampling.max_tokens) {
          left.push_back(choice);
        } else {
          events_.emplace_back(FinishedEvent{request.id, choice.index, FinishReason::kLength, {}});
        }
      }
      running.choices = std::move(left);
      if (running.choices.empty()) {
        complete(running);
        entry = running_.erase(entry);
      } else {
        ++entry;
      }
    }
    ++stats_.steps;
    stats_.running = running_.size();
    // Before the events, so that whoever has seen an end may kill this process and still count.
    if ((!events_.empty() && running_.empty()) || stats_.steps % 64 == 0) send(StatsFrame{stats_});
    if (!events_.empty()) send(EventsFrame{std::move(events_)});
    events_.clear();
    if (crashes) std::_Exit(70);
    if (dies) ::raise(SIGKILL);
  }

  void write_snapshot(const SnapshotFrame& frame) {
    SnapshotDoneFrame done{frame.id, "", {}};
    Hash128 parent = frame.manifest.cache_root;
    std::vector<BlockId> blocks;
    for (std::size_t at = 0; at < frame.manifest.token_ids.size(); at += kBlockSize) {
      parent =
          chain_block_hash(parent, std::span(frame.manifest.token_ids).subspan(at, kBlockSize));
      const auto found = index_.find(parent);
      if (found == index_.end()) done.error = "a block is not here";
      if (found != index_.end()) blocks.push_back(found->second.block);
    }
    if (rules_.no_snapshots) done.error = "the fake writes no snapshots";
    std::size_t next = 0;
    for (const kvsnap::Extent& extent : frame.manifest.extents) {
      if (!done.error.empty()) break;
      const auto to = arena_.subspan(extent.offset, extent.size_bytes);
      for (std::size_t at = 0; at < to.size(); at += kBlockBytes)
        std::memcpy(to.data() + at, block_bytes(blocks.at(next++)).data(), kBlockBytes);
      done.crc32c.push_back(crc32c(to) + (rules_.damage_snapshots ? 1U : 0U));
    }
    if (done.error.empty()) ++stats_.snapshots;
    if (frame.tell_parts && rules_.parts && done.error.empty()) {
      for (std::uint32_t i = 0; i + 1 < done.crc32c.size(); ++i) {
        send(SnapshotPartFrame{frame.id, i, {done.crc32c[i]}});
        if (rules_.die_in_parts) ::raise(SIGKILL);
      }
    }
    send(done);
    send(StatsFrame{stats_});
  }

  void start_restore(const RestoreFrame& frame) {
    if (frame.num_written < frame.manifest.extents.size())
      restoring_[frame.id] = frame;
    else
      read_snapshot(frame);
  }

  void arrive(const ArriveFrame& frame) {
    const auto found = restoring_.find(frame.id);
    if (found == restoring_.end()) return;
    RestoreFrame& restore = found->second;
    if (!frame.error.empty() || frame.first_extent != restore.num_written) {
      send(RestoreDoneFrame{frame.id, "not all of it arrived", 0});
      restoring_.erase(found);
      return;
    }
    for (const std::uint32_t crc : frame.crc32c)
      restore.manifest.extents.at(restore.num_written++).crc32c = crc;
    if (restore.num_written < restore.manifest.extents.size()) return;
    ++stats_.preemptions;  // one that followed, in a counter that means something else
    read_snapshot(restore);
    restoring_.erase(found);
  }

  void meet(const PeerFrame& frame) {
    if (const auto old = peers_.extract(frame.worker))
      ::munmap(old.mapped().data(), old.mapped().size());
    if (frame.memory.kv_bytes > 0) peers_[frame.worker] = map(frame.memory.kv->get());
  }

  void lend(const LendFrame& frame) {
    LentFrame answer{frame.id, rules_.no_lending ? "the fake lends nothing" : "", {}};
    Hash128 parent = frame.cache_root;
    for (std::size_t at = 0; at < frame.token_ids.size(); at += kBlockSize) {
      parent = chain_block_hash(parent, std::span(frame.token_ids).subspan(at, kBlockSize));
      const auto found = index_.find(parent);
      if (found == index_.end()) answer.error = "a block is not here";
      if (found != index_.end()) answer.blocks.push_back(found->second.block);
    }
    if (!answer.error.empty()) answer.blocks.clear();
    send(answer);
  }

  void borrow(const LentFrame& lent) {
    const auto found = borrowing_.extract(lent.id);
    if (found.empty()) return;
    const BorrowFrame& frame = found.mapped();
    std::vector<std::span<const std::byte>> blocks;
    for (const BlockId block : lent.blocks.empty() ? frame.blocks : lent.blocks) {
      blocks.push_back(peers_.at(frame.from)
                           .subspan(static_cast<std::size_t>(block) * kBlockBytes, kBlockBytes));
    }
    take_blocks({frame.id, lent.error, 0}, frame.cache_root, frame.token_ids, blocks);
  }

  void read_snapshot(const RestoreFrame& frame) {
    RestoreDoneFrame done{frame.id, "", 0};
    std::vector<std::span<const std::byte>> blocks;
    for (const kvsnap::Extent& extent : frame.manifest.extents) {
      const auto from = arena_.subspan(extent.offset, extent.size_bytes);
      if (crc32c(from) != extent.crc32c) done.error = "a checksum does not match";
      for (std::size_t at = 0; at < from.size(); at += kBlockBytes)
        blocks.push_back(from.subspan(at, kBlockBytes));
    }
    take_blocks(std::move(done), frame.manifest.cache_root, frame.manifest.token_ids, blocks);
  }

  /// Answers whether what came from elsewhere is what it should be, and publishes it.
  void take_blocks(RestoreDoneFrame done, const Hash128& root, std::span<const TokenId> token_ids,
                   const std::vector<std::span<const std::byte>>& blocks) {
    PublishFrame publish;
    Hash128 parent = root;
    for (std::size_t i = 0; i < blocks.size() && done.error.empty(); ++i) {
      const auto tokens = token_ids.subspan(i * kBlockSize, kBlockSize);
      const Hash128 hash = chain_block_hash(parent, tokens);
      if (std::memcmp(blocks[i].data(), hash.bytes.data(), hash.bytes.size()) != 0) {
        done.error = "these are other bytes";
      } else if (!index_.contains(hash)) {
        add_block({root, parent, hash, next_block_, to_block_tokens(tokens)});
        publish.blocks.push_back(index_.at(hash));
      }
      parent = hash;
    }
    if (done.error.empty()) done.num_tokens = static_cast<std::uint32_t>(token_ids.size());
    send(done);
    if (done.error.empty()) {
      send(publish);
      ++stats_.restores;
    }
    send(StatsFrame{stats_});
  }

  static void send(const Frame& frame) {
    FrameSender sender;
    sender.push(frame);
    while (sender.unsent_bytes() > 0) {
      pollfd channel{kChannelFd, POLLOUT, 0};
      if (::poll(&channel, 1, -1) < 0 && errno != EINTR) std::exit(7);
      if (sender.send_some(kChannelFd) != 0) std::exit(7);
    }
  }

  InitFrame init_;
  Rules rules_;
  bool booted_ = false;
  int status_ = 0;
  FrameDecoder decoder_;
  std::map<std::uint32_t, DeviceMemory> inherited_;  ///< by rank
  std::span<std::byte> weights_;  ///< in device memory
  std::span<std::byte> kv_;
  std::span<std::byte> arena_;
  std::map<RequestId, Running> running_;
  std::vector<GenerateEvent> events_;
  std::map<Hash128, BlockEntry> index_;
  std::map<std::uint64_t, RestoreFrame> restoring_;
  std::map<std::uint64_t, BorrowFrame> borrowing_;
  std::map<std::uint32_t, std::span<std::byte>> peers_;
  BlockId next_block_ = 0;
  EngineStats stats_;
};

}  // namespace
}  // namespace thaw::forkpool

int main(int argc, char** argv) {
  if (argc != 2 || std::strcmp(argv[1], "worker") != 0) return 2;
  // Whoever spawned this must have left nothing else open: a leak would pass to every worker.
  for (int fd = thaw::forkpool::kArenaFd + 1; fd < 256; ++fd) {
    if (::fcntl(fd, F_GETFD) != -1) return 8;
  }
  return thaw::forkpool::FakeWorker().run();
}

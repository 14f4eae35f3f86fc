#include <sys/prctl.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/log.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/model/cuda/cuda_model.h"
#include "forkpool/worker/cuda_rank.h"
#include "forkpool/worker/device_parts.h"
#include "forkpool/worker/group_model.h"
#include "forkpool/worker/rank_handshake.h"
#include "forkpool/worker/rank_link.h"

// A process that is not the first rank of its worker.

namespace thaw::forkpool::worker {
namespace {

Result<void> follow_leader(RankLink& leader, const InitFrame& init, DeviceMemory inherited,
                           int weights_fd) {
  auto weights = map_inherited(weights_fd, MapAccess::kReadOnly, "weights");
  if (!weights) return weights.error();
  auto image = checkpoint::WeightImageView::open(weights->bytes());
  if (!image) return image.error();
  CudaRank rank(init, inherited, *image);
  if (auto loaded = rank.load(weights_fd); !loaded) return loaded;
  const auto blocks = rank.room();
  if (!blocks) return blocks.error();
  {
    auto exchange = rank.exchange().export_fd();
    if (!exchange) return exchange.error();
    const RankReport report{*blocks, rank.kv_kept(), std::move(*exchange)};
    if (auto sent = send_report(leader, report, kHandshakeDeadline); !sent) return sent;
  }
  std::unique_ptr<model::CudaModel> model;
  {
    const auto begin = receive_begin(leader, kHandshakeDeadline);
    if (!begin) return begin.error();
    auto made = rank.make_model(begin->num_blocks, numbers_of(begin->exchanges));
    if (!made) return made.error();
    model = std::move(*made);
    const auto memory = rank.memory();
    if (!memory) return memory.error();
    if (auto sent = send_ready(leader, *memory, kHandshakeDeadline); !sent) return sent;
  }
  inherited = {};  // what is used of it is imported; nothing else shall live on
  auto followed = follow(leader, *model);
  if (!followed) rank.exchange().stop();
  return followed;
}

}  // namespace

Result<void> run_cuda_follower(UniqueFd socket, const InitFrame& init, DeviceMemory inherited,
                               int weights_fd) {
  // No orphan: whatever this process waits for, it ends with its leader. One that has ended already
  // has closed the link.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  RankLink leader(std::move(socket));
  const auto run = [&]() -> Result<void> {
    try {
      return follow_leader(leader, init, std::move(inherited), weights_fd);
    } catch (const Exception& failure) {
      return failure.error();
    }
  };
  const Result<void> followed = run();
  if (followed) return {};
  std::vector<std::int32_t> words = {static_cast<std::int32_t>(followed.error().code)};
  for (const char letter : followed.error().message)
    words.push_back(static_cast<unsigned char>(letter));
  const auto told =
      leader.send(RankMessageKind::kFailed, words, {}, std::chrono::milliseconds(1000));
  logger("worker")->error("rank={} fatal told={} error=\"{}\"", init.tp_rank,
                          static_cast<bool>(told), followed.error().to_string());
  std::_Exit(1);  // a lost device may hold up whoever frees what it has
}

}  // namespace thaw::forkpool::worker

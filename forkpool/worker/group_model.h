#pragma once

#include <memory>
#include <vector>

#include "engine/base/result.h"
#include "engine/model/model.h"
#include "forkpool/worker/rank_link.h"

namespace thaw::forkpool::worker {

/// The leading rank's model of a group: what it is asked for the followers are told first, then
/// `own` does it. Results are its own: all ranks have the same. A follower that is gone is an error
/// (kUnavailable) of the next call. `kv`: its view of whole blocks, which are in parts on the
/// ranks; nobody reads at its base. The links must outlive it.
std::unique_ptr<model::Model> make_group_model(std::unique_ptr<model::Model> own, model::KvView kv,
                                               std::vector<RankLink*> followers);

/// A following rank's whole work: does with `model` what the leader does with its own, until the
/// leader closes the link. Errors that the leader's own model reports as well, of what was asked,
/// are passed over; others are returned.
Result<void> follow(RankLink& leader, model::Model& model);

}  // namespace thaw::forkpool::worker

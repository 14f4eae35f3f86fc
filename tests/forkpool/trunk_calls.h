#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <utility>

#include "tests/forkpool/pool_harness.h"

namespace thaw::forkpool {

/// A trunk's call and its answer. `call` gets the callback; 30 s, then kInternal.
template <typename Call>
Result<KeptTrunk> await_trunk(const Call& call) {
  auto done = std::make_shared<std::promise<Result<KeptTrunk>>>();
  auto ended = done->get_future();
  call(TrunkDone([done](Result<KeptTrunk> kept) { done->set_value(std::move(kept)); }));
  if (ended.wait_for(std::chrono::seconds(30)) != std::future_status::ready)
    return make_error(Errc::kInternal, "it was never answered");
  return ended.get();
}

inline Result<KeptTrunk> keep_trunk(ForkPool& pool, const PinId& pin,
                                    const std::vector<TokenId>& tokens,
                                    const std::string& tenant = "",
                                    std::chrono::seconds ttl = std::chrono::seconds(0)) {
  return await_trunk([&](TrunkDone done) {
    pool.keep({pin, {tenant, "", "", ""}, tokens, ttl}, std::move(done));
  });
}

inline Result<KeptTrunk> save_trunk(ForkPool& pool, const std::string& path,
                                    const std::vector<TokenId>& tokens,
                                    const std::string& tenant = "") {
  SaveTrunk save;
  save.path = path;
  save.owner.tenant = tenant;
  save.token_ids = tokens;
  return await_trunk([&](TrunkDone done) { pool.save(save, std::move(done)); });
}

inline Result<KeptTrunk> load_trunk(ForkPool& pool, const std::string& path, const PinId& pin,
                                    const std::string& tenant = "") {
  LoadTrunk load;
  load.path = path;
  load.pin = pin;
  load.owner.tenant = tenant;
  return await_trunk([&](TrunkDone done) { pool.load(load, std::move(done)); });
}

}  // namespace thaw::forkpool

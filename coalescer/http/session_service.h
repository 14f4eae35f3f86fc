#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "coalescer/core/backend.h"
#include "coalescer/core/session_pins.h"
#include "coalescer/core/session_store.h"
#include "coalescer/http/call_record.h"
#include "coalescer/http/metrics.h"
#include "coalescer/http/session_files.h"
#include "coalescer/openai/api_error.h"
#include "coalescer/openai/session_json.h"

namespace thaw::coalescer {

class SessionService;

/// A turn that runs. Unless it was finished, nothing of it stays when this goes.
class RunningTurn {
 public:
  RunningTurn(SessionService* service, std::string session)
      : service_(service), session_(std::move(session)) {}
  ~RunningTurn();
  RunningTurn(const RunningTurn&) = delete;
  RunningTurn& operator=(const RunningTurn&) = delete;

  /// The turn's reply is whole: the session has it from now on.
  void finish(const CallRecord& record, const TextCodec& codec);

 private:
  SessionService* service_;  // null once it has ended
  std::string session_;
};

/// The sessions of the server, the turns that run and the KV that is kept for them. I/O thread
/// only; the states it gives out may be read on any.
class SessionService {
 public:
  /// `kept_bytes`: of KV, at most; 0 keeps none. The pointers must outlive the service.
  SessionService(SessionLimits limits, std::uint64_t kept_bytes, Backend* backend,
                 const Clock* clock);

  /// Runs a task on the I/O thread, from any thread; drops it once the server is gone.
  using Post = std::function<void(std::function<void()>)>;
  void set_post(Post post) { post_ = std::move(post); }

  SessionStore& store() { return store_; }
  SessionsView view() const { return {store_, pins_}; }
  /// The directory that sessions are written to; null: none. Set before the server runs.
  void set_files(std::shared_ptr<const SessionFiles> files) { files_ = std::move(files); }
  const std::shared_ptr<const SessionFiles>& files() const { return files_; }
  /// Runs what waits on the disk, off the I/O thread.
  void set_background(Post background) { background_ = std::move(background); }
  const Post& post() const { return post_; }

  static TrunkOwner owner_of(const StoredSession& session) {
    return {session.tenant, session.cache_salt, session.served, ""};
  }
  static PinId pin_of(const std::string& session);

  /// The session's KV lies in a file and not in memory.
  void set_spilled(const std::string& session) { spilled_.insert(session); }
  /// True once after set_spilled(): the caller loads it now.
  bool take_spilled(const std::string& session) { return spilled_.erase(session) > 0; }
  /// The backend has loaded its KV under the session's pin.
  void on_loaded(const std::string& session, const KeptTrunk& kept);

  /// Asks the backend to keep the session's KV, as much as is there, in place of what it kept.
  void keep(const StoredSession& session);
  CallRecords& calls() { return calls_; }
  void count_created(std::size_t sessions) { counts_.created += sessions; }
  void count_forked(std::size_t sessions) { counts_.forked += sessions; }
  void count_conflict() { ++counts_.conflicts; }
  SessionCounts counts() const;

  /// The tenant's session, or the 404.
  ApiResult<StoredSession*> find(const std::string& tenant, const std::string& id,
                                 const std::string& param);
  /// The 409 where a turn of it runs already.
  ApiResult<std::shared_ptr<RunningTurn>> begin_turn(StoredSession& session);
  /// Lets forks see what the running turn has generated so far.
  void set_running(const std::string& session, std::shared_ptr<const CallRecord> record);
  /// Null where no turn runs.
  std::shared_ptr<const CallRecord> running(const std::string& session) const;

 private:
  friend class RunningTurn;
  void end_turn(const std::string& session, SharedState state);
  void ask_to_keep(const std::string& session, const TrunkOwner& owner, SharedState state,
                   std::uint64_t asked);
  void on_kept(const std::string& session, const TrunkOwner& owner, const SharedState& state,
               std::uint64_t asked, const Result<KeptTrunk>& kept);
  void forget(const StoredSession& session);
  void book(const std::string& session, const KeptTrunk& kept);

  SessionStore store_;
  SessionPins pins_;
  Backend* backend_;
  Post post_;
  Post background_;
  std::shared_ptr<const SessionFiles> files_;
  std::set<std::string> spilled_;
  std::map<std::string, std::uint64_t> asked_;  // the last keep() of each session
  std::uint64_t num_asked_ = 0;
  CallRecords calls_;
  SessionCounts counts_;
  std::map<std::string, std::shared_ptr<const CallRecord>> running_;
};

/// As to_api_error, with a 409 for what a running turn stands against.
ApiError session_error(const Error& error, std::string param = "");

}  // namespace thaw::coalescer

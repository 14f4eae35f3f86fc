#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace thaw::coalescer {

/// What is kept of one session's KV.
struct SessionPin {
  std::uint32_t tokens = 0;  ///< 0: nothing
  std::uint64_t bytes = 0;
  bool given_up = false;  ///< it was kept, and others needed the room
  std::string trunk;  ///< names the KV: sessions with the same one share its bytes
  std::uint64_t last_used = 0;
};

/// Which sessions' KV is kept, within a budget of bytes: the one that was not used for longest goes
/// first. KV that several sessions share counts once. Decides only; the caller releases. One
/// thread.
class SessionPins {
 public:
  explicit SessionPins(std::uint64_t max_bytes) : max_bytes_(max_bytes) {}

  /// The session's KV is kept now, in place of what it had. Returns the sessions to release, which
  /// may be this one where it alone is too large.
  std::vector<std::string> kept(const std::string& session, std::uint32_t tokens,
                                std::uint64_t bytes, std::string trunk);
  /// There was no room. Gives up the session that was not used for longest and returns it; nullopt
  /// where only `session` itself, or nothing, is left.
  std::optional<std::string> make_room(const std::string& session);
  /// The session is in use.
  void touch(const std::string& session);
  /// Nothing of it is kept any more, without it having been given up.
  void forget(const std::string& session);
  /// Forgets the session altogether.
  void erase(const std::string& session);

  /// Null where the session is not known.
  const SessionPin* find(const std::string& session) const;
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t max_bytes() const { return max_bytes_; }
  std::size_t num_pinned() const;
  std::uint64_t num_given_up() const { return num_given_up_; }

 private:
  void remove(const std::string& session, bool given_up);
  std::optional<std::string> oldest(const std::string& except) const;

  std::uint64_t max_bytes_;
  std::map<std::string, SessionPin> pins_;
  struct Held {
    std::uint32_t holders = 0;
    std::uint64_t bytes = 0;  // as the first of them said
  };
  std::map<std::string, Held> trunks_;
  std::uint64_t bytes_ = 0;  // of all of them
  std::uint64_t uses_ = 0;  // a clock of uses
  std::uint64_t num_given_up_ = 0;
};

}  // namespace thaw::coalescer

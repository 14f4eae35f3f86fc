// What the pool sees of a group whose follower has ended.

#include "forkpool/worker/rank_watch.h"

#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string_view>

#include <gtest/gtest.h>

namespace thaw::forkpool::worker {
namespace {

/// Ends as the first rank does: a follower ends, having said `last_words`.
[[noreturn]] void end_with_follower(std::string_view last_words) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) std::_Exit(9);
  const RankWatch watch({ends[0]}, [] {});
  if (::write(ends[1], last_words.data(), last_words.size()) < 0) std::_Exit(9);
  ::close(ends[1]);
  ::sleep(30);
  std::_Exit(8);
}

TEST(RankWatch, AKilledFollowerIsSeenAsKilled) {
  EXPECT_EXIT(end_with_follower(""), testing::KilledBySignal(SIGKILL), "");
}

TEST(RankWatch, AFollowerThatSaysWhyIsNot) {
  EXPECT_EXIT(end_with_follower("because"), testing::ExitedWithCode(1), "");
}

TEST(RankWatch, GroupsThatServeOnAreLeftAlone) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  bool ended = false;
  {
    const RankWatch watch({ends[0]}, [&] { ended = true; });
    ::usleep(20000);
  }
  EXPECT_FALSE(ended);
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace thaw::forkpool::worker

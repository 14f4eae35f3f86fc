#include "engine/cuda/vmm.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/cuda/check.h"
#include "tests/cuda/gpu_test.h"

extern char** environ;  // NOLINT: POSIX's own name

namespace thaw::cuda {
namespace {

constexpr std::size_t kBytes = std::size_t{64} << 20;

// The descriptor of an allocation crosses a socket with SCM_RIGHTS, as the worker sends it to the
// pool.
void send_fd(int socket, int fd, std::size_t bytes) {
  iovec data{&bytes, sizeof bytes};
  char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  if (::sendmsg(socket, &message, 0) < 0) ::_exit(3);
}

UniqueFd receive_fd(int socket, std::size_t* bytes) {
  iovec data{bytes, sizeof *bytes};
  char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (::recvmsg(socket, &message, 0) <= 0) return UniqueFd();
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return UniqueFd(fd);
}

// The child of AllocationOutlivesAKilledProcess: allocates, fills, sends the descriptor, and writes
// on until it is killed.
[[noreturn]] void run_maker(int socket) {
  const VmmAllocation allocation = VmmAllocation::create(0, kBytes).value();
  check(cudaMemset(allocation.data(), 0x5a, kBytes));
  check(cudaDeviceSynchronize());
  const UniqueFd fd = allocation.export_fd().value();
  send_fd(socket, fd.get(), allocation.size());
  for (;;) {
    check(cudaMemset(allocation.data(), 0x5a, kBytes));
    check(cudaDeviceSynchronize());
  }
}

// Runs before main(): this binary is its own child, because a CUDA context does not survive fork().
const bool kChild = [] {
  const char* socket = std::getenv("THAW_VMM_TEST_SOCKET");
  if (socket != nullptr) run_maker(std::atoi(socket));
  return false;
}();

std::vector<unsigned char> bytes_of(const VmmAllocation& allocation, std::size_t count) {
  std::vector<unsigned char> bytes(count);
  check(cudaMemcpy(bytes.data(), allocation.data(), count, cudaMemcpyDeviceToHost));
  return bytes;
}

using VmmTest = GpuTest;

TEST_F(VmmTest, IsOrdinaryDeviceMemoryRoundedUp) {
  const std::size_t granularity = VmmAllocation::granularity(0).value();
  VmmAllocation allocation = VmmAllocation::create(0, granularity + 1).value();
  EXPECT_EQ(allocation.size(), 2 * granularity);
  check(cudaMemset(allocation.data(), 9, allocation.size()));
  EXPECT_THAT(bytes_of(allocation, 100), testing::Each(9));
  const VmmAllocation moved = std::move(allocation);
  EXPECT_EQ(allocation.size(), 0u);  // NOLINT(bugprone-use-after-move): that is the test
  EXPECT_EQ(bytes_of(moved, 1)[0], 9);
}

TEST_F(VmmTest, AnImportSeesTheSameBytesAndKeepsThem) {
  auto maker = std::make_unique<VmmAllocation>(VmmAllocation::create(0, kBytes).value());
  const std::size_t size = maker->size();
  const UniqueFd fd = maker->export_fd().value();
  const VmmAllocation other = VmmAllocation::import(0, fd.get(), size).value();
  EXPECT_NE(other.data(), maker->data());
  check(cudaMemset(maker->data(), 42, size));
  EXPECT_THAT(bytes_of(other, 64), testing::Each(42));
  check(cudaDeviceSynchronize());
  maker.reset();
  EXPECT_THAT(bytes_of(other, 64), testing::Each(42));
}

TEST_F(VmmTest, RefusesWhatCannotBe) {
  EXPECT_EQ(VmmAllocation::create(0, 0).error().code, Errc::kInvalidArgument);
  const auto huge = VmmAllocation::create(0, std::size_t{1} << 50);
  ASSERT_FALSE(huge);
  EXPECT_EQ(huge.error().code, Errc::kResourceExhausted);
  EXPECT_THAT(huge.error().message, testing::HasSubstr("are free"));
  EXPECT_EQ(VmmAllocation::import(0, -1, kBytes).error().code, Errc::kInvalidArgument);
  const UniqueFd not_an_allocation(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(VmmAllocation::import(0, not_an_allocation.get(), kBytes));
}

TEST_F(VmmTest, AllocationOutlivesAKilledProcess) {
  ASSERT_FALSE(kChild);
  int sockets[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  const UniqueFd ours(sockets[0]);
  UniqueFd theirs(sockets[1]);
  std::string variable = "THAW_VMM_TEST_SOCKET=" + std::to_string(theirs.get());
  std::vector<char*> environment = {variable.data()};
  for (char** entry = environ; *entry != nullptr; ++entry)
    environment.push_back(*entry);
  environment.push_back(nullptr);
  char name[] = "thaw_cuda_test";
  char* arguments[] = {name, nullptr};
  pid_t child = 0;
  ASSERT_EQ(
      ::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, arguments, environment.data()), 0);
  theirs.reset();  // so that a child which dies early ends the wait
  std::size_t bytes = 0;
  const UniqueFd fd = receive_fd(ours.get(), &bytes);
  ASSERT_TRUE(fd) << "the child sent nothing";
  ::kill(child, SIGKILL);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  const VmmAllocation adopted = VmmAllocation::import(0, fd.get(), bytes).value();
  EXPECT_THAT(bytes_of(adopted, kBytes), testing::Each(0x5a));
}

}  // namespace
}  // namespace thaw::cuda

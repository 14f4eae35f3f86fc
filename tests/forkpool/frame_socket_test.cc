// Frames and the descriptors that travel with them, over a real socket.

#include "forkpool/frame_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/memory_map.h"

namespace thaw::forkpool {
namespace {

using ::testing::HasSubstr;

SharedFd memory_file(std::size_t size) {
  return std::make_shared<const UniqueFd>(create_memfd("test", size).value());
}

std::pair<dev_t, ino_t> identity(int fd) {
  struct stat info {};
  EXPECT_EQ(::fstat(fd, &info), 0);
  return {info.st_dev, info.st_ino};
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++count;
  return count;
}

KeepFrame keep_frame(bool weights, bool kv) {
  KeepFrame frame;
  frame.memory.device = "GPU-1";
  frame.memory.kv_layout = "layout";
  frame.memory.block_bytes = 4096;
  frame.memory.image.bytes.fill(3);
  frame.memory.weights_digest.bytes.fill(4);
  if (weights) {
    frame.memory.weights = memory_file(100);
    frame.memory.weights_bytes = 1 << 21;
  }
  if (kv) {
    frame.memory.kv = memory_file(200);
    frame.memory.kv_bytes = 1 << 22;
  }
  return frame;
}

class FrameSocketTest : public testing::Test {
 protected:
  FrameSocketTest() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    near_ = UniqueFd(ends[0]);
    far_ = UniqueFd(ends[1]);
  }

  // Frames until the decoder has no more; reads at most `at_once` bytes at a time.
  Result<std::vector<Frame>> receive(std::size_t at_once = 65536) {
    std::vector<char> buffer(at_once);
    std::vector<Frame> frames;
    while (true) {
      auto next = decoder_.next();
      if (!next) return next.error();
      if (next->found) {
        frames.push_back(std::move(next->frame));
        continue;
      }
      const ssize_t count = receive_some(far_.get(), buffer, decoder_);
      if (count < 0 && errno == EPROTO) return make_error(Errc::kProtocol, "too many");
      if (count <= 0) return frames;
    }
  }
  void send(const Frame& frame) {
    FrameSender sender;
    sender.push(frame);
    ASSERT_EQ(sender.send_some(near_.get()), 0);
    ASSERT_EQ(sender.unsent_bytes(), 0U);
  }
  // Bytes with any descriptors, as no FrameSender would send them.
  void send_raw(std::string bytes, const std::vector<int>& descriptors) {
    iovec part{bytes.data(), bytes.size()};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * 8)> control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!descriptors.empty()) {
      const std::size_t size = descriptors.size() * sizeof(int);
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(size);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(size);
      std::memcpy(CMSG_DATA(header), descriptors.data(), size);
    }
    ASSERT_EQ(::sendmsg(near_.get(), &message, 0), static_cast<ssize_t>(bytes.size()));
  }
  std::string error_of_receiving() {
    const auto frames = receive();
    if (frames) return "no error";
    EXPECT_EQ(frames.error().code, Errc::kProtocol);
    return frames.error().message;
  }

  UniqueFd near_;
  UniqueFd far_;
  FrameDecoder decoder_;
};

TEST_F(FrameSocketTest, DescriptorsArriveWithTheirFrame) {
  const KeepFrame both = keep_frame(true, true);
  send(CancelFrame{1});
  send(both);
  send(CancelFrame{2});
  const auto frames = receive().value();
  ASSERT_EQ(frames.size(), 3U);
  const DeviceMemory& memory = std::get<KeepFrame>(frames[1]).memory;
  EXPECT_EQ(identity(memory.weights->get()), identity(both.memory.weights->get()));
  EXPECT_EQ(identity(memory.kv->get()), identity(both.memory.kv->get()));
  EXPECT_NE(memory.kv->get(), both.memory.kv->get());
  EXPECT_NE(::fcntl(memory.kv->get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_EQ(memory.device, "GPU-1");
  EXPECT_EQ(memory.image, both.memory.image);
  EXPECT_EQ(memory.weights_digest, both.memory.weights_digest);
  EXPECT_EQ(memory.weights_bytes, both.memory.weights_bytes);
  EXPECT_EQ(memory.kv_bytes, both.memory.kv_bytes);
  EXPECT_EQ(memory.kv_layout, "layout");
  EXPECT_EQ(memory.block_bytes, 4096U);
}

TEST_F(FrameSocketTest, OnePartAloneIsTheRightOne) {
  const KeepFrame kv = keep_frame(false, true);
  send(InheritFrame{kv.memory});
  send(keep_frame(true, false));
  const auto frames = receive().value();
  const DeviceMemory& first = std::get<InheritFrame>(frames[0]).memory;
  EXPECT_EQ(first.weights, nullptr);
  EXPECT_EQ(identity(first.kv->get()), identity(kv.memory.kv->get()));
  EXPECT_EQ(std::get<KeepFrame>(frames[1]).memory.kv, nullptr);
}

// Whatever the socket takes at once, however little is read at once, and with frames all around.
TEST_F(FrameSocketTest, ManyFramesThroughASmallSocket) {
  const std::size_t before = open_descriptors();
  {
    const int small = 4096;
    ASSERT_EQ(::setsockopt(near_.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    FrameSender sender;
    std::vector<std::pair<dev_t, ino_t>> sent;
    for (RequestId i = 0; i < 60; ++i) {
      const KeepFrame frame = keep_frame(i % 3 != 0, i % 3 != 1);
      if (frame.memory.weights) sent.push_back(identity(frame.memory.weights->get()));
      if (frame.memory.kv) sent.push_back(identity(frame.memory.kv->get()));
      sender.push(frame);
      for (RequestId j = i % 4; j > 0; --j)
        sender.push(CancelFrame{i});
    }
    std::vector<std::pair<dev_t, ino_t>> received;
    std::size_t frames_seen = 0;
    while (sender.unsent_bytes() > 0 || frames_seen < 60 + 90) {
      ASSERT_EQ(sender.send_some(near_.get()), 0);
      const auto frames = receive(97).value();
      ASSERT_TRUE(sender.unsent_bytes() > 0 || !frames.empty()) << "frames were lost";
      for (const Frame& frame : frames) {
        ++frames_seen;
        for (const int fd : frame_descriptors(frame))
          received.push_back(identity(fd));
      }
    }
    EXPECT_EQ(received, sent);
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(FrameSocketTest, MissingDescriptorsAreAnError) {
  send_raw(encode_frame(keep_frame(true, true)), {});
  EXPECT_THAT(error_of_receiving(), HasSubstr("announces 2 descriptors; 0 came"));
}

TEST_F(FrameSocketTest, AFrameThatDescribesMoreThanItAnnounces) {
  std::string bytes = encode_frame(keep_frame(true, true));
  bytes[2] = 1;
  send_raw(bytes, {near_.get()});
  EXPECT_THAT(error_of_receiving(), HasSubstr("1 descriptors; it describes 2"));
}

TEST_F(FrameSocketTest, DescriptorsWithAFrameThatHasNone) {
  const std::size_t before = open_descriptors();
  send_raw(encode_frame(CancelFrame{7}), {near_.get()});
  const auto error = error_of_receiving();
  EXPECT_THAT(error, HasSubstr("belong to no frame"));
  std::string bytes = encode_frame(CancelFrame{7});
  bytes[2] = 1;
  decoder_ = FrameDecoder();
  send_raw(bytes, {near_.get()});
  EXPECT_THAT(error_of_receiving(), HasSubstr("1 descriptors; it describes 0"));
  decoder_ = FrameDecoder();
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(FrameSocketTest, MoreThanAnyFrameHas) {
  const std::size_t before = open_descriptors();
  send_raw(encode_frame(keep_frame(true, true)),
           {near_.get(), far_.get(), near_.get(), far_.get(), near_.get()});
  EXPECT_THAT(error_of_receiving(), HasSubstr("too many"));
  decoder_ = FrameDecoder();
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(FrameSocketTest, TheEndOfTheOtherSideIsTold) {
  far_.reset();
  FrameSender sender;
  sender.push(keep_frame(true, false));
  EXPECT_EQ(sender.send_some(near_.get()), EPIPE);
}

}  // namespace
}  // namespace thaw::forkpool

#include "forkpool/protocol.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "forkpool/wire.h"
#include "tests/forkpool/random_frames.h"

namespace thaw::forkpool {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr std::uint64_t kSeed = 20260311;

Result<FrameDecoder::Next> decode(const std::string& bytes) {
  FrameDecoder decoder;
  decoder.feed(bytes);
  return decoder.next();
}

std::string frame_bytes(std::uint8_t type, const std::string& payload,
                        const std::string& tail = "") {
  std::string bytes{static_cast<char>(kProtocolVersion), static_cast<char>(type), 0, 0};
  for (const std::size_t size : {payload.size(), tail.size()}) {
    for (int i = 0; i < 4; ++i)
      bytes += static_cast<char>(size >> (8 * i));
  }
  return bytes + payload + tail;
}

std::string frame_bytes(std::uint8_t type, const Json& payload, const std::string& tail = "") {
  std::string bytes;
  Json::to_msgpack(payload, bytes);
  return frame_bytes(type, bytes, tail);
}

/// The payload of a valid frame of this kind, to be spoilt.
Json payload_of(const Frame& frame) {
  const std::string bytes = encode_frame(frame);
  const std::string_view body = std::string_view(bytes).substr(kFrameHeaderBytes);
  std::uint32_t map_bytes = 0;
  std::memcpy(&map_bytes, bytes.data() + 4, sizeof map_bytes);
  return wire::parse(body.substr(0, map_bytes), body.substr(map_bytes));
}

std::vector<UniqueFd> copies_of(const std::vector<int>& descriptors) {
  std::vector<UniqueFd> copies;
  for (const int descriptor : descriptors)
    copies.emplace_back(::dup(descriptor));
  return copies;
}

TEST(Protocol, EveryFrameComesBackAsItWas) {
  for (std::size_t kind = 0; kind < std::variant_size_v<Frame>; ++kind) {
    for (std::uint64_t round = 0; round < 200; ++round) {
      SCOPED_TRACE("kind " + std::to_string(kind) + " seed " + std::to_string(kSeed + round));
      const Frame frame = RandomFrames(kSeed + round).frame(kind);
      const std::string bytes = encode_frame(frame);
      FrameDecoder decoder;
      decoder.feed(bytes, copies_of(frame_descriptors(frame)));
      auto next = decoder.next();
      ASSERT_TRUE(next) << next.error().to_string();
      ASSERT_TRUE(next->found);
      EXPECT_EQ(next->frame.index(), kind);
      EXPECT_EQ(encode_frame(next->frame), bytes);
    }
  }
}

// Equal bytes do not show a field that neither side handles; these count the fields instead.
TEST(Protocol, NoFieldOfARequestIsLeftOut) {
  GenerateRequest request = RandomFrames(kSeed).request();
  request.deadline = std::chrono::milliseconds(1234);
  request.worker = 3;
  request.num_choices = 3;
  request.resumed = {{2, {5, 6, 7}}};
  request.sampling.logit_bias = {{9, -1.5F}};
  const auto next = decode(encode_frame(SubmitFrame{request}));
  ASSERT_TRUE(next) << next.error().to_string();
  const GenerateRequest& back = std::get<SubmitFrame>(next->frame).request;
  EXPECT_EQ(back.id, request.id);
  EXPECT_EQ(back.tenant, request.tenant);
  EXPECT_EQ(back.cache_salt, request.cache_salt);
  EXPECT_EQ(back.model, request.model);
  EXPECT_EQ(back.adapter, request.adapter);
  EXPECT_EQ(back.session, request.session);
  EXPECT_EQ(back.parent, request.parent);
  EXPECT_EQ(back.cut_position, request.cut_position);
  EXPECT_EQ(back.priority, request.priority);
  EXPECT_EQ(back.deadline, request.deadline);
  EXPECT_EQ(back.trace_id, request.trace_id);
  EXPECT_EQ(back.pin, request.pin);
  EXPECT_EQ(back.ttl, request.ttl);
  EXPECT_EQ(back.grammar, request.grammar);
  EXPECT_EQ(back.worker, request.worker);
  EXPECT_EQ(back.prompt, request.prompt);
  EXPECT_EQ(back.num_choices, request.num_choices);
  ASSERT_EQ(back.resumed.size(), 1U);
  EXPECT_EQ(back.resumed[0].choice_index, 2U);
  EXPECT_EQ(back.resumed[0].generated, request.resumed[0].generated);
  const SamplingParams& was = request.sampling;
  const SamplingParams& is = back.sampling;
  EXPECT_EQ(is.temperature, was.temperature);
  EXPECT_EQ(is.top_k, was.top_k);
  EXPECT_EQ(is.top_p, was.top_p);
  EXPECT_EQ(is.min_p, was.min_p);
  EXPECT_EQ(is.repetition_penalty, was.repetition_penalty);
  EXPECT_EQ(is.presence_penalty, was.presence_penalty);
  EXPECT_EQ(is.frequency_penalty, was.frequency_penalty);
  EXPECT_EQ(is.logit_bias, was.logit_bias);
  EXPECT_EQ(is.max_tokens, was.max_tokens);
  EXPECT_EQ(is.min_tokens, was.min_tokens);
  EXPECT_EQ(is.stop_token_ids, was.stop_token_ids);
  EXPECT_EQ(is.ignore_eos, was.ignore_eos);
  EXPECT_EQ(is.seed, was.seed);
  EXPECT_EQ(is.top_logprobs, was.top_logprobs);
}

TEST(Protocol, FloatsKeepTheirBits) {
  const float values[] = {0.1F, -0.0F, std::numeric_limits<float>::denorm_min(),
                          std::numeric_limits<float>::max(),
                          -std::numeric_limits<float>::infinity()};
  for (const float value : values) {
    const auto next = decode(encode_frame(EventsFrame{{TokenEvent{1, 0, 0, 5, value, {}}}}));
    ASSERT_TRUE(next) << next.error().to_string();
    const auto& event = std::get<TokenEvent>(std::get<EventsFrame>(next->frame).events[0]);
    EXPECT_EQ(std::signbit(event.logprob), std::signbit(value));
    EXPECT_EQ(event.logprob, value);
  }
}

TEST(Protocol, BytesOfACancelFrame) {
  const std::string bytes = encode_frame(CancelFrame{7});
  const std::string expected(
      "\x07\x04\x00\x00\x12\x00\x00\x00\x00\x00\x00\x00\x82\xa6"
      "choice\xc0\xa7request\x07",
      30);
  EXPECT_EQ(bytes, expected);
}

TEST(Protocol, FramesAreCutOutOfAnyPieces) {
  RandomFrames random(kSeed);
  std::string stream;
  std::vector<std::string> frames;
  for (std::size_t kind = 0; kind < std::variant_size_v<Frame>; ++kind) {
    const Frame frame = random.frame(kind);
    if (!frame_descriptors(frame).empty()) continue;  // frame_socket_test has those
    frames.push_back(encode_frame(frame));
    stream += frames.back();
  }
  FrameDecoder decoder;
  std::vector<std::string> seen;
  for (std::size_t at = 0; at < stream.size();) {
    const std::size_t piece = std::min<std::size_t>(1 + random.number(40), stream.size() - at);
    decoder.feed(std::span(stream.data() + at, piece));
    at += piece;
    for (;;) {
      auto next = decoder.next();
      ASSERT_TRUE(next) << next.error().to_string();
      if (!next->found) break;
      seen.push_back(encode_frame(next->frame));
    }
  }
  EXPECT_EQ(seen, frames);
}

TEST(Protocol, BadHeadersAreNamed) {
  const std::string good = encode_frame(CancelFrame{7});
  const auto message = [](std::string bytes) {
    const auto next = decode(bytes);
    EXPECT_FALSE(next);
    EXPECT_EQ(next.error().code, Errc::kProtocol);
    return next.error().message;
  };
  std::string bytes = good;
  bytes[0] = 9;
  EXPECT_THAT(message(bytes), HasSubstr("protocol version 9"));
  bytes = good;
  bytes[1] = 99;
  EXPECT_THAT(message(bytes), HasSubstr("unknown frame type 99"));
  bytes = good;
  bytes[2] = 1;
  EXPECT_THAT(message(bytes), HasSubstr("announces 1 descriptors; 0 came"));
  bytes[2] = 3;
  EXPECT_THAT(message(bytes), HasSubstr("not a number of descriptors"));
  bytes = good;
  bytes[3] = 1;
  EXPECT_THAT(message(bytes), HasSubstr("not a number of descriptors"));
  bytes = good;
  bytes[7] = 0x40;  // 1 GiB
  EXPECT_THAT(message(bytes), HasSubstr("at most 67108864"));
}

TEST(Protocol, AnErrorIsFinal) {
  FrameDecoder decoder;
  decoder.feed(std::string(kFrameHeaderBytes, '\xff'));
  EXPECT_FALSE(decoder.next());
  decoder.feed(encode_frame(CancelFrame{7}));
  EXPECT_FALSE(decoder.next());
}

// Every map of every frame: take each field away, and give it each wrong type.
void spoil(const Json& whole, Json::json_pointer path, const Json& map, std::uint8_t type) {
  static const Json kWrong[] = {Json(nullptr), Json(true),    Json(-5),       Json(1.5),
                                Json("text"),  Json::array(), Json::object(), Json::binary({1, 2})};
  for (const auto& [name, value] : map.items()) {
    Json without = whole;
    without[path].erase(name);
    auto next = decode(frame_bytes(type, without));
    ASSERT_FALSE(next) << path / name << " was not missed";
    EXPECT_EQ(next.error().code, Errc::kProtocol);
    EXPECT_THAT(next.error().message, HasSubstr(name + " is missing"));
    for (const Json& wrong : kWrong) {
      if (wrong.type() == value.type()) continue;
      const bool nullable = name == "deadline_ms" || name == "worker" || name == "stop_token";
      if (nullable && wrong.is_null()) continue;
      if (value.is_number() && wrong.is_number()) continue;  // ranges: below
      if (value.is_null()) continue;
      Json changed = whole;
      changed[path][name] = wrong;
      next = decode(frame_bytes(type, changed));
      ASSERT_FALSE(next) << path / name << " as " << wrong.type_name() << " was taken";
      EXPECT_EQ(next.error().code, Errc::kProtocol);
    }
    if (value.is_object()) spoil(whole, path / name, value, type);
    if (value.is_array() && !value.empty() && value[0].is_object()) {
      spoil(whole, path / name / 0, value[0], type);
    }
  }
}

TEST(Protocol, MissingFieldsAndWrongTypesAreNamed) {
  for (std::size_t kind = 0; kind < std::variant_size_v<Frame>; ++kind) {
    for (std::uint64_t seed = kSeed; seed < kSeed + 4; ++seed) {
      const Frame frame = RandomFrames(seed).frame(kind);
      SCOPED_TRACE(std::string(frame_name(frame)) + " seed " + std::to_string(seed));
      const Json payload = payload_of(frame);
      spoil(payload, Json::json_pointer(), payload, frame_type(frame));
    }
  }
}

TEST(Protocol, ValuesOutOfRangeAreNamed) {
  GenerateRequest request;
  request.prompt = {1, 2};
  const Json good = payload_of(SubmitFrame{request});
  const std::uint8_t type = frame_type(SubmitFrame{});
  const auto message = [&](const char* path, const Json& value) {
    Json changed = good;
    changed[Json::json_pointer(path)] = value;
    const auto next = decode(frame_bytes(type, changed));
    EXPECT_FALSE(next) << path;
    return next ? std::string() : next.error().message;
  };
  EXPECT_THAT(message("/request/id", -1), HasSubstr("request.id is -1"));
  EXPECT_THAT(message("/request/cut_position", 1ULL << 32), HasSubstr("request.cut_position"));
  EXPECT_THAT(message("/request/priority", 1LL << 31), HasSubstr("request.priority"));
  EXPECT_THAT(message("/request/num_choices", 0), HasSubstr("num_choices is 0"));
  EXPECT_THAT(message("/request/num_choices", kMaxChoices + 1), HasSubstr("num_choices"));
  EXPECT_THAT(message("/request/prompt", Json::binary({})), HasSubstr("prompt has no token"));
  EXPECT_THAT(message("/request/prompt", Json::binary({1, 2, 3})), HasSubstr("multiple of 4"));
  EXPECT_THAT(message("/request/prompt", Json::binary({0, 0, 0, 0x80})), HasSubstr("prompt"));
  EXPECT_THAT(message("/request/tenant", std::string(kMaxNameBytes + 1, 'x')), HasSubstr("tenant"));
  EXPECT_THAT(message("/request/sampling/temperature", 1e300), HasSubstr("temperature"));
  EXPECT_THAT(message("/request/sampling/logit_bias", Json::array({Json::array({-1, 0.5})})),
              HasSubstr("logit_bias"));
  const Json choice = {{"choice", 0}, {"generated", Json::binary({})}};
  EXPECT_THAT(message("/request/resumed", Json::array({choice, choice})), HasSubstr("twice"));
  // An integer where a float belongs is what a Python peer sends for 1.0.
  Json integral = good;
  integral["request"]["sampling"]["temperature"] = 1;
  EXPECT_TRUE(decode(frame_bytes(type, integral)));
}

TEST(Protocol, ARequestThatCouldNotTravelIsRefusedBefore) {
  GenerateRequest request;
  EXPECT_THAT(check_request(request).error().message, HasSubstr("prompt has no token"));
  request.prompt = {1};
  EXPECT_TRUE(check_request(request));
  request.cache_salt = std::string(kMaxNameBytes + 1, 's');
  EXPECT_THAT(check_request(request).error().message, HasSubstr("cache_salt has 1025 bytes"));
  request.cache_salt.clear();
  request.prompt.assign(kMaxTokens + 1, 1);
  EXPECT_THAT(check_request(request).error().message, HasSubstr("tokens; at most"));
}

TEST(Protocol, UnknownFieldsAreIgnored) {
  Json payload = payload_of(CancelFrame{7});
  payload["later"] = Json::array({1, "two"});
  const auto next = decode(frame_bytes(frame_type(CancelFrame{}), payload));
  ASSERT_TRUE(next);
  EXPECT_EQ(std::get<CancelFrame>(next->frame).request, 7U);
}

TEST(Protocol, LongByteStringsLieBehindThePayload) {
  LendFrame lend{7, {}, {}};
  for (TokenId token = 0; token < 64; ++token)  // of 256 bytes
    lend.token_ids.push_back(token);
  const std::string bytes = encode_frame(lend);
  const std::string tail = bytes.substr(bytes.size() - 256);
  EXPECT_EQ(bytes.find(std::string("\xa9token_ids\xd6\x01\x00\x01\x00\x00", 16)),
            bytes.size() - 256 - 16);
  EXPECT_EQ(tail.substr(0, 8), std::string("\x00\x00\x00\x00\x01\x00\x00\x00", 8));
  const auto next = decode(bytes);
  ASSERT_TRUE(next) << next.error().to_string();
  EXPECT_EQ(std::get<LendFrame>(next->frame).token_ids, lend.token_ids);

  // Whoever sends them inside of it, or lifts shorter ones, is understood as well.
  Json payload = payload_of(lend);
  EXPECT_TRUE(decode(frame_bytes(10, payload)));
  const std::string root =
      "\xaa"
      "cache_root\xd6\x01\x10" +
      std::string(3, '\0');
  const std::string ids = "\xa9token_ids\xd6\x01" + std::string("\x40\x00\x00\x00", 4);
  const std::string map = "\x83" + root + "\xa2id\x07" + ids;
  const std::string strings = std::string(16, 'r') + tail.substr(0, 64);
  const auto lifted = decode(frame_bytes(10, map, strings));
  ASSERT_TRUE(lifted) << lifted.error().to_string();
  EXPECT_EQ(std::get<LendFrame>(lifted->frame).cache_root.bytes[15], 'r');
  EXPECT_EQ(std::get<LendFrame>(lifted->frame).token_ids.size(), 16U);

  // Also one in a field that nobody knows.
  payload["later"] = Json::binary({1, 2}, wire::kLiftedType);
  EXPECT_FALSE(decode(frame_bytes(10, payload)));
  payload["later"] = Json::binary({4, 0, 0, 0}, wire::kLiftedType);
  EXPECT_TRUE(decode(frame_bytes(10, payload, "four")));

  // Each byte of the tail is one string's.
  const auto message = [&](const std::string& behind) {
    const auto wrong = decode(frame_bytes(10, map, behind));
    EXPECT_FALSE(wrong);
    return wrong ? "" : wrong.error().message;
  };
  EXPECT_THAT(message(strings + "x"), HasSubstr("1 bytes behind the payload"));
  EXPECT_THAT(message(strings.substr(1)), HasSubstr("of 64 bytes, and 63 more"));
  EXPECT_THAT(message(""), HasSubstr("of 16 bytes, and 0 more"));
  std::string huge = frame_bytes(10, map, strings);
  huge[11] = 0x40;  // 1 GiB
  EXPECT_THAT(decode(huge).error().message, HasSubstr("at most 67108864"));
}

TEST(Protocol, DeepOrHugePayloadsCostNothing) {
  // A small payload that nests a million arrays, and one that claims four thousand million items.
  EXPECT_THAT(decode(frame_bytes(17, std::string(1 << 20, '\x91'))).error().message,
              HasSubstr("nested deeper"));
  EXPECT_FALSE(decode(frame_bytes(17, std::string("\xdd\xff\xff\xff\xff", 5))));
  EXPECT_FALSE(decode(frame_bytes(17, std::string("\xc6\xff\xff\xff\xff", 5))));
  EXPECT_FALSE(decode(frame_bytes(17, std::string("\x81\xa1k\x01\x02", 5))));  // trailing byte
  EXPECT_THAT(decode(frame_bytes(4, std::string("\x82\xa1k\x01\xa1k\x01", 7))).error().message,
              HasSubstr("twice"));
}

TEST(Protocol, EveryWidthOfEveryMessagePackTypeIsRead) {
  const auto hex = [](const std::string& digits) {
    std::string bytes;
    for (std::size_t i = 0; i < digits.size(); i += 2)
      bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
    return bytes;
  };
  for (const std::string digits : {"00",
                                   "7f",
                                   "80",
                                   "81a16bc0",
                                   "8fa0",
                                   "90",
                                   "9201ff",
                                   "a0",
                                   "a26162",
                                   "c0",
                                   "c2",
                                   "c3",
                                   "c400",
                                   "c403010203",
                                   "c500020102",
                                   "c60000000101",
                                   "ca3fc00000",
                                   "cb3ff8000000000000",
                                   "cbc000000000000000",
                                   "ccff",
                                   "cd0100",
                                   "cdffff",
                                   "ce00010000",
                                   "ceffffffff",
                                   "cf0000000100000000",
                                   "cfffffffffffffffff",
                                   "d080",
                                   "d07f",
                                   "d18000",
                                   "d17fff",
                                   "d280000000",
                                   "d27fffffff",
                                   "d38000000000000000",
                                   "d37fffffffffffffff",
                                   "d90161",
                                   "da000161",
                                   "db0000000161",
                                   "dc000102",
                                   "dd0000000102",
                                   "de0001a16b02",
                                   "de0001d9016b02",
                                   "de0001da00016b02",
                                   "df00000001db000000016b02",
                                   "e0",
                                   "ff",
                                   "c1",
                                   "d40161",
                                   "c7010161",
                                   "8101c0",
                                   "81",
                                   "a261",
                                   "c40301",
                                   "cd01",
                                   "dc0002c0",
                                   "c0c0",
                                   ""}) {
    SCOPED_TRACE(digits);
    const std::string bytes = hex(digits);
    const Json expected = Json::from_msgpack(bytes, true, false);
    const bool is_extension = expected.is_binary() && expected.get_binary().has_subtype();
    if (expected.is_discarded() || is_extension) {
      EXPECT_THROW(wire::parse(bytes), Exception);
      continue;
    }
    const Json read = wire::parse(bytes);
    EXPECT_EQ(read, expected);
    EXPECT_EQ(read.type(), expected.type());
  }
}

TEST(Protocol, MutatedBytesNeverCrash) {
  RandomFrames random(kSeed);
  std::size_t accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = encode_frame(random.frame(random.number(16)));
    for (std::uint64_t i = 1 + random.number(3); i > 0; --i) {
      switch (random.number(3)) {
        case 0:
          bytes[random.number(bytes.size() - 1)] = static_cast<char>(random.number(255));
          break;
        case 1:
          bytes.erase(random.number(bytes.size() - 1), 1 + random.number(3));
          break;
        case 2:
          bytes.insert(random.number(bytes.size() - 1), 1, static_cast<char>(random.number(255)));
          break;
        default:  // inside the payload, its length put right: past the header's checks
          if (bytes.size() <= kFrameHeaderBytes + 1) break;
          bytes[kFrameHeaderBytes + random.number(bytes.size() - kFrameHeaderBytes - 1)] =
              static_cast<char>(random.number(255));
          break;
      }
      if (bytes.size() <= kFrameHeaderBytes) break;
    }
    FrameDecoder decoder;
    decoder.feed(bytes);
    for (;;) {
      const auto next = decoder.next();
      if (!next || !next->found) break;
      ++accepted;
    }
  }
  EXPECT_GT(accepted, 0U);  // some mutations hit only a value: the decoder was really reached
}

}  // namespace
}  // namespace thaw::forkpool

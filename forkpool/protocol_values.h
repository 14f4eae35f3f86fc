#pragma once

#include "forkpool/protocol.h"
#include "forkpool/wire.h"

namespace thaw::forkpool::wire {

/// The values that frames are made of, each as one MessagePack value and back. Readers throw
/// Exception(kProtocol) naming the field.

Json to_json(const GenerateRequest& request);
GenerateRequest read_request(const Json& value);

Json to_json(const GenerateEvent& event);
GenerateEvent read_event(const Json& value);

Json to_json(const kvsnap::Manifest& manifest);
kvsnap::Manifest read_manifest(const Json& value);

/// Without its descriptors, which travel beside the bytes.
Json to_json(const DeviceMemory& memory);
DeviceMemory read_memory(const Json& value);

Json to_json(const EngineStats& stats);
EngineStats read_stats(const Json& value);

Json to_json(const Error& error);
Error read_error(const Json& value);

/// At most kMaxTextBytes of `text`, cut between UTF-8 sequences.
std::string cut_text(const std::string& text);

}  // namespace thaw::forkpool::wire

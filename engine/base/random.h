#pragma once

#include <array>
#include <cstdint>

namespace thaw {

/// Philox4x32-10: four random words from (key, counter), with no state.
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
std::array<std::uint32_t, 4> philox4x32(std::uint64_t key, std::array<std::uint32_t, 4> counter);

/// The uniform draw in [0, 1) for one generated token. It depends on nothing else, so a resumed or
/// preempted stream draws what an unbroken one would have drawn. `position` counts from the start
/// of the sequence (prompt included).
double token_uniform(std::uint64_t seed, std::uint32_t choice_index, std::uint64_t position);

}  // namespace thaw

#pragma once

#include "engine/model/load.h"

namespace thaw::forkpool::test {

/// A tiny model's weights in shared memory, built once: for workers on the CPU, and on a GPU.
const model::LoadedImage& tiny_image();
const model::LoadedImage& tiny_cuda_image();

}  // namespace thaw::forkpool::test

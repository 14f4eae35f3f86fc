#include <immintrin.h>

#include "engine/ops/cpu/exp_constants.h"
#include "engine/ops/cpu/kernels.h"

namespace thaw::ops::cpu {
namespace {
// The kernels are written against the lanes of the first header.
// clang-format off
#include "engine/ops/cpu/simd_avx512.h"
#include "engine/ops/cpu/isa_kernels.h"
// clang-format on
}  // namespace

const Kernels& avx512_kernels() {
  return kTable;
}

}  // namespace thaw::ops::cpu

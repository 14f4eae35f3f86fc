#include "engine/base/half.h"
#include "engine/ops/cpu/exp_constants.h"
#include "engine/ops/cpu/kernels.h"

namespace thaw::ops::cpu {
namespace {
// The kernels are written against the lanes of the first header.
// clang-format off
#include "engine/ops/cpu/simd_generic.h"
#include "engine/ops/cpu/isa_kernels.h"
// clang-format on
}  // namespace

const Kernels& generic_kernels() {
  return kTable;
}

}  // namespace thaw::ops::cpu

// Everything one instruction set compiles: kernels and their table. Included inside an anonymous
// namespace after one of the simd_*.h headers.

#include "engine/ops/cpu/attention_kernels.h"
#include "engine/ops/cpu/elementwise_kernels.h"
#include "engine/ops/cpu/linear_kernels.h"

constexpr Kernels kTable = {quantize_tile,   linear_panels,   rms_norm,  add_arrays,
                            swiglu,          rope_row,        exp_array, attention_split,
                            attention_merge, attention_finish};

#include "engine/checkpoint/dtype.h"

#include <array>

namespace thaw::checkpoint {
namespace {

struct Traits {
  std::string_view name;
  int block_elements;
  std::size_t block_bytes;
};

// In the order of DType. Quantised blocks: Q8_0 f16 + 32; Q4_0 f16 + 16; Q4_1 2 f16 + 16;
// Q4_K 2 f16 + 12 + 128; Q6_K 128 + 64 + 16 + f16; Q5_0 f16 + 4 + 16; Q5_1 2 f16 + 4 + 16; Q5_K
// 2 f16 + 12 + 32 + 128; Q2_K 16 + 64 + 2 f16; Q3_K 32 + 64 + 12 + f16; IQ4_NL f16 + 16.
constexpr std::array<Traits, 14> kTraits{{{"F32", 1, 4},
                                          {"F16", 1, 2},
                                          {"BF16", 1, 2},
                                          {"Q8_0", 32, 34},
                                          {"Q4_0", 32, 18},
                                          {"Q4_1", 32, 20},
                                          {"Q4_K", 256, 144},
                                          {"Q6_K", 256, 210},
                                          {"Q5_0", 32, 22},
                                          {"Q5_1", 32, 24},
                                          {"Q5_K", 256, 176},
                                          {"Q2_K", 256, 84},
                                          {"Q3_K", 256, 110},
                                          {"IQ4_NL", 32, 18}}};

const Traits& traits(DType dtype) {
  return kTraits[static_cast<std::size_t>(dtype)];
}

}  // namespace

std::string_view dtype_name(DType dtype) {
  return traits(dtype).name;
}
int dtype_block_elements(DType dtype) {
  return traits(dtype).block_elements;
}
std::size_t dtype_block_bytes(DType dtype) {
  return traits(dtype).block_bytes;
}

}  // namespace thaw::checkpoint

// The test kernels for sm_80, for the checks of the device build; nothing here is launched.
#include "counted.cuh"
#include "fa_sm80.cuh"
#include "misc_sm80.cuh"
#include "primitives_sm80.cuh"

namespace swa::test {

ptx::Error launch_attention(const AttentionParams& p) { return fa80::launch(p, 1, 1, nullptr); }

template __global__ void primitives::mma<ptx::Half::kBf16>(const uint32_t*, const uint32_t*,
                                                           const float*, float*);
template __global__ void primitives::mma<ptx::Half::kFp16>(const uint32_t*, const uint32_t*,
                                                           const float*, float*);
template __global__ void primitives::cp_async<4>(const uint8_t*, const int*, uint32_t*);
template __global__ void primitives::cp_async<8>(const uint8_t*, const int*, uint32_t*);
template __global__ void primitives::cp_async<16>(const uint8_t*, const int*, uint32_t*);

}  // namespace swa::test

// The test kernels for sm_90a, for the checks of the device build; nothing here is launched.
#include "misc_sm90.cuh"
#include "primitives_sm90.cuh"
#include "ws_sm90.cuh"

namespace swa::test {

ptx::Error launch_attention(const AttentionParams& p) {
  return ws90::attention::launch(p, 1, 1, 1, nullptr);
}
ptx::Error launch_gemm(const void* a, const void* b, float* out) {
  return ws90::gemm::launch(a, b, out, 128, 128, 64, nullptr);
}

#define INSTANTIATE_WGMMA(n, type, major, rs)                                            \
  template __global__ void primitives::wgmma<n, ptx::Half::type, ptx::Major::major, rs>( \
      const __grid_constant__ ptx::TensorMap, const __grid_constant__ ptx::TensorMap, float*);
#define INSTANTIATE_WGMMA_MAJORS(n, type) \
  INSTANTIATE_WGMMA(n, type, kK, false)   \
  INSTANTIATE_WGMMA(n, type, kK, true)    \
  INSTANTIATE_WGMMA(n, type, kMn, false)  \
  INSTANTIATE_WGMMA(n, type, kMn, true)
INSTANTIATE_WGMMA(16, kBf16, kK, false)
INSTANTIATE_WGMMA(32, kBf16, kK, false)
INSTANTIATE_WGMMA(48, kBf16, kK, false)
INSTANTIATE_WGMMA(16, kFp16, kK, false)
INSTANTIATE_WGMMA(32, kFp16, kK, false)
INSTANTIATE_WGMMA(48, kFp16, kK, false)
INSTANTIATE_WGMMA_MAJORS(64, kBf16)
INSTANTIATE_WGMMA_MAJORS(128, kBf16)
INSTANTIATE_WGMMA_MAJORS(64, kFp16)
INSTANTIATE_WGMMA_MAJORS(128, kFp16)

}  // namespace swa::test

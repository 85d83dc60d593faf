// out[M, N] = A[M, K] B[N, K]^T in fp32: wgmma with both operands in shared memory, 128 x 128 per
// CTA, a ring of 3 stages.
#pragma once
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "planted.cuh"
#include "ring.cuh"

namespace swa::test::ws90::gemm {

constexpr int kBlockM = 128, kBlockN = 128, kBlockK = 64, kStages = 3, kThreads = 384;
constexpr int kTileBytes = 128 * kBlockK * 2;

struct SharedStorage {
  uint8_t a[kStages][kTileBytes], b[kStages][kTileBytes];
  uint64_t full[kStages], empty[kStages];
};

__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ ptx::TensorMap a_map,
                                                      const __grid_constant__ ptx::TensorMap b_map,
                                                      float* out, int out_stride, int num_k_tiles) {
  SharedStorage& smem = ptx::shared_storage<SharedStorage>();
  const int warpgroup = ptx::warp_id() / 4, lane = ptx::lane_id();
  auto full = [&](int s) { return ptx::smem_u32(&smem.full[s]); };
  auto empty = [&](int s) { return ptx::smem_u32(&smem.empty[s]); };
  if (ptx::thread_idx().x == 0) {
    for (int s = 0; s < kStages; ++s) {
      ptx::mbarrier_init(full(s), 1);
      ptx::mbarrier_init(empty(s), 8);  // one arrival per consumer warp
    }
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  const int m0 = int(ptx::block_idx().y) * kBlockM, n0 = int(ptx::block_idx().x) * kBlockN;
  if (warpgroup == 0) {
    ptx::set_max_registers_down<24>();
    if (ptx::warp_id() == 0 && ptx::elect_one()) {
      Ring<kStages> ring{0, 1};
      for (int k = 0; k < num_k_tiles; ++k, ring.advance()) {
        const int s = ring.stage;
        ptx::mbarrier_wait(empty(s), ring.parity);
        ptx::mbarrier_arrive_expect_tx(full(s), 2 * kTileBytes);
        ptx::tma_load_2d(ptx::smem_u32(smem.a[s]), &a_map, full(s), k * kBlockK, m0);
        ptx::tma_load_2d(ptx::smem_u32(smem.b[s]), &b_map, full(s), k * kBlockK, n0);
      }
    }
    return;
  }
  ptx::set_max_registers_up<240>();
  const int consumer = warpgroup - 1;
  float acc[kBlockN / 2];
  SWA_UNROLL
  for (float& x : acc) x = 0.f;
  Ring<kStages> ring{0, 0};
  for (int k = 0; k < num_k_tiles; ++k, ring.advance()) {
    const int s = ring.stage;
    ptx::mbarrier_wait(full(s), ring.parity);
    const uint64_t a = ptx::wgmma_descriptor(
        ptx::Swizzle::k128, ptx::smem_u32(smem.a[s]) + uint32_t(consumer) * 64 * 128, 16, 1024);
    const uint64_t b =
        ptx::wgmma_descriptor(ptx::Swizzle::k128, ptx::smem_u32(smem.b[s]), 16, 1024);
    ptx::wgmma_fence(acc);
    SWA_UNROLL
    for (int j = 0; j < kBlockK / 16; ++j)
      ptx::wgmma_ss<kBlockN, ptx::Half::kBf16, ptx::Major::kK>(acc, a + 2 * j, b + 2 * j,
                                                               k + j > 0);
    ptx::wgmma_commit();
    if (!PLANTED(14)) ptx::wgmma_wait<0>(acc);
    if (lane == 0) ptx::mbarrier_arrive(empty(s));
  }
  if (PLANTED(14)) ptx::wgmma_wait<0>(acc);
  SWA_UNROLL
  for (int i = 0; i < kBlockN / 2; i += 2) {
    const int row = m0 + consumer * 64 + (ptx::warp_id() & 3) * 16 + (lane >> 2) + (i >> 1 & 1) * 8;
    const int column = n0 + i / 4 * 8 + (lane & 3) * 2;
    ptx::stg(out + long(row) * out_stride + column,
             ptx::U32x2{ptx::bit_cast<uint32_t>(acc[i]), ptx::bit_cast<uint32_t>(acc[i + 1])});
  }
}

// m and n are multiples of 128, k of 64.
inline ptx::Error launch(const void* a, const void* b, float* out, int m, int n, int k,
                         ptx::Stream stream) {
  auto map = [k](const void* base, int rows) {
    return ptx::encode_tensor_map({base,
                                   ptx::ElementType::kBf16,
                                   2,
                                   {uint64_t(k), uint64_t(rows)},
                                   {uint64_t(k) * 2},
                                   {kBlockK, 128},
                                   ptx::Swizzle::k128});
  };
  const ptx::Dim3 grid(unsigned(n / kBlockN), unsigned(m / kBlockM));
  return ptx::launch({grid, kThreads, sizeof(SharedStorage), 1, stream}, kernel, map(a, m),
                     map(b, n), out, n, k / kBlockK);
}

}  // namespace swa::test::ws90::gemm

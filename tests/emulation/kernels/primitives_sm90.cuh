// One small kernel per sm_90 primitive, like primitives_sm80.cuh.
#pragma once
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace swa::test::primitives {

// in: [32 lanes, 4 registers]; out: [2, 32, 8] 16-bit: the rows stored by stmatrix_x4 and
// stmatrix_x4_trans. One warp.
__global__ void stmatrix(const uint32_t* in, uint32_t* out) {
  struct Storage {
    alignas(16) uint16_t rows[2][32][8];
  };
  Storage& smem = ptx::shared_storage<Storage>();
  const int lane = ptx::lane_id();
  const ptx::U32x4 v = ptx::ldg<ptx::U32x4>(in + lane * 4);
  const uint32_t r[4] = {v.x, v.y, v.z, v.w};
  ptx::stmatrix_x4(ptx::smem_u32(smem.rows[0][lane]), r);
  ptx::stmatrix_x4_trans(ptx::smem_u32(smem.rows[1][lane]), r);
  ptx::sync_warp();
  for (int i = 0; i < 2; ++i)
    ptx::stg(out + (i * 32 + lane) * 4, ptx::lds<ptx::U32x4>(ptx::smem_u32(smem.rows[i][lane])));
}

// out: [32 lanes]: 1 in the elected lane. One warp.
__global__ void elect(uint32_t* out) { ptx::stg(out + ptx::lane_id(), uint32_t(ptx::elect_one())); }

constexpr int kMaxBoxBytes = 16384;
struct BoxStorage {
  alignas(1024) uint8_t box[kMaxBoxBytes];
  uint64_t barrier;
};

// Loads one box of num_bytes at the given coordinates and copies it, as it lies in shared memory,
// to out. One warp.
__global__ void tma(const __grid_constant__ ptx::TensorMap map, int rank, int c0, int c1, int c2,
                    int c3, uint32_t* out, int num_bytes) {
  BoxStorage& smem = ptx::shared_storage<BoxStorage>();
  const int lane = ptx::lane_id();
  const uint32_t box = ptx::smem_u32(smem.box), barrier = ptx::smem_u32(&smem.barrier);
  if (lane == 0) {
    ptx::mbarrier_init(barrier, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(barrier, uint32_t(num_bytes));
    if (rank == 2) ptx::tma_load_2d(box, &map, barrier, c0, c1);
    if (rank == 3) ptx::tma_load_3d(box, &map, barrier, c0, c1, c2);
    if (rank == 4) ptx::tma_load_4d(box, &map, barrier, c0, c1, c2, c3);
  }
  ptx::sync_warp();
  ptx::mbarrier_wait(barrier, 0);
  for (int i = lane; i < num_bytes / 4; i += 32)
    ptx::stg(out + i, ptx::lds<uint32_t>(box + uint32_t(i) * 4));
}

// Stores one box of num_bytes from shared memory, into which it goes as it lies there. One warp.
__global__ void tma_store(const __grid_constant__ ptx::TensorMap map, const uint32_t* in, int c0,
                          int c1, int c2, int num_bytes) {
  BoxStorage& smem = ptx::shared_storage<BoxStorage>();
  const uint32_t box = ptx::smem_u32(smem.box);
  for (int i = ptx::lane_id(); i < num_bytes / 4; i += 32)
    ptx::sts(box + uint32_t(i) * 4, ptx::ldg<uint32_t>(in + i));
  ptx::fence_proxy_async();
  ptx::sync_warp();
  if (ptx::lane_id() != 0) return;
  ptx::tma_store_3d(&map, box, c0, c1, c2);
  ptx::bulk_commit();
  ptx::bulk_wait_read<0>();
}

// out: [65536]: every pair of float8_e4m3fn as two fp16. 256 blocks of 256 threads.
__global__ void e4m3(uint32_t* out) {
  const uint32_t i = ptx::block_idx().x * 256 + ptx::thread_idx().x;
  ptx::stg(out + i, ptx::e4m3_to_fp16(i));
}

constexpr int kDepth = 64;  // K of the wgmma probe: four instructions

template <int kN>
struct WgmmaStorage {
  alignas(1024) uint8_t a[64 * kDepth * 2], b[kN * kDepth * 2];
  uint64_t barrier;
};

// out[64, N] = a[64, 64] b. b is [N, 64] for Major::kK and [64, N] for Major::kMn, loaded in boxes
// of 64 columns. A comes from shared memory, or through ldmatrix from registers. One warpgroup.
template <int kN, ptx::Half kType, ptx::Major kB, bool kAInRegisters>
__global__ void __launch_bounds__(128)
    wgmma(const __grid_constant__ ptx::TensorMap a_map,
          const __grid_constant__ ptx::TensorMap b_map, float* out) {
  using Storage = WgmmaStorage<kN>;
  Storage& smem = ptx::shared_storage<Storage>();
  const int warp = ptx::warp_id(), lane = ptx::lane_id();
  const uint32_t a = ptx::smem_u32(smem.a), b = ptx::smem_u32(smem.b),
                 barrier = ptx::smem_u32(&smem.barrier);
  if (ptx::thread_idx().x == 0) {
    ptx::mbarrier_init(barrier, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(barrier, sizeof smem.a + sizeof smem.b);
    ptx::tma_load_2d(a, &a_map, barrier, 0, 0);
    if (kB == ptx::Major::kK)
      ptx::tma_load_2d(b, &b_map, barrier, 0, 0);
    else
      for (int n = 0; n < kN; n += 64)
        ptx::tma_load_2d(b + uint32_t(n * kDepth * 2), &b_map, barrier, n, 0);
  }
  ptx::sync_threads();
  ptx::mbarrier_wait(barrier, 0);
  const uint64_t a_descriptor = ptx::wgmma_descriptor(ptx::Swizzle::k128, a, 16, 1024);
  const uint64_t b_descriptor =
      ptx::wgmma_descriptor(ptx::Swizzle::k128, b, kB == ptx::Major::kK ? 16 : kDepth * 128, 1024);
  float d[kN / 2];
  uint32_t fragments[kDepth / 16][4];
  if (kAInRegisters) {
    SWA_UNROLL
    for (int k = 0; k < kDepth / 16; ++k) {
      const int row = warp * 16 + (lane & 15), chunk = 2 * k + (lane >> 4);
      ptx::ldmatrix_x4(fragments[k], a + uint32_t(row * 128 + ((chunk ^ (row & 7)) << 4)));
    }
  }
  ptx::wgmma_fence(d);
  SWA_UNROLL
  for (int k = 0; k < kDepth / 16; ++k) {
    const uint64_t b_step =
        b_descriptor + uint64_t(kB == ptx::Major::kK ? k * 32 >> 4 : k * 16 * 128 >> 4);
    if constexpr (kAInRegisters)
      ptx::wgmma_rs<kN, kType, kB>(d, fragments[k], b_step, k > 0);
    else
      ptx::wgmma_ss<kN, kType, kB>(d, a_descriptor + uint64_t(k * 32 >> 4), b_step, k > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(d);
  ptx::GlobalPointer<float> o = out;
  SWA_UNROLL
  for (int i = 0; i < kN / 2; ++i) {
    const int row = warp * 16 + (lane >> 2) + (i >> 1 & 1) * 8,
              column = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
    o[row * kN + column] = d[i];
  }
}

}  // namespace swa::test::primitives

// Access patterns whose cost is known, for the tests of the counters. One warp unless said
// otherwise.
#pragma once
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"

namespace swa::test::counted {

struct Storage {
  alignas(1024) uint8_t bytes[32 << 10];
};

// The first lanes read 4 bytes at lane * stride bytes, `times` times from successive 4 KiB.
__global__ void global_loads(const uint8_t* in, int stride, int times, int active_lanes,
                             uint32_t* out) {
  const int lane = ptx::lane_id();
  uint32_t sum = 0;
  for (int i = 0; i < times; ++i)
    if (lane < active_lanes) sum += ptx::ldg<uint32_t>(in + i * 4096 + lane * stride);
  ptx::stg(out + lane, sum);
}

// Lane i writes, then reads, V at i * stride bytes of shared memory.
template <class V>
__global__ void shared_accesses(int stride) {
  Storage& smem = ptx::shared_storage<Storage>();
  const uint32_t address = ptx::smem_u32(smem.bytes) + uint32_t(ptx::lane_id() * stride);
  ptx::sts(address, V{});
  (void)ptx::lds<V>(address);
}

// cp.async of 16 bytes per lane from both buffers: lanes below `split` read device pages, the
// others host pages, lanes from `end` on nothing. Shared rows are `stride` bytes apart.
__global__ void cp_async(const uint8_t* device_pages, const uint8_t* host_pages, int split, int end,
                         int stride) {
  Storage& smem = ptx::shared_storage<Storage>();
  const int lane = ptx::lane_id();
  const uint8_t* source = (lane < split ? device_pages : host_pages) + lane * 16;
  ptx::cp_async<16>(ptx::smem_u32(smem.bytes) + uint32_t(lane * stride), source,
                    lane < end ? 16 : 0);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

// ldmatrix.x4 of rows `stride` bytes apart.
__global__ void ldmatrix(int stride) {
  Storage& smem = ptx::shared_storage<Storage>();
  const uint32_t row = ptx::smem_u32(smem.bytes) + uint32_t(ptx::lane_id() * stride);
  ptx::sts(row, ptx::U32x4{});
  ptx::sync_warp();
  uint32_t r[4];
  ptx::ldmatrix_x4(r, row);
}

// Two warps: 3 mma and 5 ex2 per lane each, 2 barriers.
__global__ void arithmetic(float* out) {
  float d[4] = {}, sum = 0.f;
  const uint32_t a[4] = {};
  for (int i = 0; i < 3; ++i) ptx::mma_m16n8k16<ptx::Half::kBf16>(d, a, 0, 0);
  ptx::sync_threads();
  for (int i = 0; i < 5; ++i) sum += ptx::ex2(float(i));
  ptx::sync_threads();
  ptx::stg(out + ptx::thread_idx().x, sum + d[0]);
}

}  // namespace swa::test::counted

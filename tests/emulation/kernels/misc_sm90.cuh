// Kernels that put several sm_90 primitives together: a cluster with multicast, cp.async with
// mbarriers, the phases of an mbarrier.
#pragma once
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/grid_dependency.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"
#include "cuda/ptx/tma.cuh"
#include "planted.cuh"

namespace swa::test::misc {

// Clusters of two CTAs: each loads half of a [64, 64] bf16 tile and multicasts it to both,
// `num_tiles` times; remote arrivals release the buffer; a bulk copy brings the bias and another
// stores the per-thread sums of tile * bias. out: [2, 128].
struct ClusterStorage {
  alignas(1024) uint8_t tile[64 * 128];
  float bias[64];
  alignas(16) float sums[128];
  uint64_t tile_full, tile_empty, bias_full;
};
__global__ void __launch_bounds__(128) cluster_sum(const __grid_constant__ ptx::TensorMap map,
                                                   const float* bias, float* out, int num_tiles) {
  ClusterStorage& smem = ptx::shared_storage<ClusterStorage>();
  const uint32_t tile = ptx::smem_u32(smem.tile), bias_at = ptx::smem_u32(smem.bias),
                 sums = ptx::smem_u32(smem.sums);
  const uint32_t full = ptx::smem_u32(&smem.tile_full), empty = ptx::smem_u32(&smem.tile_empty);
  const uint32_t bias_full = ptx::smem_u32(&smem.bias_full);
  const int t = int(ptx::thread_idx().x);
  const uint32_t rank = ptx::cluster_rank();
  if (t == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_init(empty, 2);
    ptx::mbarrier_init(bias_full, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
  float sum = 0.f;
  for (int i = 0; i < num_tiles; ++i) {
    if (t == 0) {
      if (i) ptx::mbarrier_wait(empty, uint32_t(i - 1) & 1);  // both CTAs have read their copies
      ptx::mbarrier_arrive_expect_tx(full, sizeof smem.tile);
      ptx::tma_load_2d_multicast(tile + rank * 4096, &map, full, 0, i * 64 + int(rank) * 32, 3);
      if (i == 0) {
        ptx::mbarrier_arrive_expect_tx(bias_full, sizeof smem.bias);
        ptx::bulk_load(bias_at, bias, sizeof smem.bias, bias_full);
      }
    }
    ptx::mbarrier_wait(full, uint32_t(i) & 1);
    if (i == 0) ptx::mbarrier_wait(bias_full, 0);
    for (int c = t; c < 64 * 32; c += 128) {  // two elements per word, through the swizzle
      const int row = c >> 5, word = c & 31;
      const uint32_t v = ptx::lds<uint32_t>(
          tile + uint32_t(row * 128 + (((word >> 2) ^ (row & 7)) << 4) + (word & 3) * 4));
      sum += ptx::half_low<ptx::Half::kBf16>(v) * ptx::lds<float>(bias_at + uint32_t(word) * 8);
      sum +=
          ptx::half_high<ptx::Half::kBf16>(v) * ptx::lds<float>(bias_at + uint32_t(word) * 8 + 4);
    }
    ptx::sync_threads();
    if (t == 0) {
      ptx::mbarrier_arrive_remote(empty, 0);
      ptx::mbarrier_arrive_remote(empty, 1);
    }
  }
  ptx::sts(sums + uint32_t(t) * 4, sum);
  if (!PLANTED(20))
    ptx::fence_proxy_async();  // the bulk store reads through the asynchronous proxy
  ptx::sync_threads();
  if (t == 0) {
    ptx::bulk_store(out + ptx::block_idx().x * 128, sums, sizeof smem.sums);
    ptx::bulk_commit();
    ptx::bulk_wait<0>();
  }
  if (PLANTED(21)) return;
  ptx::cluster_arrive();  // the peer may still signal our barriers
  ptx::cluster_wait();
}

// cp.async by one warp, completion seen by another through an mbarrier. in and out: [128] words.
struct HandoverStorage {
  ptx::U32x4 buffer[32];
  uint64_t full;
};
__global__ void __launch_bounds__(64) handover(const uint32_t* in, uint32_t* out) {
  HandoverStorage& smem = ptx::shared_storage<HandoverStorage>();
  const uint32_t buffer = ptx::smem_u32(smem.buffer), full = ptx::smem_u32(&smem.full);
  const int t = int(ptx::thread_idx().x);
  if (t == 0) {
    ptx::mbarrier_init(full, 32);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  if (t < 32) {
    ptx::cp_async<16>(buffer + uint32_t(t) * 16, in + t * 4, 16);
    ptx::cp_async_mbarrier_arrive_noinc(full);
  } else {
    ptx::mbarrier_wait(full, 0);
    for (int i = 0; i < 4; ++i)
      ptx::stg(out + i * 32 + t - 32,
               ptx::lds<uint32_t>(buffer + uint32_t((t - 32) * 4 + i * 128)));
  }
}

// A kernel that says at once that dependents may start, and takes its time: word i is 1000 steps of
// a generator from i. The dependent copies the words. Blocks of 32 threads.
__global__ void primary(uint32_t* words) {
  ptx::launch_dependents();
  const uint32_t i = ptx::block_idx().x * 32 + ptx::thread_idx().x;
  uint32_t x = i;
  for (int step = 0; step < 1000; ++step) x = x * 1664525u + 1013904223u;
  ptx::stg(words + i, x);
}
__global__ void dependent(const uint32_t* words, uint32_t* out) {
  ptx::wait_for_grid();
  const uint32_t i = ptx::block_idx().x * 32 + ptx::thread_idx().x;
  const ptx::GlobalPointer<const uint32_t> found = words;
  ptx::stg(out + i, uint32_t(found[i]));
}

// One warp writes, the other reads, through two mbarriers, for four phases; out[4 * 32 ..] holds
// what try_wait said about a fresh barrier: for parity 1 yes, for parity 0 no. in: [128], out: [4 *
// 32 + 2].
struct PhasesStorage {
  uint32_t buffer[32];
  uint64_t full, empty;
};
__global__ void __launch_bounds__(64) phases(const uint32_t* in, uint32_t* out) {
  PhasesStorage& smem = ptx::shared_storage<PhasesStorage>();
  const uint32_t full = ptx::smem_u32(&smem.full), empty = ptx::smem_u32(&smem.empty);
  const int t = int(ptx::thread_idx().x), lane = ptx::lane_id();
  const uint32_t word = ptx::smem_u32(&smem.buffer[lane]);
  if (t == 0) {
    ptx::mbarrier_init(full, 32);
    ptx::mbarrier_init(empty, 32);
    ptx::stg(out + 128, uint32_t(ptx::mbarrier_try_wait(full, 1)));
    ptx::stg(out + 129, uint32_t(ptx::mbarrier_try_wait(full, 0)));
  }
  ptx::sync_threads();
  for (int i = 0; i < 4; ++i) {
    if (t < 32) {
      ptx::mbarrier_wait(empty, uint32_t(i + 1) & 1);
      ptx::sts(word, ptx::ldg<uint32_t>(in + i * 32 + lane));
      ptx::mbarrier_arrive(full);
    } else {
      ptx::mbarrier_wait(full, uint32_t(i) & 1);
      ptx::stg(out + i * 32 + lane, ptx::lds<uint32_t>(word ^ 4u));
      ptx::mbarrier_arrive(empty);
    }
  }
  ptx::sync_threads();
  if (t == 0) {
    ptx::mbarrier_inval(full);
    ptx::mbarrier_inval(empty);
  }
}

}  // namespace swa::test::misc

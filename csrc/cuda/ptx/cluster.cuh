// Thread block clusters (sm_90).
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/barrier.hpp"
#include "emulation/cluster.hpp"
#endif

namespace swa::ptx {

SWA_DEVICE uint32_t cluster_rank() {
#if SWA_EMULATED
  return emu::cluster_rank();
#else
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}

// Every thread of the cluster arrives, then waits. A CTA must not exit while a peer may still touch
// its shared memory.
SWA_DEVICE void cluster_arrive() {
#if SWA_EMULATED
  emu::cluster_barrier_arrive();
#else
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

SWA_DEVICE void cluster_wait(SWA_LOC_ONLY) {
#if SWA_EMULATED
  emu::cluster_barrier_wait(loc);
#else
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

}  // namespace swa::ptx

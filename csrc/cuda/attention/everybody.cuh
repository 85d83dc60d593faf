// A vote of the whole block.
#pragma once
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"

namespace swa::cuda {

// Whether all warps pass true (all lanes of a warp the same). A barrier as well; `flags`, one per
// warp in shared memory, may be used again after the next barrier.
SWA_DEVICE bool everybody(uint32_t* flags, bool mine) {
  const ptx::SharedPointer<uint32_t> shared = flags;
  const int num_warps = int(ptx::block_dim().x / 32);
  if (ptx::lane_id() == 0) shared[ptx::warp_id()] = mine;
  ptx::sync_threads();
  uint32_t all = 1;
  for (int warp = 0; warp < num_warps; ++warp) all &= shared[warp];
  return all != 0;
}

}  // namespace swa::cuda

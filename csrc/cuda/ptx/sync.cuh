// Barriers of a warp and of a block.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/barrier.hpp"
#include "emulation/collective.hpp"
#endif

namespace swa::ptx {

// Orders the memory accesses of the lanes in the mask.
SWA_DEVICE void sync_warp(uint32_t mask = 0xffffffffu SWA_LOC) {
#if SWA_EMULATED
  emu::sync_warp(mask, loc);
#else
  __syncwarp(mask);
#endif
}

// Every thread of the block, barrier 0.
SWA_DEVICE void sync_threads(SWA_LOC_ONLY) {
#if SWA_EMULATED
  emu::barrier(0, 0, emu::Then::kWait, loc);
#else
  __syncthreads();
#endif
}

// Named barrier `id` (1..15; 0 is sync_threads) of num_threads threads, a multiple of 32.
SWA_DEVICE void barrier_sync(int id, int num_threads SWA_LOC) {
#if SWA_EMULATED
  emu::barrier(id, unsigned(num_threads), emu::Then::kWait, loc);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
#endif
}

// Counts towards the barrier without waiting: the producer's side.
SWA_DEVICE void barrier_arrive(int id, int num_threads SWA_LOC) {
#if SWA_EMULATED
  emu::barrier(id, unsigned(num_threads), emu::Then::kGoOn, loc);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
#endif
}

}  // namespace swa::ptx

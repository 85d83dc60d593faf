// Fences between the generic proxy (ordinary loads and stores) and the asynchronous one (TMA, bulk
// copies, wgmma). sm_90.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/mbarrier.hpp"
#endif

namespace swa::ptx {

// Executed by the thread that wrote shared memory, before the barrier after which asynchronous
// operations touch it.
SWA_DEVICE void fence_proxy_async() {
#if SWA_EMULATED
  emu::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Executed by the thread that initialized mbarriers, before TMA or another CTA uses them.
SWA_DEVICE void fence_mbarrier_init() {
#if SWA_EMULATED
  emu::fence_mbarrier_init();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

}  // namespace swa::ptx

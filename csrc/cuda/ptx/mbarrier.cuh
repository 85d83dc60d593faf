// mbarriers (sm_90 forms): 64-bit barriers in shared memory that count arrivals and bytes.
//
// wait(parity) returns when the phase of that parity has completed: a fresh barrier is in phase 0,
// so wait(0) blocks until the first completion and wait(1) returns at once.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/cluster.hpp"
#include "emulation/mbarrier.hpp"
#endif

namespace swa::ptx {

// `count` arrivals complete a phase. Others may use the barrier after a block barrier, TMA and
// other CTAs after fence_mbarrier_init.
SWA_DEVICE void mbarrier_init(uint32_t mbarrier, uint32_t count SWA_LOC) {
#if SWA_EMULATED
  emu::mbarrier_init(mbarrier, count, loc);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(count) : "memory");
#endif
}

SWA_DEVICE void mbarrier_inval(uint32_t mbarrier SWA_LOC) {
#if SWA_EMULATED
  emu::mbarrier_inval(mbarrier, loc);
#else
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
#endif
}

SWA_DEVICE void mbarrier_arrive(uint32_t mbarrier SWA_LOC) {
#if SWA_EMULATED
  emu::mbarrier_arrive(mbarrier, 1, 0, loc);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mbarrier) : "memory");
#endif
}

// Arrives on the barrier at the same offset in CTA `cta` of the cluster.
SWA_DEVICE void mbarrier_arrive_remote(uint32_t mbarrier, uint32_t cta SWA_LOC) {
#if SWA_EMULATED
  emu::mbarrier_arrive(emu::map_to_cta(mbarrier, cta, loc), 1, 0, loc);
#else
  asm volatile(
      "{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [a];\n}" ::"r"(mbarrier),
      "r"(cta)
      : "memory");
#endif
}

// Announces `bytes` that asynchronous copies will complete in this phase, and arrives.
SWA_DEVICE void mbarrier_arrive_expect_tx(uint32_t mbarrier, uint32_t bytes SWA_LOC) {
#if SWA_EMULATED
  emu::mbarrier_arrive(mbarrier, 1, bytes, loc);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier), "r"(bytes)
               : "memory");
#endif
}

// False: not yet; the hardware decides how long it blocks.
SWA_DEVICE bool mbarrier_try_wait(uint32_t mbarrier, uint32_t parity SWA_LOC) {
#if SWA_EMULATED
  return emu::mbarrier_try_wait(mbarrier, parity, loc);
#else
  uint32_t done;
  asm volatile(
      "{\n.reg .pred P;\nmbarrier.try_wait.parity.shared::cta.b64 P, [%1], %2;\nselp.b32 %0, 1, 0, "
      "P;\n}"
      : "=r"(done)
      : "r"(mbarrier), "r"(parity)
      : "memory");
  return done;
#endif
}

SWA_DEVICE void mbarrier_wait(uint32_t mbarrier, uint32_t parity SWA_LOC) {
#if SWA_EMULATED
  while (!emu::mbarrier_try_wait(mbarrier, parity, loc)) {
  }
#else
  while (!mbarrier_try_wait(mbarrier, parity)) {
  }
#endif
}

}  // namespace swa::ptx

// cp.async (sm_80): asynchronous 4-, 8- and 16-byte copies from global to shared memory, waited for
// in groups.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/cp_async.hpp"
#endif

namespace swa::ptx {

// Copies src_bytes (0..kBytes) and fills the rest of kBytes with zeros; with src_bytes 0 the source
// is not read. 16-byte copies bypass L1 and ask L2 for 128-byte lines; shorter ones go through L1.
template <int kBytes>
SWA_DEVICE void cp_async(uint32_t dst, const void* src, int src_bytes SWA_LOC) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if SWA_EMULATED
  emu::cp_async(dst, src, kBytes, src_bytes, loc);
#else
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
                 "r"(src_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(dst), "l"(src), "n"(kBytes),
                 "r"(src_bytes)
                 : "memory");
#endif
}

SWA_DEVICE void cp_async_commit() {
#if SWA_EMULATED
  emu::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the kPending most recently committed groups of this thread are in flight.
// Other threads see the data only after a barrier.
template <int kPending>
SWA_DEVICE void cp_async_wait() {
#if SWA_EMULATED
  emu::cp_async_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Arrives on an mbarrier once this thread's copies so far have landed; the barrier's count must
// include this arrival.
SWA_DEVICE void cp_async_mbarrier_arrive_noinc(uint32_t mbarrier SWA_LOC) {
#if SWA_EMULATED
  emu::cp_async_mbarrier_arrive_noinc(mbarrier, loc);
#else
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
#endif
}

}  // namespace swa::ptx

// Bulk copies (sm_90): whole multiples of 16 bytes, issued by one thread.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/bulk_copy.hpp"
#endif

namespace swa::ptx {

// Global to shared memory; completes `bytes` on the mbarrier.
SWA_DEVICE void bulk_load(uint32_t dst, const void* src, uint32_t bytes,
                          uint32_t mbarrier SWA_LOC) {
#if SWA_EMULATED
  emu::bulk_load(dst, src, bytes, mbarrier, loc);
#else
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(dst),
      "l"(src), "r"(bytes), "r"(mbarrier)
      : "memory");
#endif
}

// Shared to global memory, in the thread's current bulk group.
SWA_DEVICE void bulk_store(void* dst, uint32_t src, uint32_t bytes SWA_LOC) {
#if SWA_EMULATED
  emu::bulk_store(dst, src, bytes, loc);
#else
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src),
               "r"(bytes)
               : "memory");
#endif
}

SWA_DEVICE void bulk_commit() {
#if SWA_EMULATED
  emu::bulk_commit();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// Waits until at most the kPending most recent groups of this thread are incomplete.
template <int kPending>
SWA_DEVICE void bulk_wait() {
#if SWA_EMULATED
  emu::bulk_wait(kPending);
#else
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// The same, for shared memory to have been read only: it may be written again, or the CTA may end.
template <int kPending>
SWA_DEVICE void bulk_wait_read() {
#if SWA_EMULATED
  emu::bulk_wait(kPending);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace swa::ptx

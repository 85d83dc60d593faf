// wgmma (sm_90a): asynchronous matrix multiply-accumulate of a warpgroup, B and possibly A in
// shared memory.
//
//   d[64 x N] (+)= a[64 x 16] b[16 x N], fp32 accumulators; wgmma_fence before the first,
//   wgmma_commit after the last of a group, wgmma_wait before any register of d is touched.
//   Accumulators are plain arrays that outlive the wait.
#pragma once
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/platform.cuh"
#include "cuda/ptx/swizzle.cuh"
#if SWA_EMULATED
#include "emulation/wgmma.hpp"
#endif

namespace swa::ptx {

// Which dimension of B is contiguous in shared memory.
#if SWA_EMULATED
using emu::Major;
#else
enum class Major { kK, kMn };
#endif

// Describes an operand in shared memory. For K-major swizzled operands stride_bytes is the distance
// of groups of 8 rows and leading_bytes is unused; for MN-major swizzled ones leading_bytes is the
// distance of groups of (swizzle bytes / 2) columns and stride_bytes that of groups of 8 k. The
// address must lie in the first row of the swizzle pattern.
SWA_DEVICE uint64_t wgmma_descriptor(Swizzle swizzle, uint32_t address, uint32_t leading_bytes,
                                     uint32_t stride_bytes) {
  const uint64_t mode = swizzle == Swizzle::kNone ? 0 : 4 - uint64_t(swizzle);
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(leading_bytes >> 4) << 16 |
         uint64_t(stride_bytes >> 4) << 32 | mode << 62;
}

#if SWA_EMULATED

template <int kN, Half kType, Major kB>
void wgmma_ss(float (&d)[kN / 2], uint64_t a_descriptor, uint64_t b_descriptor,
              bool accumulate SWA_LOC) {
  emu::wgmma({kN, kType, kB, false}, d, nullptr, a_descriptor, b_descriptor, accumulate, loc);
}
template <int kN, Half kType, Major kB>
void wgmma_rs(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b_descriptor,
              bool accumulate SWA_LOC) {
  emu::wgmma({kN, kType, kB, true}, d, a, 0, b_descriptor, accumulate, loc);
}
template <int kSize>
void wgmma_fence(float (&)[kSize] SWA_LOC) {
  emu::wgmma_fence(loc);
}
template <int kSize>
void pin_registers(float (&)[kSize]) {}
template <int kSize>
void claim_registers(float (&)[kSize]) {}
inline void wgmma_commit(SWA_LOC_ONLY) { emu::wgmma_commit(loc); }
template <int kPending, int kSize>
void wgmma_wait(float (&)[kSize] SWA_LOC) {
  emu::wgmma_wait(kPending, loc);
}

#else

// Names the registers, so that the compiler cannot move arithmetic on them across this place, into
// or out of the asynchronous window: a "memory" clobber does not order plain register arithmetic.
template <int kSize>
SWA_DEVICE void pin_registers(float (&d)[kSize]) {
  SWA_UNROLL
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Gives accumulators that are not defined yet registers of their own, by no instruction: branches
// that begin with undefined accumulators of one size would share them, and where their products are
// cut differently ptxas serializes all of them.
template <int kSize>
SWA_DEVICE void claim_registers(float (&d)[kSize]) {
  SWA_UNROLL
  for (int i = 0; i < kSize; ++i) asm volatile("" : "=f"(d[i]));
}

template <int kSize>
SWA_DEVICE void wgmma_fence(float (&d)[kSize]) {
  pin_registers(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
SWA_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the kPending most recent groups of the warpgroup are in flight.
template <int kPending, int kSize>
SWA_DEVICE void wgmma_wait(float (&d)[kSize]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  pin_registers(d);
}

// A in shared memory (K-major) / A in registers, an mma fragment per warp. One specialization per
// shape.
template <int kN, Half kType, Major kB>
SWA_DEVICE void wgmma_ss(float (&d)[kN / 2], uint64_t a_descriptor, uint64_t b_descriptor,
                         bool accumulate);
template <int kN, Half kType, Major kB>
SWA_DEVICE void wgmma_rs(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b_descriptor,
                         bool accumulate);
#include "cuda/ptx/wgmma_shapes.inc"

#endif

}  // namespace swa::ptx

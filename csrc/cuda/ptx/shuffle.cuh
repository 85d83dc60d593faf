// Shuffles, votes and elect.sync. None of them orders memory accesses: use sync_warp for that.
#pragma once
#include "cuda/ptx/platform.cuh"
#include "cuda/ptx/thread.cuh"
#if SWA_EMULATED
#include "emulation/warp_ops.hpp"
#endif

namespace swa::ptx {

constexpr uint32_t kAllLanes = 0xffffffffu;

// The value of lane (own lane ^ lane_mask).
template <class T>
SWA_DEVICE T shfl_xor(T value, int lane_mask, uint32_t mask = kAllLanes SWA_LOC) {
  static_assert(sizeof(T) == 4, "shuffles move 4 bytes");
#if SWA_EMULATED
  return bit_cast<T>(
      emu::shuffle("shfl.bfly", mask, bit_cast<uint32_t>(value), emu::lane_id() ^ lane_mask, loc));
#else
  return __shfl_xor_sync(mask, value, lane_mask);
#endif
}

// The value of lane source % 32.
template <class T>
SWA_DEVICE T shfl(T value, int source, uint32_t mask = kAllLanes SWA_LOC) {
  static_assert(sizeof(T) == 4, "shuffles move 4 bytes");
#if SWA_EMULATED
  return bit_cast<T>(emu::shuffle("shfl.idx", mask, bit_cast<uint32_t>(value), source & 31, loc));
#else
  return __shfl_sync(mask, value, source);
#endif
}

// Bit i: the predicate of lane i; lanes outside the mask give 0.
SWA_DEVICE uint32_t ballot(bool predicate, uint32_t mask = kAllLanes SWA_LOC) {
#if SWA_EMULATED
  return emu::ballot(mask, predicate, loc);
#else
  return __ballot_sync(mask, predicate);
#endif
}

SWA_DEVICE bool any(bool predicate, uint32_t mask = kAllLanes SWA_LOC) {
#if SWA_EMULATED
  return emu::ballot(mask, predicate, loc) != 0;
#else
  return __any_sync(mask, predicate);
#endif
}

SWA_DEVICE bool all(bool predicate, uint32_t mask = kAllLanes SWA_LOC) {
#if SWA_EMULATED
  return emu::ballot(mask, predicate, loc) == mask;
#else
  return __all_sync(mask, predicate);
#endif
}

// elect.sync (sm_90): true in one lane of the warp, which all lanes must be executing.
SWA_DEVICE bool elect_one(SWA_LOC_ONLY) {
#if SWA_EMULATED
  return emu::elect(kAllLanes, loc);
#else
  uint32_t elected;
  asm volatile("{\n.reg .pred P;\nelect.sync _|P, 0xffffffff;\nselp.b32 %0, 1, 0, P;\n}"
               : "=r"(elected));
  return elected;
#endif
}

}  // namespace swa::ptx

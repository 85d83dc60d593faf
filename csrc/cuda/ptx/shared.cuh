// Shared memory: one struct per kernel, laid over the dynamic allocation; its sizeof is the launch
// size.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/access.hpp"
#include "emulation/shared_memory.hpp"
#endif

namespace swa::ptx {

// The block's shared memory as a Storage, 1024-byte aligned (what the 128-byte swizzle needs).
template <class Storage>
SWA_DEVICE Storage& shared_storage(SWA_LOC_ONLY) {
#if SWA_EMULATED
  return *reinterpret_cast<Storage*>(emu::smem_start(sizeof(Storage), loc));
#else
  extern __shared__ __align__(1024) unsigned char swa_dynamic_smem[];
  return *reinterpret_cast<Storage*>(swa_dynamic_smem);
#endif
}

// The 32-bit shared::cta address of a pointer into shared memory.
SWA_DEVICE uint32_t smem_u32(const void* pointer SWA_LOC) {
#if SWA_EMULATED
  return emu::smem_address(pointer, loc);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#endif
}

// For scalars in shared memory: p[i] is checked and recorded in emulation. T may have 1, 2, 4, 8 or
// 16 bytes.
#if SWA_EMULATED
template <class T>
using SharedPointer = emu::SharedPointer<T>;
#else
template <class T>
using SharedPointer = T*;
#endif

}  // namespace swa::ptx

// The swizzle modes of TMA and wgmma: 16-byte chunks exchanged within rows of 32, 64 or 128 bytes.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/tensor_map.hpp"
#endif

namespace swa::ptx {

#if SWA_EMULATED
using emu::Swizzle;
#else
enum class Swizzle : uint8_t {
  kNone = 0,
  k32 = 1,
  k64 = 2,
  k128 = 3
};  // the values of CU_TENSOR_MAP_SWIZZLE_*
#endif

}  // namespace swa::ptx

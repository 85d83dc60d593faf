// What the primitives in this folder are built on. Every function here is one PTX instruction (or a
// few) under nvcc and a call of the emulator (csrc/emulation) under a host compiler; kernels
// written with them run in both worlds.
//
//   SWA_DEVICE     a function for device code
//   SWA_ANYWHERE   a function for device and host code
//   SWA_LOC        last parameter of a primitive: the caller's file and line, emulation only
//   SWA_LOC_ONLY   the same for a primitive without other parameters
//   SWA_PASS_LOC   last argument of a primitive called by a function that has SWA_LOC itself
//   SWA_UNROLL     unrolls the loop that follows; no effect in emulation
//   SWA_UNROLL_4   the same by four, where more would cost registers
//   SWA_NO_UNROLL  keeps the loop that follows a loop, where unrolling would cost registers
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)

#define SWA_EMULATED 0
#define SWA_DEVICE __device__ __forceinline__
#define SWA_ANYWHERE __host__ __device__ __forceinline__
#define SWA_LOC
#define SWA_LOC_ONLY
#define SWA_PASS_LOC
#define SWA_UNROLL _Pragma("unroll")
#define SWA_UNROLL_4 _Pragma("unroll 4")
#define SWA_NO_UNROLL _Pragma("unroll 1")

#else

#include "emulation/source_location.hpp"
#define SWA_EMULATED 1
#define SWA_DEVICE inline
#define SWA_ANYWHERE inline
#define SWA_LOC , ::swa::emu::Loc loc = ::swa::emu::Loc::here()
#define SWA_LOC_ONLY ::swa::emu::Loc loc = ::swa::emu::Loc::here()
#define SWA_UNROLL
#define SWA_PASS_LOC , loc
#define SWA_UNROLL_4
#define SWA_NO_UNROLL
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

#endif

namespace swa::ptx {

struct alignas(8) U32x2 {
  uint32_t x, y;
};
struct alignas(16) U32x4 {
  uint32_t x, y, z, w;
};

// The same bits as another type of the same size.
template <class To, class From>
SWA_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast between types of different sizes");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace swa::ptx

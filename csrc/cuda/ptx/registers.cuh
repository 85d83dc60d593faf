// Registers: setmaxnreg (sm_90a), which moves them between the warpgroups of a block, and a hint to
// keep them free.
#pragma once
#include "cuda/ptx/platform.cuh"

namespace swa::ptx {

template <int kCount>
constexpr bool kValidRegisterCount = kCount % 8 == 0 && kCount >= 24 && kCount <= 256;

template <int kCount>
SWA_DEVICE void set_max_registers_up() {
  static_assert(kValidRegisterCount<kCount>, "a multiple of 8 in 24..256");
#if !SWA_EMULATED
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

template <int kCount>
SWA_DEVICE void set_max_registers_down() {
  static_assert(kValidRegisterCount<kCount>, "a multiple of 8 in 24..256");
#if !SWA_EMULATED
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// The same value, which the compiler does not know to be the same: what follows from it is computed
// where it is needed, and not kept in registers across a loop.
SWA_DEVICE int recomputed(int x) {
#if !SWA_EMULATED
  asm volatile("" : "+r"(x));
#endif
  return x;
}

}  // namespace swa::ptx
